package edits

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

const (
	// MemlockPerVF is what a VF's user locks for DMA (intel-device-plugins
	// issue 1700: with less, qatlib finds no device).
	MemlockPerVF = 16 << 20
	// nodeMode lets the container's user and group use a node and nobody else.
	nodeMode      = os.FileMode(0o660)
	rlimitMemlock = "RLIMIT_MEMLOCK"
)

// VF is one virtual function that a container is to get.
type VF struct {
	Address  qat.Address
	Resource string    // full extended resource name, "qat.intel.com/cy"
	Group    vfio.Node // of its IOMMU group
	// ConfSource is the host's file with its configuration, ConfPath where the
	// container expects it. Both are empty when it gets none.
	ConfSource, ConfPath string
	// Module is the guest kernel's module for it, "" when there is none.
	Module string
}

// Options are what does not depend on a single VF.
type Options struct {
	Profile Profile
	Source  string    // who said that the container holds the VFs; for the record
	Control vfio.Node // VFIO's control node
	// MemlockAllowance is what the application may lock beside its VFs, in
	// bytes.
	MemlockAllowance uint64
	UID, GID         uint32 // of the container's process
}

// Edits are the changes to the spec of one container. CDI has the part that
// CDI can express; the rest is beside it.
type Edits struct {
	CDI cdi.ContainerEdits
	// Memlock is the RLIMIT_MEMLOCK that the container needs at least, in bytes.
	Memlock uint64

	profile Profile
	source  string
	vfs     []VF
}

// Container returns the changes that give a container the VFs. The order of
// the VFs is kept. No VFs, no changes: the result is nil.
func Container(vfs []VF, o Options) *Edits {
	if len(vfs) == 0 {
		return nil
	}
	e := &Edits{
		Memlock: saturatingAdd(uint64(len(vfs))*MemlockPerVF, o.MemlockAllowance),
		profile: o.Profile,
		source:  o.Source,
		vfs:     vfs,
	}
	node := o.nodes()
	e.CDI.DeviceNodes = make([]*cdi.DeviceNode, 0, len(vfs)+1)
	e.CDI.DeviceNodes = append(e.CDI.DeviceNodes, node(o.Control))
	e.CDI.Mounts = make([]*cdi.Mount, 0, len(vfs))
	for _, v := range vfs {
		if !hasNode(e.CDI.DeviceNodes, v.Group) {
			e.CDI.DeviceNodes = append(e.CDI.DeviceNodes, node(v.Group))
		}
		if v.ConfSource != "" {
			e.CDI.Mounts = append(e.CDI.Mounts, &cdi.Mount{HostPath: v.ConfSource, ContainerPath: v.ConfPath, Type: "bind", Options: confOptions})
		}
	}
	e.CDI.Env = environment(vfs)
	return e
}

// Summary names the VFs for people: "cy=0000:6b:00.1,cy=0000:6b:00.2".
func (e *Edits) Summary() string { return summary(e.vfs) }

func summary(vfs []VF) string {
	var b strings.Builder
	b.Grow(len(vfs) * len("generic=0000:6b:00.1,"))
	for i, v := range vfs {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(shortResource(v.Resource))
		b.WriteByte('=')
		b.WriteString(string(v.Address))
	}
	return b.String()
}

// environment names the VFs by resource, as the SR-IOV network device plugin
// does and the Kata agent understands: it rewrites the host's addresses in
// PCIDEVICE_* to the guest's.
func environment(vfs []VF) []string {
	var env []string
	for i, v := range vfs {
		if slices.ContainsFunc(vfs[:i], func(w VF) bool { return w.Resource == v.Resource }) {
			continue
		}
		var b strings.Builder
		b.Grow(len(EnvPrefix) + len(v.Resource) + len(vfs)*len("=0000:6b:00.1"))
		b.WriteString(EnvName(v.Resource))
		sep := byte('=')
		for _, w := range vfs[i:] {
			if w.Resource == v.Resource {
				b.WriteByte(sep)
				b.WriteString(string(w.Address))
				sep = ','
			}
		}
		env = append(env, b.String())
	}
	return env
}

// EnvPrefix begins every name of a variable that a container gets.
const EnvPrefix = "PCIDEVICE_"

// EnvName is the name of the variable that lists the addresses of a resource's
// VFs: "qat.intel.com/cy" gives PCIDEVICE_QAT_INTEL_COM_CY.
func EnvName(resource string) string {
	return EnvPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, resource)
}

// nodes returns a function that makes nodes, all of the same owner and mode.
func (o Options) nodes() func(vfio.Node) *cdi.DeviceNode {
	mode, uid, gid := nodeMode, o.UID, o.GID
	return func(n vfio.Node) *cdi.DeviceNode {
		return &cdi.DeviceNode{
			Path: n.Path, Type: "c", Major: int64(n.Major), Minor: int64(n.Minor),
			FileMode: &mode, Permissions: "rw", UID: &uid, GID: &gid,
		}
	}
}

// confOptions are those of the mount of a configuration file.
var confOptions = []string{"bind", "ro", "nosuid", "nodev", "noexec"}

func hasNode(nodes []*cdi.DeviceNode, n vfio.Node) bool {
	return slices.ContainsFunc(nodes, func(d *cdi.DeviceNode) bool { return d.Path == n.Path })
}

func shortResource(resource string) string {
	return resource[strings.LastIndexByte(resource, '/')+1:]
}

func saturatingAdd(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// present is what a spec has already, as far as it matters here.
type present struct {
	devices []presentDevice
	mounts  []string // destinations
	env     []string // NAME=value
	memlock *Limit
}

type presentDevice struct {
	path         string
	major, minor int64
	mode         os.FileMode
	uid, gid     uint32
}

// change is what is left to do to a spec once what it has is known.
type change struct {
	devices []*cdi.DeviceNode
	mounts  []*cdi.Mount
	env     []string
	memlock *Limit
	record  string // for the annotation
}

// NumVFs is the number of VFs that the container holds.
func (e *Edits) NumVFs() int { return len(e.vfs) }

// Source is who said that the container holds its VFs.
func (e *Edits) Source() string { return e.source }

// against compares the edits with a spec: what is there is not added twice, a
// node that the container's user could not open gets the right owner, a limit
// is never lowered. A node or a name that is taken by something else is an
// error: silently using it would hand the container a foreign device.
func (e *Edits) against(p present) (*change, error) {
	c := &change{
		devices: make([]*cdi.DeviceNode, 0, len(e.CDI.DeviceNodes)),
		mounts:  make([]*cdi.Mount, 0, len(e.CDI.Mounts)),
	}
	rec := Record{
		Profile: e.profile, Source: e.source, VFs: e.Summary(),
		Devices: make([]string, 0, len(e.CDI.DeviceNodes)), Mounts: make([]string, 0, len(e.CDI.Mounts)),
	}
	for _, d := range e.CDI.DeviceNodes {
		have, err := p.find(d)
		switch {
		case err != nil:
			return nil, err
		case have == nil:
			c.devices = append(c.devices, d)
			rec.Devices = append(rec.Devices, d.Path)
		case !have.openBy(*d.UID, *d.GID):
			owned := *d
			owned.Path = have.path
			c.devices = append(c.devices, &owned)
			if rec.Owned == nil {
				rec.Owned = make(map[string]string)
			}
			rec.Owned[have.path] = fmt.Sprintf("%04o:%d:%d", have.mode.Perm(), have.uid, have.gid)
		}
	}
	for _, m := range e.CDI.Mounts {
		if !slices.Contains(p.mounts, m.ContainerPath) {
			c.mounts = append(c.mounts, m)
			rec.Mounts = append(rec.Mounts, m.ContainerPath)
		}
	}
	for _, kv := range e.CDI.Env {
		name, _, _ := strings.Cut(kv, "=")
		if !hasEnv(p.env, name) {
			c.env = append(c.env, kv)
			rec.Env = append(rec.Env, name)
		}
	}
	if l, raise := raised(p.memlock, e.Memlock); raise {
		c.memlock = &l
		rec.Memlock = new(Limit)
		if p.memlock != nil {
			*rec.Memlock = *p.memlock
		}
	}
	c.record = rec.String()
	return c, nil
}

// find returns the spec's node for d, which a device plugin may have put at
// another path: the device number decides.
func (p *present) find(d *cdi.DeviceNode) (*presentDevice, error) {
	var found *presentDevice
	for i := range p.devices {
		have := &p.devices[i]
		same := have.major == d.Major && have.minor == d.Minor
		if have.path == d.Path && !same {
			return nil, fmt.Errorf("device %s: the spec has it as %d:%d, expected %d:%d: whoever put it there used stale device numbers; restart the device plugin and the pod",
				d.Path, have.major, have.minor, d.Major, d.Minor)
		}
		if same && (found == nil || have.path == d.Path) {
			found = have
		}
	}
	return found, nil
}

// openBy tells whether a process of that user and group can open the node for
// reading and writing without a capability.
func (d *presentDevice) openBy(uid, gid uint32) bool {
	switch {
	case d.uid == uid:
		return d.mode&0o600 == 0o600
	case d.gid == gid:
		return d.mode&0o060 == 0o060
	}
	return d.mode&0o006 == 0o006
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool {
		return len(kv) > len(name) && kv[len(name)] == '=' && kv[:len(name)] == name
	})
}

// raised returns the limit that is at least need, and whether that differs
// from what is there.
func raised(have *Limit, need uint64) (Limit, bool) {
	if have == nil {
		return Limit{Soft: need, Hard: need}, true
	}
	l := Limit{Soft: max(have.Soft, need), Hard: max(have.Hard, need)}
	return l, l != *have
}
