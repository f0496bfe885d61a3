package nriplugin

import (
	"bytes"
	"context"
	"slices"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/edits"
)

// The runtime asks about every container of the node, and each waits for the
// answer. Decoding all that NRI says of one takes longer than everything else
// that is done for it, so the two requests that come while a pod waits are read
// and answered here, by hand: only what the plugin looks at is read, and of a
// pod of no interest nothing but its handler. All other events are left to NRI's
// stub.

const (
	createMethod   = "/nri.pkg.api.v1alpha1.Plugin/CreateContainer"
	validateMethod = "/nri.pkg.api.v1alpha1.Plugin/ValidateContainerAdjustment"
)

// intercept answers the requests that a pod waits for, and passes on the rest.
func (p *Plugin) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
	if info.FullMethod != createMethod && info.FullMethod != validateMethod {
		return next(ctx, unmarshal)
	}
	// A message without fields keeps what is in it as it came.
	var raw emptypb.Empty
	if err := unmarshal(&raw); err != nil {
		return nil, err
	}
	if info.FullMethod == createMethod {
		return p.create(ctx, raw.ProtoReflect().GetUnknown())
	}
	return p.validate(ctx, raw.ProtoReflect().GetUnknown())
}

// create returns an api.CreateContainerResponse as it is encoded.
func (p *Plugin) create(ctx context.Context, raw []byte) (*emptypb.Empty, error) {
	var req api.CreateContainerRequest
	var resp emptypb.Empty
	if ours, err := p.read(raw, &req.Pod, &req.Container, nil); err != nil || !ours {
		return &resp, err
	}
	adjust, _, err := p.CreateContainer(ctx, req.Pod, req.Container)
	if adjust != nil {
		resp.ProtoReflect().SetUnknown(message(make([]byte, 0, 1024), 1, writeAdjustment, adjust))
	}
	return &resp, err
}

func (p *Plugin) validate(ctx context.Context, raw []byte) (*api.ValidateContainerAdjustmentResponse, error) {
	var req api.ValidateContainerAdjustmentRequest
	if ours, err := p.read(raw, &req.Pod, &req.Container, &req.Adjust); err != nil || !ours {
		return &api.ValidateContainerAdjustmentResponse{}, err
	}
	if err := p.ValidateContainerAdjustment(ctx, &req); err != nil {
		return &api.ValidateContainerAdjustmentResponse{Reject: true, Reason: err.Error()}, nil
	}
	return &api.ValidateContainerAdjustmentResponse{}, nil
}

// read decodes a request, whose first fields are the same in both. It stops at
// the pod when that is none of ours.
func (p *Plugin) read(raw []byte, pod **api.PodSandbox, ctr **api.Container, adjust **api.ContainerAdjustment) (ours bool, err error) {
	err = each(raw, func(f field) error {
		if f.tag == 1<<3|bytesType {
			return into(pod, f, readPod)
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	if _, ours = p.o.Profile((*pod).GetRuntimeHandler()); !ours {
		return false, nil
	}
	return true, each(raw, func(f field) error {
		switch {
		case f.tag == 2<<3|bytesType:
			return into(ctr, f, readContainer)
		case f.tag == 3<<3|bytesType && adjust != nil:
			return into(adjust, f, readAdjustment)
		}
		return nil
	})
}

// The numbers of the fields are those of nri/pkg/api/api.proto.

func readPod(pod *api.PodSandbox, f field) error {
	switch f.tag {
	case 1<<3 | bytesType:
		pod.Id = string(f.bytes)
	case 2<<3 | bytesType:
		pod.Name = string(f.bytes)
	case 3<<3 | bytesType:
		pod.Uid = string(f.bytes)
	case 4<<3 | bytesType:
		pod.Namespace = string(f.bytes)
	case 6<<3 | bytesType:
		return readEntry(&pod.Annotations, f)
	case 7<<3 | bytesType:
		pod.RuntimeHandler = string(f.bytes)
	}
	return nil
}

func readContainer(c *api.Container, f field) error {
	switch f.tag {
	case 1<<3 | bytesType:
		c.Id = string(f.bytes)
	case 2<<3 | bytesType:
		c.PodSandboxId = string(f.bytes)
	case 3<<3 | bytesType:
		c.Name = string(f.bytes)
	case 8<<3 | bytesType:
		if bytes.HasPrefix(f.bytes, []byte(edits.EnvPrefix)) {
			c.Env = append(c.Env, string(f.bytes))
		}
	case 9<<3 | bytesType:
		return readMount(&c.Mounts, f)
	case 11<<3 | bytesType:
		return into(&c.Linux, f, readLinux)
	case 13<<3 | bytesType:
		return element(&c.Rlimits, f, readLimit)
	case 21<<3 | bytesType:
		return into(&c.User, f, readUser)
	}
	return nil
}

func readAdjustment(a *api.ContainerAdjustment, f field) error {
	switch f.tag {
	case 3<<3 | bytesType:
		return readMount(&a.Mounts, f)
	case 6<<3 | bytesType:
		return into(&a.Linux, f, readLinuxAdjustment)
	case 7<<3 | bytesType:
		return element(&a.Rlimits, f, readLimit)
	}
	return nil
}

func readLinux(l *api.LinuxContainer, f field) error {
	if f.tag == 2<<3|bytesType {
		return element(&l.Devices, f, readDevice)
	}
	return nil
}

func readLinuxAdjustment(l *api.LinuxContainerAdjustment, f field) error {
	if f.tag == 1<<3|bytesType {
		return element(&l.Devices, f, readDevice)
	}
	return nil
}

func readDevice(d *api.LinuxDevice, f field) error {
	switch f.tag {
	case 1<<3 | bytesType:
		d.Path = string(f.bytes)
	case 2<<3 | bytesType:
		d.Type = string(f.bytes)
	case 3<<3 | varintType:
		d.Major = int64(f.number)
	case 4<<3 | varintType:
		d.Minor = int64(f.number)
	case 5<<3 | bytesType:
		return into(&d.FileMode, f, func(m *api.OptionalFileMode, f field) error { return readValue(&m.Value, f) })
	case 6<<3 | bytesType:
		return into(&d.Uid, f, func(v *api.OptionalUInt32, f field) error { return readValue(&v.Value, f) })
	case 7<<3 | bytesType:
		return into(&d.Gid, f, func(v *api.OptionalUInt32, f field) error { return readValue(&v.Value, f) })
	}
	return nil
}

// readMount adds a mount if it may be one of a configuration file.
func readMount(list *[]*api.Mount, f field) error {
	var destination []byte
	err := each(f.bytes, func(f field) error {
		if f.tag == 1<<3|bytesType {
			destination = f.bytes
		}
		return nil
	})
	if err == nil && bytes.HasSuffix(destination, []byte(devconf.Suffix)) {
		*list = append(*list, &api.Mount{Destination: string(destination)})
	}
	return err
}

func readLimit(l *api.POSIXRlimit, f field) error {
	switch f.tag {
	case 1<<3 | bytesType:
		l.Type = string(f.bytes)
	case 2<<3 | varintType:
		l.Hard = f.number
	case 3<<3 | varintType:
		l.Soft = f.number
	}
	return nil
}

func readUser(u *api.User, f field) error {
	switch f.tag {
	case 1<<3 | varintType:
		u.Uid = uint32(f.number)
	case 2<<3 | varintType:
		u.Gid = uint32(f.number)
	}
	return nil
}

func readValue(v *uint32, f field) error {
	if f.tag == 1<<3|varintType {
		*v = uint32(f.number)
	}
	return nil
}

// readEntry adds an entry of a map of strings.
func readEntry(m *map[string]string, f field) error {
	var key, value string
	err := each(f.bytes, func(f field) error {
		switch f.tag {
		case 1<<3 | bytesType:
			key = string(f.bytes)
		case 2<<3 | bytesType:
			value = string(f.bytes)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[key] = value
	return nil
}

// What follows writes what edits.Adjustment makes.

func writeAdjustment(b []byte, a *api.ContainerAdjustment) []byte {
	for k, v := range a.Annotations {
		b = message(b, 2, writePair, pair{k, v})
	}
	for _, m := range a.Mounts {
		b = message(b, 3, writeMount, m)
	}
	for _, kv := range a.Env {
		b = message(b, 4, writePair, pair{kv.Key, kv.Value})
	}
	if a.Linux != nil {
		b = message(b, 6, writeLinux, a.Linux)
	}
	for _, l := range a.Rlimits {
		b = message(b, 7, writeLimit, l)
	}
	return b
}

func writeMount(b []byte, m *api.Mount) []byte {
	b = text(text(text(b, 1, m.Destination), 2, m.Type), 3, m.Source)
	for _, o := range m.Options {
		b = text(b, 4, o)
	}
	return b
}

func writeLinux(b []byte, l *api.LinuxContainerAdjustment) []byte {
	for _, d := range l.Devices {
		b = message(b, 1, writeDevice, d)
	}
	return b
}

func writeDevice(b []byte, d *api.LinuxDevice) []byte {
	b = text(text(b, 1, d.Path), 2, d.Type)
	b = varint(varint(b, 3, uint64(d.Major)), 4, uint64(d.Minor))
	if d.FileMode != nil {
		b = message(b, 5, writeValue, d.FileMode.Value)
	}
	if d.Uid != nil {
		b = message(b, 6, writeValue, d.Uid.Value)
	}
	if d.Gid != nil {
		b = message(b, 7, writeValue, d.Gid.Value)
	}
	return b
}

func writeLimit(b []byte, l *api.POSIXRlimit) []byte {
	return varint(varint(text(b, 1, l.Type), 2, l.Hard), 3, l.Soft)
}

type pair struct{ key, value string }

func writePair(b []byte, p pair) []byte        { return text(text(b, 1, p.key), 2, p.value) }
func writeValue(b []byte, value uint32) []byte { return varint(b, 1, uint64(value)) }

// message appends a field that is a message.
func message[T any](b []byte, n protowire.Number, write func([]byte, T) []byte, m T) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	start := len(b)
	b = write(append(b, 0), m) // room for the length of most
	size := len(b) - start - 1
	if more := protowire.SizeVarint(uint64(size)) - 1; more > 0 {
		b = slices.Insert(b, start, make([]byte, more)...)
	}
	protowire.AppendVarint(b[:start], uint64(size))
	return b
}

// text and varint append a field that has not its default value.

func text(b []byte, n protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func varint(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

// field is one field of a message and its value, of which only that of its type
// is set.
type field struct {
	tag    uint64 // number<<3 | type
	bytes  []byte
	number uint64
}

// A field's tag is its number, shifted, and one of these.
const (
	varintType = uint64(protowire.VarintType)
	bytesType  = uint64(protowire.BytesType)
)

// each calls f with every field of a message that has one of the two types that
// matter here.
func each(message []byte, f func(field) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		v := field{tag: protowire.EncodeTag(number, kind)}
		switch kind {
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

// into reads a message into *m, which it makes if there is none: a message that
// comes in pieces is put together.
func into[T any](m **T, f field, read func(*T, field) error) error {
	if *m == nil {
		*m = new(T)
	}
	return each(f.bytes, func(f field) error { return read(*m, f) })
}

// element reads a message and appends it.
func element[T any](list *[]*T, f field, read func(*T, field) error) error {
	var m *T
	if err := into(&m, f, read); err != nil {
		return err
	}
	*list = append(*list, m)
	return nil
}
