package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kata-qat/kata-qat/internal/api/oneshot"
)

const (
	configJSON = "config.json"
	// Original is the name, beside config.json, of the spec as containerd
	// wrote it.
	Original = "config.json.kata-qat-orig"
	// pending is the spec that is about to become config.json.
	pending = "config.json.kata-qat-new"
)

// Annotations of containerd's CRI plugin (internal/cri/annotations).
const (
	containerType    = "io.kubernetes.cri.container-type"
	sandboxID        = "io.kubernetes.cri.sandbox-id"
	sandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	sandboxName      = "io.kubernetes.cri.sandbox-name"
	sandboxUID       = "io.kubernetes.cri.sandbox-uid"
)

// The daemon is told of our own annotations and of Kata's, which it may have to
// add to.
const (
	ours  = "kata-qat.io/"
	katas = "io.katacontainers."
)

// bundle is an OCI bundle whose config.json was read. Only what concerns us is
// ever decoded; the rest stays as the bytes that it was.
type bundle struct {
	dir         string
	spec        map[string]json.RawMessage
	annotations map[string]string
}

// openBundle reads the spec as containerd wrote it: when a start is tried again
// after config.json was rewritten, from the original.
func openBundle(dir string) (*bundle, error) {
	raw, err := os.ReadFile(filepath.Join(dir, Original))
	if errors.Is(err, os.ErrNotExist) {
		raw, err = os.ReadFile(filepath.Join(dir, configJSON))
	}
	if err != nil {
		return nil, fmt.Errorf("kata-qat: read the bundle's spec: %w: containerd starts a shim in the bundle's directory", err)
	}
	b := &bundle{dir: dir}
	if err := json.Unmarshal(raw, &b.spec); err != nil {
		return nil, fmt.Errorf("kata-qat: bundle %s: %s is not an OCI spec: %w", b.path(), configJSON, err)
	}
	if a := b.spec["annotations"]; a != nil {
		if err := json.Unmarshal(a, &b.annotations); err != nil {
			return nil, fmt.Errorf("kata-qat: bundle %s: annotations of %s: %w", b.path(), configJSON, err)
		}
	}
	return b, nil
}

func (b *bundle) path() string {
	if abs, err := filepath.Abs(b.dir); err == nil {
		return abs
	}
	return b.dir
}

func (b *bundle) sandbox() bool { return b.annotations[containerType] == "sandbox" }

func (b *bundle) pod() string {
	return b.annotations[sandboxNamespace] + "/" + b.annotations[sandboxName]
}

func (b *bundle) request(handler string) oneshot.Sandbox {
	r := oneshot.Sandbox{
		ID: b.annotations[sandboxID], Namespace: b.annotations[sandboxNamespace], Name: b.annotations[sandboxName],
		UID: b.annotations[sandboxUID], RuntimeHandler: handler, Annotations: make(map[string]string),
	}
	for k, v := range b.annotations {
		if strings.HasPrefix(k, ours) || strings.HasPrefix(k, katas) {
			r.Annotations[k] = v
		}
	}
	return r
}

// rewrite puts the answer into config.json and keeps the original beside it.
// The new spec is complete on disk before it takes the name; on an error
// config.json is as it was and nothing of ours is left.
func (b *bundle) rewrite(edits *oneshot.Edits) (err error) {
	edited, err := b.edited(edits)
	if err != nil {
		return fmt.Errorf("edit %s of bundle %s: %w", configJSON, b.path(), err)
	}
	config, original, next := filepath.Join(b.dir, configJSON), filepath.Join(b.dir, Original), filepath.Join(b.dir, pending)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s of bundle %s: %w", configJSON, b.path(), err), ignoreMissing(os.Remove(next)))
		}
	}()
	info, err := os.Stat(config)
	if err != nil {
		return err
	}
	if err := writeSynced(next, edited, info.Mode().Perm()); err != nil {
		return err
	}
	// The link keeps the very file. It is there already when containerd tries
	// again; config.json is then made anew from it.
	linked := os.Link(config, original)
	if linked != nil && !errors.Is(linked, os.ErrExist) {
		return linked
	}
	if err := os.Rename(next, config); err != nil {
		if linked == nil {
			err = errors.Join(err, os.Remove(original))
		}
		return err
	}
	return nil
}

func writeSynced(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// edited returns the spec with the answer in it.
func (b *bundle) edited(edits *oneshot.Edits) ([]byte, error) {
	spec := make(map[string]json.RawMessage, len(b.spec)+2)
	for k, v := range b.spec {
		spec[k] = v
	}
	if len(edits.Devices) > 0 {
		linux, err := withDevices(spec["linux"], edits.Devices)
		if err != nil {
			return nil, err
		}
		spec["linux"] = linux
	}
	if len(edits.Annotations) > 0 {
		annotations := make(map[string]string, len(b.annotations)+len(edits.Annotations))
		for k, v := range b.annotations {
			annotations[k] = v
		}
		for k, v := range edits.Annotations {
			annotations[k] = v
		}
		raw, err := encode(annotations)
		if err != nil {
			return nil, err
		}
		spec["annotations"] = raw
	}
	return encode(spec)
}

// withDevices adds the nodes, and the device cgroup's leave to use them, to the
// spec's linux section.
func withDevices(raw json.RawMessage, nodes []oneshot.Device) (json.RawMessage, error) {
	linux, err := object(raw, "linux")
	if err != nil {
		return nil, err
	}
	devices, err := list(linux["devices"], "linux.devices")
	if err != nil {
		return nil, err
	}
	resources, err := object(linux["resources"], "linux.resources")
	if err != nil {
		return nil, err
	}
	rules, err := list(resources["devices"], "linux.resources.devices")
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		mode, uid, gid, major, minor := os.FileMode(n.Mode), n.UID, n.GID, n.Major, n.Minor
		there, err := hasDevice(devices, n)
		if err != nil {
			return nil, err
		}
		if there {
			continue
		}
		device, err := encode(specs.LinuxDevice{Path: n.Path, Type: "c", Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid})
		if err != nil {
			return nil, err
		}
		rule, err := encode(specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
		if err != nil {
			return nil, err
		}
		devices, rules = append(devices, device), append(rules, rule)
	}
	for _, part := range []struct {
		in  map[string]json.RawMessage
		key string
		v   any
	}{{resources, "devices", rules}, {linux, "resources", resources}, {linux, "devices", devices}} {
		if part.in[part.key], err = encode(part.v); err != nil {
			return nil, err
		}
	}
	return encode(linux)
}

// hasDevice tells whether the spec has the node already; another device at its
// path is an error.
func hasDevice(devices []json.RawMessage, n oneshot.Device) (bool, error) {
	for _, raw := range devices {
		var d specs.LinuxDevice
		if err := json.Unmarshal(raw, &d); err != nil {
			return false, fmt.Errorf("linux.devices: %w", err)
		}
		if d.Path != n.Path {
			continue
		}
		if d.Major != n.Major || d.Minor != n.Minor {
			return false, fmt.Errorf("device %s: the spec has it as %d:%d, expected %d:%d", d.Path, d.Major, d.Minor, n.Major, n.Minor)
		}
		return true, nil
	}
	return false, nil
}

func object(raw json.RawMessage, what string) (map[string]json.RawMessage, error) {
	m := map[string]json.RawMessage{}
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return m, nil
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return m, nil
}

func list(raw json.RawMessage, what string) ([]json.RawMessage, error) {
	var l []json.RawMessage
	if len(raw) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return l, nil
}

// encode writes JSON without changing characters that JSON needs not escape.
func encode(v any) (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
