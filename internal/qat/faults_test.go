package qat_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// Whatever is wrong with one device is said, with its address, and the other
// devices are found as if nothing were wrong.
func TestABrokenEntryIsAProblemAndHidesNoOtherDevice(t *testing.T) {
	const broken, other qat.Address = "0000:6b:00.0", "0000:70:00.0"
	tests := []struct {
		name    string
		fault   func(qattest.Tree) error
		problem string // what is said, "" for nothing
		vfs     int    // of the broken PF that are still found; -1: the PF is not
		orphans int
	}{
		{"PF's vendor is unreadable", func(t qattest.Tree) error { return t.Break(broken, "vendor") },
			"0000:6b:00.0: read vendor: is a directory\n", -1, 4},
		{"PF's id is garbage", func(t qattest.Tree) error { return t.Set(broken, "device", "garbage") },
			"0000:6b:00.0: read device: \"garbage\" is no PCI id: expected one like 0x4940\n", -1, 4},
		{"PF's id is unknown", func(t qattest.Tree) error { return t.Set(broken, "device", "0x4fff") },
			"", -1, 0},
		{"PF vanishes in mid-pass", func(t qattest.Tree) error { return t.Vanish(broken) },
			"0000:6b:00.0: open 0000:6b:00.0: no such file or directory\n", -1, 4},
		{"PF's driver link is broken", func(t qattest.Tree) error { return t.Break(broken, "driver") },
			"0000:6b:00.0: readlink driver: invalid argument\n", 4, 0},
		{"NUMA node is garbage", func(t qattest.Tree) error { return t.Set(broken, "numa_node", "x") },
			"0000:6b:00.0: read numa_node: strconv.Atoi: parsing \"x\": invalid syntax\n", 4, 0},
		{"number of VFs is garbage", func(t qattest.Tree) error { return t.Set(broken, "sriov_numvfs", "") },
			"0000:6b:00.0: read sriov_numvfs: strconv.Atoi: parsing \"\": invalid syntax\n", 4, 0},
		{"state is unreadable", func(t qattest.Tree) error { return t.Break(broken, "qat/state") },
			"0000:6b:00.0: read qat/state: is a directory\n", 4, 0},
		{"state is garbage", func(t qattest.Tree) error { return t.Set(broken, "qat/state", "sideways") },
			"0000:6b:00.0: read qat/state: \"sideways\": expected up or down\n", 4, 0},
		{"services are no services", func(t qattest.Tree) error { return t.Set(broken, "qat/cfg_services", "../../x") },
			"0000:6b:00.0: read qat/cfg_services: \"../../x\": expected services joined by \";\", for example sym;asym\n", 4, 0},
		{"virtfn link dangles", func(t qattest.Tree) error { return t.Vanish("0000:6b:00.2") },
			"0000:6b:00.2: open 0000:6b:00.2: no such file or directory\n" +
				"0000:6b:00.2: virtfn1 of PF 0000:6b:00.0: no such QAT VF: expected one, unless VFs are being changed\n", 3, 0},
		{"virtfn is no link", func(t qattest.Tree) error { return t.Break(broken, "virtfn1") },
			"0000:6b:00.0: readlink virtfn1: invalid argument\n", 3, 1},
		{"VF is removed", func(t qattest.Tree) error { return t.Remove("0000:6b:00.2") },
			"", 3, 0},
		{"VF's group link is broken", func(t qattest.Tree) error { return t.Break("0000:6b:00.2", "iommu_group") },
			"0000:6b:00.2: readlink 0000:6b:00.2/iommu_group: invalid argument\n", 4, 0},
		{"VF's group is gone", func(t qattest.Tree) error {
			return os.RemoveAll(filepath.Join(t.Root, "sys/kernel/iommu_groups/41"))
		}, "0000:6b:00.2: IOMMU group 41: list its devices: no such file or directory\n", 4, 0},
	}
	healthy := qattest.PF{Address: other, Family: "4xxx", Services: "dc", State: "up", VFs: 2, VFDriver: "vfio-pci", FirstGroup: 60}
	alone := discover(t, qattest.New(t, qattest.Node{PFs: []qattest.PF{healthy}}).Root)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pf := sapphireRapids()
			pf.VFs = 4
			tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf, healthy}})
			do(t, tt.fault(tree))
			inv := discover(t, tree.Root)

			got := -1
			if pf := inv.PF(broken); pf != nil {
				got = len(pf.VFs)
			}
			if got != tt.vfs || len(inv.Orphans) != tt.orphans {
				t.Errorf("%d VFs of the PF and %d orphans, want %d and %d", got, len(inv.Orphans), tt.vfs, tt.orphans)
			}
			// An orphan that has a PF says so; that is checked elsewhere.
			said := strings.Join(slices.DeleteFunc(strings.SplitAfter(problems(inv), "\n"), func(s string) bool { return strings.Contains(s, "physfn") }), "")
			if said != tt.problem {
				t.Errorf("problems:\n%swant:\n%s", said, tt.problem)
			}
			if diff := cmp.Diff(alone.PF(other), inv.PF(other)); diff != "" {
				t.Errorf("the other PF changed (-alone +beside the broken one):\n%s", diff)
			}
		})
	}
}

func TestAVFWhosePFCannotBeReadIsAnOrphanWithAProblem(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{sapphireRapids()}})
	do(t, tree.Break("0000:6b:00.0", "device"))
	inv := discover(t, tree.Root)
	if len(inv.Orphans) != 16 || inv.Orphans[0].PF != "0000:6b:00.0" {
		t.Fatalf("%d orphans, want 16 that name their PF", len(inv.Orphans))
	}
	const want = "0000:6b:00.1: physfn is 0000:6b:00.0: no such QAT PF that has this VF: expected one, unless VFs are being changed\n"
	if got := problems(inv); !strings.Contains(got, want) {
		t.Errorf("problems %s\nwant among them %s", got, want)
	}
}

func TestABrokenHeartbeatIsAProblem(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{sapphireRapids()}})
	status := filepath.Join(tree.Root, "sys/kernel/debug/qat_4xxx_0000:6b:00.0/heartbeat/status")
	do(t, os.WriteFile(status, []byte("maybe\n"), 0o600))
	inv := discover(t, tree.Root)
	if want := "0000:6b:00.0: read heartbeat/status: \"maybe\": expected 0 or -1\n"; inv.PFs[0].Health != qat.HealthUnknown || problems(inv) != want {
		t.Errorf("health %s, problems %s", inv.PFs[0].Health, problems(inv))
	}
}

// While VFs of one PF come and go, every pass finds the other PF whole.
func TestDiscoverWhileVFsComeAndGo(t *testing.T) {
	restless, calm := sapphireRapids(), qattest.PF{Address: "0000:70:00.0", Family: "4xxx", VFs: 4, VFDriver: "vfio-pci", FirstGroup: 60}
	restless.VFs = 4
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{restless, calm}})
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			for i := range restless.VFs {
				if err := tree.Remove(qattest.VFAddress(restless.Address, qat.FamilyByName("4xxx"), i)); err != nil {
					done <- err
					return
				}
			}
			// The nodes need not be there for this.
			_ = tree.EnableVFs(restless)
		}
	}()
	for range 200 {
		inv := discover(t, tree.Root)
		if pf := inv.PF("0000:70:00.0"); pf == nil || len(pf.VFs) != 4 || pf.VFs[3].Group == nil {
			t.Fatalf("the calm PF is %+v", pf)
		}
		for _, p := range inv.Problems {
			if !strings.HasPrefix(p.Address, "0000:6b:") {
				t.Errorf("problem of a calm device: %v", p)
			}
		}
	}
	close(stop)
	do(t, <-done)
}
