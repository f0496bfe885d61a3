package edits

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/containerd/nri/pkg/api"
	nrigen "github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

var control = vfio.Node{Path: vfio.ControlNode, Major: 10, Minor: 196}

// cy returns the n-th VF of a 4xxx device, with its configuration file.
func cy(n int) VF {
	return VF{
		Address:    qat.Address(fmt.Sprintf("0000:6b:00.%d", n)),
		Resource:   "qat.intel.com/cy",
		Group:      vfio.Node{Path: fmt.Sprintf("/dev/vfio/%d", 40+n), Major: 511, Minor: uint32(n)},
		ConfSource: "/run/kata-qat/conf/4xxxvf-0011223344556677.conf",
		ConfPath:   fmt.Sprintf("/etc/4xxxvf_dev%d.conf", n-1),
	}
}

func options() Options {
	return Options{Profile: ProfileVFIO, Source: "pool", Control: control, MemlockAllowance: 64 << 20}
}

func TestNoVFsMeansNoEdits(t *testing.T) {
	if e := Container(nil, options()); e != nil {
		t.Errorf("a container without VFs got edits: %+v", e)
	}
}

func TestContainerEdits(t *testing.T) {
	dc := cy(3)
	dc.Resource, dc.ConfSource, dc.ConfPath = "qat.intel.com/dc", "", ""
	shared := cy(2)
	shared.Group = cy(1).Group

	for name, tc := range map[string]struct {
		vfs     []VF
		change  func(*Options)
		paths   []string
		mounts  []string
		env     []string
		memlock uint64
		summary string
	}{
		"one VF": {
			vfs:   []VF{cy(1)},
			paths: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, mounts: []string{"/etc/4xxxvf_dev0.conf"},
			env: []string{"PCIDEVICE_QAT_INTEL_COM_CY=0000:6b:00.1"}, memlock: 80 << 20, summary: "cy=0000:6b:00.1",
		},
		"two VFs of one resource and one of another, without a configuration": {
			vfs:   []VF{cy(1), dc, cy(2)},
			paths: []string{"/dev/vfio/vfio", "/dev/vfio/41", "/dev/vfio/43", "/dev/vfio/42"}, mounts: []string{"/etc/4xxxvf_dev0.conf", "/etc/4xxxvf_dev1.conf"},
			env:     []string{"PCIDEVICE_QAT_INTEL_COM_CY=0000:6b:00.1,0000:6b:00.2", "PCIDEVICE_QAT_INTEL_COM_DC=0000:6b:00.3"},
			memlock: 112 << 20, summary: "cy=0000:6b:00.1,dc=0000:6b:00.3,cy=0000:6b:00.2",
		},
		"two VFs of one IOMMU group share its node": {
			vfs:   []VF{cy(1), shared},
			paths: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, mounts: []string{"/etc/4xxxvf_dev0.conf", "/etc/4xxxvf_dev1.conf"},
			env: []string{"PCIDEVICE_QAT_INTEL_COM_CY=0000:6b:00.1,0000:6b:00.2"}, memlock: 96 << 20, summary: "cy=0000:6b:00.1,cy=0000:6b:00.2",
		},
		"an allowance that would overflow is unlimited": {
			vfs: []VF{cy(1)}, change: func(o *Options) { o.MemlockAllowance = math.MaxUint64 },
			paths: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, mounts: []string{"/etc/4xxxvf_dev0.conf"},
			env: []string{"PCIDEVICE_QAT_INTEL_COM_CY=0000:6b:00.1"}, memlock: math.MaxUint64, summary: "cy=0000:6b:00.1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := options()
			o.UID, o.GID = 1000, 2000
			if tc.change != nil {
				tc.change(&o)
			}
			e := Container(tc.vfs, o)
			var paths, mounts []string
			for _, d := range e.CDI.DeviceNodes {
				paths = append(paths, d.Path)
				if *d.FileMode != 0o660 || *d.UID != 1000 || *d.GID != 2000 || d.Type != "c" {
					t.Errorf("%s: %s mode %v owner %d:%d, expected c 0660 1000:2000", d.Path, d.Type, *d.FileMode, *d.UID, *d.GID)
				}
			}
			for _, m := range e.CDI.Mounts {
				mounts = append(mounts, m.ContainerPath)
			}
			for what, diff := range map[string]string{
				"nodes":   cmp.Diff(tc.paths, paths),
				"mounts":  cmp.Diff(tc.mounts, mounts),
				"env":     cmp.Diff(tc.env, e.CDI.Env),
				"memlock": cmp.Diff(tc.memlock, e.Memlock),
				"summary": cmp.Diff(tc.summary, e.Summary()),
			} {
				if diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

// spec is a container's spec as containerd makes it, with what the functions
// change in it.
func spec(change ...func(*specs.Spec)) *specs.Spec {
	s := &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}}},
		Mounts:  []specs.Mount{{Destination: "/proc", Source: "proc", Type: "proc"}},
		Linux: &specs.Linux{
			Devices:   []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
		Annotations: map[string]string{"io.kubernetes.cri.container-name": "c0"},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

func withDevice(path string, major, minor int64, mode os.FileMode, uid, gid uint32) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor, FileMode: &mode, UID: &uid, GID: &gid})
	}
}

func withMemlock(soft, hard uint64) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: rlimitMemlock, Soft: soft, Hard: hard})
	}
}

// toNRI is what containerd tells a plugin of a spec.
func toNRI(s *specs.Spec) *api.Container {
	c := &api.Container{Env: s.Process.Env, Linux: &api.LinuxContainer{Devices: api.FromOCILinuxDevices(s.Linux.Devices)}, Mounts: api.FromOCIMounts(s.Mounts)}
	for _, l := range s.Process.Rlimits {
		c.Rlimits = append(c.Rlimits, &api.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	return c
}

var presentCases = map[string]struct {
	have []func(*specs.Spec)
	uid  uint32
	want Record
	// memlock is the soft limit afterwards.
	memlock uint64
}{
	"a spec that has nothing": {
		want: Record{
			Devices: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, Mounts: []string{"/etc/4xxxvf_dev0.conf"},
			Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"}, Memlock: &Limit{},
		},
		memlock: 80 << 20,
	},
	"nodes that kubelet put there are not added twice": {
		have: []func(*specs.Spec){withDevice("/dev/vfio/vfio", 10, 196, 0o666, 0, 0), withDevice("/dev/vfio/41", 511, 1, 0o600, 0, 0)},
		want: Record{Mounts: []string{"/etc/4xxxvf_dev0.conf"}, Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"}, Memlock: &Limit{}}, memlock: 80 << 20,
	},
	"a node that the container's user cannot open gets its owner": {
		have: []func(*specs.Spec){withDevice("/dev/vfio/vfio", 10, 196, 0o666, 0, 0), withDevice("/dev/vfio/41", 511, 1, 0o600, 0, 0)},
		uid:  1000,
		want: Record{
			Owned:  map[string]string{"/dev/vfio/41": "0600:0:0"},
			Mounts: []string{"/etc/4xxxvf_dev0.conf"}, Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"}, Memlock: &Limit{},
		},
		memlock: 80 << 20,
	},
	"a node at another path is recognised by its number": {
		have: []func(*specs.Spec){withDevice("/dev/qat0", 511, 1, 0o660, 0, 0)},
		want: Record{
			Devices: []string{"/dev/vfio/vfio"}, Mounts: []string{"/etc/4xxxvf_dev0.conf"},
			Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"}, Memlock: &Limit{},
		},
		memlock: 80 << 20,
	},
	"a higher limit is left alone": {
		have: []func(*specs.Spec){withMemlock(math.MaxUint64, math.MaxUint64)},
		want: Record{
			Devices: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, Mounts: []string{"/etc/4xxxvf_dev0.conf"},
			Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"},
		},
		memlock: math.MaxUint64,
	},
	"a lower soft limit is raised below a higher hard one": {
		have: []func(*specs.Spec){withMemlock(1<<16, 1<<40)},
		want: Record{
			Devices: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, Mounts: []string{"/etc/4xxxvf_dev0.conf"},
			Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"}, Memlock: &Limit{Soft: 1 << 16, Hard: 1 << 40},
		},
		memlock: 80 << 20,
	},
	"a configuration and a variable of the pod's own stay": {
		have: []func(*specs.Spec){func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/4xxxvf_dev0.conf", Source: "/var/lib/kubelet/x", Type: "bind"})
			s.Process.Env = append(s.Process.Env, "PCIDEVICE_QAT_INTEL_COM_CY=mine")
		}},
		want:    Record{Devices: []string{"/dev/vfio/vfio", "/dev/vfio/41"}, Memlock: &Limit{}},
		memlock: 80 << 20,
	},
}

func TestOnlyWhatIsMissingIsAdded(t *testing.T) {
	for name, tc := range presentCases {
		t.Run(name, func(t *testing.T) {
			o := options()
			o.UID, o.GID = tc.uid, tc.uid
			s := spec(tc.have...)
			if err := Container([]VF{cy(1)}, o).Apply(s); err != nil {
				t.Fatal(err)
			}
			rec, err := ParseRecord(s.Annotations[RecordAnnotation])
			if err != nil {
				t.Fatal(err)
			}
			want := tc.want
			want.Profile, want.Source, want.VFs = ProfileVFIO, "pool", "cy=0000:6b:00.1"
			if diff := cmp.Diff(&want, rec); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
			for _, l := range s.Process.Rlimits {
				if l.Type == rlimitMemlock && l.Soft != tc.memlock {
					t.Errorf("memlock %d, expected %d", l.Soft, tc.memlock)
				}
			}
			nodes := map[[2]int64]int{}
			for _, d := range s.Linux.Devices {
				nodes[[2]int64{d.Major, d.Minor}]++
			}
			if nodes[[2]int64{511, 1}] != 1 || nodes[[2]int64{10, 196}] != 1 {
				t.Errorf("nodes by number: %v, expected each exactly once", nodes)
			}
		})
	}
}

// What NRI makes of the adjustment and what Apply writes is the same spec:
// containers and sandboxes cannot drift apart.
func TestAdjustmentAndApplyAgree(t *testing.T) {
	for name, tc := range presentCases {
		t.Run(name, func(t *testing.T) {
			o := options()
			o.UID, o.GID = tc.uid, tc.uid
			e := Container([]VF{cy(1)}, o)

			applied, adjusted := spec(tc.have...), spec(tc.have...)
			if err := e.Apply(applied); err != nil {
				t.Fatal(err)
			}
			a, err := e.Adjustment(toNRI(adjusted))
			if err != nil {
				t.Fatal(err)
			}
			if err := nrigen.SpecGenerator(generator{s: adjusted}).Adjust(a); err != nil {
				t.Fatal(err)
			}
			lastLimitWins(adjusted.Process)
			// NRI sorts mounts and repeats a device's cgroup rule when it
			// replaces the node; neither changes what the container gets.
			byDestination := cmpopts.SortSlices(func(a, b specs.Mount) bool { return a.Destination < b.Destination })
			byPath := cmpopts.SortSlices(func(a, b specs.LinuxDevice) bool { return a.Path < b.Path })
			rules := cmpopts.IgnoreFields(specs.LinuxResources{}, "Devices")
			if diff := cmp.Diff(normal(t, applied), normal(t, adjusted), byDestination, byPath, rules); diff != "" {
				t.Errorf("applied and adjusted specs differ (-applied +adjusted):\n%s", diff)
			}
			for _, d := range a.GetLinux().GetDevices() {
				if d.GetFileMode().GetValue() != 0o660 {
					t.Errorf("%s: NRI gets mode %o, expected 660", d.GetPath(), d.GetFileMode().GetValue())
				}
			}
			if missing := e.Missing(toNRI(spec(tc.have...)), a); missing != nil {
				t.Errorf("our own adjustment lacks %v", missing)
			}
		})
	}
}

// generator is as much of a runtime's spec generator as NRI needs for our
// adjustments; anything else it is asked for panics.
type generator struct {
	nrigen.UnderlyingGenerator
	s *specs.Spec
}

func (g generator) Spec() *specs.Spec                    { return g.s }
func (g generator) AddAnnotation(k, v string)            { g.s.Annotations[k] = v }
func (g generator) AddProcessEnv(k, v string)            { g.s.Process.Env = append(g.s.Process.Env, k+"="+v) }
func (g generator) ClearProcessEnv()                     { g.s.Process.Env = nil }
func (g generator) AddDevice(d specs.LinuxDevice)        { g.s.Linux.Devices = append(g.s.Linux.Devices, d) }
func (g generator) AddMount(m specs.Mount)               { g.s.Mounts = append(g.s.Mounts, m) }
func (g generator) ClearMounts()                         { g.s.Mounts = nil }
func (g generator) Mounts() []specs.Mount                { return g.s.Mounts }
func (g generator) SetLinuxCgroupsPath(string)           {}
func (g generator) SetProcessOOMScoreAdj(adj int)        {}
func (g generator) SetLinuxRootPropagation(string) error { return nil }

func (g generator) AddLinuxResourcesDevice(allow bool, typ string, major, minor *int64, access string) {
	g.s.Linux.Resources.Devices = append(g.s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: typ, Major: major, Minor: minor, Access: access})
}

func (g generator) RemoveDevice(path string) {
	g.s.Linux.Devices = slices.DeleteFunc(g.s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (g generator) RemoveMount(destination string) {
	g.s.Mounts = slices.DeleteFunc(g.s.Mounts, func(m specs.Mount) bool { return m.Destination == destination })
}

// lastLimitWins does what runc does with a limit that is there twice: NRI only
// appends limits (pkg/runtime-tools/generate, AdjustRlimits).
func lastLimitWins(p *specs.Process) {
	var out []specs.POSIXRlimit
	for i, l := range p.Rlimits {
		if !slices.ContainsFunc(p.Rlimits[i+1:], func(m specs.POSIXRlimit) bool { return m.Type == l.Type }) {
			out = append(out, l)
		}
	}
	p.Rlimits = out
}

// normal drops the difference between nil and empty that JSON does not have.
func normal(t *testing.T, s *specs.Spec) *specs.Spec {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	out := new(specs.Spec)
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestANodeOfAnotherDeviceAtTheGroupsPathIsRefused(t *testing.T) {
	s := spec(withDevice("/dev/vfio/41", 511, 9, 0o660, 0, 0))
	before := normal(t, s)
	err := Container([]VF{cy(1)}, options()).Apply(s)
	if err == nil {
		t.Fatal("a node with other numbers was taken for the group's")
	}
	if diff := cmp.Diff(before, normal(t, s)); diff != "" {
		t.Errorf("a refused edit changed the spec:\n%s", diff)
	}
}

func TestMissingNamesWhatAnAdjustmentLacks(t *testing.T) {
	e := Container([]VF{cy(1)}, options())
	ctr := toNRI(spec())
	full := func() *api.ContainerAdjustment {
		a, err := e.Adjustment(ctr)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for name, tc := range map[string]struct {
		adjust func() *api.ContainerAdjustment
		want   []string
	}{
		"nothing adjusted": {
			adjust: func() *api.ContainerAdjustment { return nil },
			want:   []string{"/dev/vfio/vfio", "/dev/vfio/41", "/etc/4xxxvf_dev0.conf", rlimitMemlock},
		},
		"another plugin removed the node": {
			adjust: func() *api.ContainerAdjustment {
				a := full()
				a.Linux.Devices = nil
				a.RemoveDevice("/dev/vfio/41")
				return a
			},
			want: []string{"/dev/vfio/vfio", "/dev/vfio/41"},
		},
		"another plugin replaced the node": {
			adjust: func() *api.ContainerAdjustment {
				a := full()
				a.Linux.Devices = a.Linux.Devices[:1]
				a.AddDevice(&api.LinuxDevice{Path: "/dev/vfio/41", Type: "c", Major: 1, Minor: 3})
				return a
			},
			want: []string{"/dev/vfio/41"},
		},
		"another plugin removed the mount": {
			adjust: func() *api.ContainerAdjustment {
				a := full()
				a.Mounts = nil
				a.RemoveMount("/etc/4xxxvf_dev0.conf")
				return a
			},
			want: []string{"/etc/4xxxvf_dev0.conf"},
		},
		"another plugin lowered the limit": {
			adjust: func() *api.ContainerAdjustment {
				a := full()
				a.Rlimits = nil
				a.AddRlimit(rlimitMemlock, 4096, 4096)
				return a
			},
			want: []string{rlimitMemlock},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, e.Missing(ctr, tc.adjust())); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEnvName(t *testing.T) {
	for resource, want := range map[string]string{
		"qat.intel.com/cy":      "PCIDEVICE_QAT_INTEL_COM_CY",
		"qat.intel.com/asym-dc": "PCIDEVICE_QAT_INTEL_COM_ASYM_DC",
	} {
		if got := EnvName(resource); got != want {
			t.Errorf("EnvName(%q) = %q, expected %q", resource, got, want)
		}
	}
}

func BenchmarkAdjustment16VFs(b *testing.B) {
	vfs := make([]VF, 16)
	for i := range vfs {
		vfs[i] = cy(i)
	}
	ctr := toNRI(spec())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Container(vfs, options()).Adjustment(ctr); err != nil {
			b.Fatal(err)
		}
	}
}
