package host_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

func c62x() qattest.Node {
	pf := gen2("0000:3d:00.0")
	pf.Group = 3
	return qattest.Node{PFs: []qattest.PF{pf}}
}

func TestTheDenyListIsLiftedOnlyForAFamilyThatIsOnIt(t *testing.T) {
	for name, tt := range map[string]struct {
		node qattest.Node
		want bool
	}{"c62x": {c62x(), true}, "4xxx": {one(), false}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, tt.node)
			b.apply()
			b.expectDrivers(map[string]int{"vfio-pci": 16})
			if got := strings.Contains(b.read("/etc/modprobe.d/kata-qat.conf"), "disable_denylist=1"); got != tt.want {
				t.Errorf("modprobe.d lifts it: %t, want %t", got, tt.want)
			}
			if got := slices.Contains(b.ran(), "modprobe vfio-pci disable_denylist=1"); got != tt.want {
				t.Errorf("modprobe lifts it: %t, want %t: %v", got, tt.want, b.ran())
			}
		})
	}
}

// loadedVFIO is a machine that has vfio-pci loaded with the deny-list in force.
func (b *bench) loadedVFIO() {
	b.files(map[string]string{
		"/sys/module/vfio_pci/parameters/disable_denylist": "N\n", "/sys/module/vfio_pci/refcnt": "0\n",
		"/sys/module/vfio_pci_core/refcnt": "0\n", "/sys/module/vfio/refcnt": "0\n",
	})
}

func TestVFIOIsLoadedAnewToLiftItsDenyList(t *testing.T) {
	b := newBench(t, c62x())
	b.loadedVFIO()
	before := b.snapshot()
	b.apply()
	b.expectDrivers(map[string]int{"vfio-pci": 16})
	if b.apply().Changed {
		t.Error("a second run changed something")
	}
	b.undo()
	b.unchanged(before)
	t.Run("not while it has devices", func(t *testing.T) {
		node := c62x()
		node.Others = []qattest.Device{{Address: "0000:81:00.0", Vendor: 0x10de, Device: 0x2203, Driver: "vfio-pci", Group: 9}}
		b := newBench(t, node)
		b.loadedVFIO()
		b.refuses("vfio-pci is loaded without disable_denylist=1, 0000:3d:00.0 (c62x) is on vfio-pci's deny-list, and it cannot be loaded anew while it has devices, as it has 0000:81:00.0")
	})
}

func TestTheVFsDriversAreKeptOffTheHost(t *testing.T) {
	b := newBench(t, four())
	b.apply()
	got := b.read("/etc/modprobe.d/kata-qat.conf")
	for _, module := range []string{"qat_c62xvf", "qat_4xxxvf", "qat_420xxvf"} {
		if n := strings.Count(got, "blacklist "+module+"\n"); n != 1 {
			t.Errorf("%s is blacklisted %d times, want once:\n%s", module, n, got)
		}
	}
}

func TestAPFWithoutADriverGetsItsModule(t *testing.T) {
	node := one()
	node.PFs[0].Driver, node.PFs[0].Services, node.PFs[0].State = qattest.Unbound, "", ""
	b := newBench(t, node)
	b.files(map[string]string{"/lib/firmware/qat_4xxx.bin.xz": "", "/lib/firmware/intel/qat/qat_4xxx_mmp.bin.zst": ""})
	b.apply()
	if !slices.Contains(b.ran(), "modprobe qat_4xxx") {
		t.Errorf("programs %v, want modprobe qat_4xxx among them", b.ran())
	}
}

func TestModulesThatWereThereStay(t *testing.T) {
	b := newBench(t, one())
	b.loadedVFIO()
	before := b.snapshot()
	b.apply()
	b.undo()
	b.unchanged(before)
}

func TestAModuleThatSomebodyUsesByNowStays(t *testing.T) {
	b := newBench(t, one())
	b.apply()
	b.files(map[string]string{"/sys/module/vfio_pci/refcnt": "1\n"})
	b.undo()
	if _, err := os.Stat(filepath.Join(b.root, "sys/module/vfio_pci")); err != nil {
		t.Errorf("vfio_pci was unloaded: %v", err)
	}
}

func TestTheVariantDriverIsUsedWhereTheKernelHasItForTheDevice(t *testing.T) {
	const alias = "alias vfio_pci:v00008086d0000%04Xsv*sd*bc*sc*i* qat_vfio_pci\n"
	for name, tt := range map[string]struct {
		aliases string
		want    map[string]int
		notes   int
	}{
		"for this device": {fmt.Sprintf(alias, 0x4941), map[string]int{"qat_vfio_pci": 16}, 0},
		"for another":     {fmt.Sprintf(alias, 0x4943), map[string]int{"vfio-pci": 16}, 1},
		"not at all":      {"", map[string]int{"vfio-pci": 16}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, one())
			b.files(map[string]string{"/lib/modules/" + release + "/modules.alias": "alias pci:v00008086d00004940sv*sd*bc*sc*i* qat_4xxx\n" + tt.aliases})
			b.program("modprobe", standIns["modprobe"]+"\nif [ $1 = qat_vfio_pci ]; then mkdir -p $HOST_ROOT/sys/bus/pci/drivers/qat_vfio_pci; fi")
			b.options.Config.PF = []config.PFRule{{Driver: "qat_vfio_pci"}}
			out := b.apply()
			b.expectDrivers(tt.want)
			if got := step(out, "modules").Notes; len(got) != tt.notes {
				t.Errorf("notes %q, want %d", got, tt.notes)
			}
		})
	}
}

func TestTheGroupThatMayOpenNodesIsConfigured(t *testing.T) {
	b := newBench(t, one())
	b.options.Config.NodeGroup = "kvm"
	b.apply()
	if got, want := b.read("/etc/udev/rules.d/70-kata-qat.rules"), `OWNER="root", GROUP="kvm", MODE="0660"`; !strings.Contains(got, want) {
		t.Errorf("the rule is %s, want %s in it", got, want)
	}
}

func TestPreflightSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	unbound := func(n *qattest.Node) {
		n.PFs[0].Driver, n.PFs[0].Services, n.PFs[0].State = qattest.Unbound, "", ""
	}
	tests := []struct {
		name  string
		node  func(*qattest.Node)
		files map[string]string
		want  string // in the error; in a note if it begins with "note "
	}{
		{"no card", func(n *qattest.Node) { n.PFs = nil }, nil, "there is no QAT physical function on the PCI bus"},
		{"no driver", func(n *qattest.Node) { unbound(n); n.PFs[0].Family = "6xxx" }, nil, "driver: 0000:6b:00.0 (6xxx) has no driver, and Linux 6.12.1-test has no module qat_6xxx: it is in Linux since 6.16: install the distribution's with --driver packages"},
		{"a driver that is not in Linux", func(n *qattest.Node) { unbound(n); n.PFs[0].Family = "c4xxx" }, nil, "it is not in Linux: build the vendor's release with --driver-archive"},
		{"another driver", func(n *qattest.Node) { n.PFs[0].Driver = "vfio-pci" }, nil, "driver: 0000:6b:00.0 (4xxx) is bound to vfio-pci, expected 4xxx: unbind it, or exclude this PF"},
		{"no firmware, and no driver yet", unbound, nil, "firmware: /lib/firmware has no qat_4xxx.bin, qat_4xxx_mmp.bin, compressed or not"},
		{"no firmware on the disk, and a driver that has it", nil, nil, "note firmware: /lib/firmware has no qat_4xxx.bin"},
		{"no SR-IOV", nil, map[string]string{"/sys/bus/pci/devices/0000:6b:00.0/sriov_totalvfs": "0\n"}, "SR-IOV: 0000:6b:00.0 has no VFs"},
		{"lockdown", nil, map[string]string{"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, "note lockdown: /sys/kernel/security/lockdown is none [integrity]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			node := one()
			if tt.node != nil {
				tt.node(&node)
			}
			b := newBench(t, node)
			b.files(tt.files)
			if want, ok := strings.CutPrefix(tt.want, "note "); ok {
				notes := step(b.apply(), "preflight").Notes
				if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, want) }) {
					t.Errorf("notes %q, want one with %q", notes, want)
				}
				return
			}
			b.refuses(tt.want)
		})
	}
}

func TestOldContainerRuntimesAreTold(t *testing.T) {
	b := newBench(t, one())
	b.program("containerd", "echo containerd github.com/containerd/containerd v1.6.20 abc")
	b.program("crio", "echo crio version 1.30.1")
	notes := step(b.apply(), "preflight").Notes
	if text := strings.Join(notes, "\n"); !strings.Contains(text, "containerd is v1.6.20: expected 1.7 or later for NRI") || strings.Contains(text, "crio") {
		t.Errorf("notes %q", notes)
	}
}

func TestNoVFsAreTakenAway(t *testing.T) {
	b := newBench(t, one())
	b.apply()
	none := 0
	b.options.Config.PF = []config.PFRule{{VFs: &none}}
	if got := step(b.apply(), "virtual-functions"); got.Status != plan.Changed || got.Is != "1 PFs, 0 VFs" {
		t.Errorf("virtual-functions is %s, %s", got.Status, got.Is)
	}
	b.expectDrivers(map[string]int{})
}
