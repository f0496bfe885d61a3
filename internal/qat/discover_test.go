package qat_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// sapphireRapids is a PF as it is after provisioning.
func sapphireRapids() qattest.PF {
	return qattest.PF{
		Address: "0000:6b:00.0", Family: "4xxx", NUMA: 1, Services: "sym;asym", State: "up", Group: 30,
		VFs: 16, VFDriver: "vfio-pci", FirstGroup: 40,
	}
}

var igb = qattest.Device{Address: "0000:3b:00.0", Vendor: qat.Vendor, Device: 0x1521, Driver: "igb", Group: 40}

func discover(t *testing.T, root string) *qat.Inventory {
	t.Helper()
	inv, err := qat.Discover(root)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addresses(vfs []qat.VF) (a []qat.Address) {
	for _, vf := range vfs {
		a = append(a, vf.Address)
	}
	return a
}

// problems are the problems of an inventory as text.
func problems(inv *qat.Inventory) string {
	var b strings.Builder
	for _, p := range inv.Problems {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

func TestDiscoverFindsAPFWithItsVFs(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{sapphireRapids()}, Others: []qattest.Device{
		{Address: "0000:00:1f.2", Vendor: qat.Vendor, Device: 0xa1a1, Driver: "pcieport"},
		{Address: "0000:81:00.0", Vendor: 0x10de, Device: 0x4940, Driver: "nvidia"},
	}})
	inv := discover(t, tree.Root)

	if len(inv.Problems) != 0 || len(inv.Orphans) != 0 || len(inv.PFs) != 1 {
		t.Fatalf("%d PFs, %d orphans, problems %q: want one PF alone", len(inv.PFs), len(inv.Orphans), problems(inv))
	}
	pf := inv.PFs[0]
	first := pf.VFs[0]
	last := pf.VFs[15]
	pf.VFs = nil
	family := qat.FamilyByName("4xxx")
	want := qat.PF{
		Address: "0000:6b:00.0", Family: family, Driver: "4xxx", NUMANode: 1, TotalVFs: 16, NumVFs: 16,
		Services: "sym;asym", State: qat.StateUp, Health: qat.HealthOK,
	}
	if diff := cmp.Diff(want, pf); diff != "" {
		t.Errorf("PF (-want +got):\n%s", diff)
	}
	wantVF := qat.VF{
		Address: "0000:6b:00.1", PF: "0000:6b:00.0", Index: 0, Family: family, Driver: "vfio-pci", NUMANode: 1,
		Group:    &qat.Group{ID: 40, Members: []qat.GroupMember{{Address: "0000:6b:00.1", Driver: "vfio-pci"}}},
		Services: "sym;asym", Health: qat.HealthOK,
	}
	if diff := cmp.Diff(wantVF, first); diff != "" {
		t.Errorf("first VF (-want +got):\n%s", diff)
	}
	if last.Address != "0000:6b:02.0" || last.Index != 15 || last.Group.ID != 55 {
		t.Errorf("last VF is number %d at %s in group %d, want 15 at 0000:6b:02.0 in 55", last.Index, last.Address, last.Group.ID)
	}
	if inv.PF("0000:6b:00.0") != &inv.PFs[0] || inv.VF("0000:6b:02.0") != &inv.PFs[0].VFs[15] {
		t.Error("PF and VF are not found by their addresses")
	}
	if inv.PF("0000:6b:00.1") != nil || inv.VF("0000:6b:00.0") != nil {
		t.Error("a VF was found among the PFs, or a PF among the VFs")
	}
}

func TestDiscoverKnowsEveryFamily(t *testing.T) {
	for _, f := range qat.Families {
		t.Run(f.Name, func(t *testing.T) {
			const vfs = 12 // enough for virtfn10 to come after virtfn2
			tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{{Address: "0000:3d:00.0", Family: f.Name, VFs: vfs, VFDriver: f.VFDriver, FirstGroup: 1}}})
			inv := discover(t, tree.Root)
			if problems(inv) != "" || len(inv.PFs) != 1 {
				t.Fatalf("%d PFs, problems %q", len(inv.PFs), problems(inv))
			}
			pf := inv.PFs[0]
			if pf.Family.Name != f.Name || pf.Driver != f.PFDriver || pf.Health != qat.HealthOK || len(pf.VFs) != vfs || pf.TotalVFs != f.MaxVFs {
				t.Errorf("found %s with driver %s, %s and %d VFs", pf.Family.Name, pf.Driver, pf.Health, len(pf.VFs))
			}
			for i, vf := range pf.VFs {
				if vf.Index != i || vf.Family != pf.Family || vf.Driver != f.VFDriver {
					t.Errorf("VF %d: index %d, family %s, driver %s", i, vf.Index, vf.Family.Name, vf.Driver)
				}
			}
		})
	}
}

func TestVFsBeyondABusAreFound(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{{Address: "0000:3d:1f.0", Family: "c62x", VFs: 16}}})
	vfs := discover(t, tree.Root).PFs[0].VFs
	if first := vfs[0].Address; first != "0000:3e:00.0" {
		t.Errorf("first VF is at %s, want 0000:3e:00.0", first)
	}
}

func TestPFsAreInTheOrderOfTheirAddresses(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{
		{Address: "10000:00:00.0", Family: "4xxx"}, {Address: "0000:f3:00.0", Family: "4xxx"}, {Address: "0000:6b:00.0", Family: "c62x"},
	}})
	var got []qat.Address
	for _, pf := range discover(t, tree.Root).PFs {
		got = append(got, pf.Address)
	}
	if want := []qat.Address{"0000:6b:00.0", "0000:f3:00.0", "10000:00:00.0"}; !slices.Equal(got, want) {
		t.Errorf("PFs %v, want %v", got, want)
	}
}

func TestAVFWithoutPFIsAnOrphan(t *testing.T) {
	tree := qattest.New(t, qattest.Node{Orphans: []qattest.VF{
		{Address: "0000:02:00.0", Family: "4xxx", Driver: "vfio-pci", NUMA: -1, Group: 7},
		{Address: "0000:01:00.0", Family: "c62x", Driver: "c6xxvf", NUMA: -1},
	}})
	inv := discover(t, tree.Root)
	if got := addresses(inv.Orphans); !slices.Equal(got, []qat.Address{"0000:01:00.0", "0000:02:00.0"}) || problems(inv) != "" {
		t.Fatalf("orphans %v, problems %q", got, problems(inv))
	}
	vf := inv.Orphans[1]
	if vf.PF != "" || vf.NUMANode != -1 || vf.Group.ID != 7 || vf.Health != qat.HealthUnknown || vf.Resource() != "qat.intel.com/generic" {
		t.Errorf("orphan is %+v", vf)
	}
	if got := slices.Collect(inv.VFs()); len(got) != 2 || got[0] != &inv.Orphans[0] {
		t.Error("the orphans are not among the VFs")
	}
}

func TestVFsOfOneGroupShareIt(t *testing.T) {
	pf := sapphireRapids()
	pf.VFs, pf.OneGroup, pf.Group = 3, true, 40
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf}, Others: []qattest.Device{igb, {Address: "fsl-mc.0", Driver: "fsl_mc_bus", Group: 40}}})
	vfs := discover(t, tree.Root).PFs[0].VFs
	if vfs[0].Group != vfs[1].Group || vfs[1].Group != vfs[2].Group {
		t.Error("VFs of one group have groups of their own")
	}
	want := []qat.GroupMember{
		{Address: "0000:3b:00.0", Driver: "igb"},
		{Address: "0000:6b:00.0", Driver: "4xxx"},
		{Address: "0000:6b:00.1", Driver: "vfio-pci"},
		{Address: "0000:6b:00.2", Driver: "vfio-pci"},
		{Address: "0000:6b:00.3", Driver: "vfio-pci"},
		{Address: "fsl-mc.0", Driver: "fsl_mc_bus"},
	}
	if diff := cmp.Diff(want, vfs[0].Group.Members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

func TestNoIOMMUGroupsAreRecognised(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{sapphireRapids()}, NoIOMMU: true})
	group := discover(t, tree.Root).PFs[0].VFs[0].Group
	if group == nil || !group.NoIOMMU || group.Node() != "/dev/vfio/noiommu-40" {
		t.Errorf("group is %+v, want no-IOMMU group 40", group)
	}
}

func TestHealthIsWhatTheHeartbeatSays(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{
		sapphireRapids(), {Address: "0000:70:00.0", Family: "4xxx"}, {Address: "0000:75:00.0", Family: "4xxx", NoDebugfs: true},
	}})
	do(t, tree.Kill("0000:6b:00.0"))
	inv := discover(t, tree.Root)
	for i, want := range []qat.Health{qat.HealthDead, qat.HealthOK, qat.HealthUnknown} {
		if got := inv.PFs[i].Health; got != want {
			t.Errorf("%s is %s, want %s", inv.PFs[i].Address, got, want)
		}
	}
	if got := inv.PFs[0].VFs[0].Health; got != qat.HealthDead {
		t.Errorf("a VF of the dead PF is %s", got)
	}
	do(t, tree.Revive("0000:6b:00.0"))
	if got := discover(t, tree.Root).PFs[0].Health; got != qat.HealthOK {
		t.Errorf("the revived PF is %s", got)
	}
}

func TestAMachineWithoutDebugfsAndIOMMUIsReadAllTheSame(t *testing.T) {
	pf := sapphireRapids()
	pf.FirstGroup, pf.Group = 0, 0
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf}})
	do(t, os.RemoveAll(filepath.Join(tree.Root, "sys/kernel")))
	inv := discover(t, tree.Root)
	if len(inv.PFs) != 1 || len(inv.PFs[0].VFs) != 16 || inv.PFs[0].VFs[0].Group != nil || problems(inv) != "" {
		t.Errorf("inventory %+v", inv)
	}
}

func TestWithoutAPCIBusThereIsAnError(t *testing.T) {
	root := t.TempDir()
	if _, err := qat.Discover(root); err == nil || !strings.Contains(err.Error(), "/sys/bus/pci/devices below "+root) {
		t.Errorf("error %v, want one that names the directory", err)
	}
}

func TestInventoryAsJSON(t *testing.T) {
	pf := sapphireRapids()
	pf.VFs = 1
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf}})
	do(t, tree.Set("0000:6b:00.0", "numa_node", "x"))
	got, err := json.MarshalIndent(discover(t, tree.Root), "", "  ")
	do(t, err)
	const want = `{
  "pfs": [
    {
      "address": "0000:6b:00.0",
      "family": "4xxx",
      "driver": "4xxx",
      "numaNode": -1,
      "totalVFs": 16,
      "numVFs": 1,
      "services": "sym;asym",
      "state": "up",
      "health": "healthy",
      "vfs": [
        {
          "address": "0000:6b:00.1",
          "pf": "0000:6b:00.0",
          "index": 0,
          "family": "4xxx",
          "driver": "vfio-pci",
          "numaNode": -1,
          "group": {
            "id": 40,
            "members": [
              {
                "address": "0000:6b:00.1",
                "driver": "vfio-pci"
              }
            ]
          },
          "services": "sym;asym",
          "health": "healthy"
        }
      ]
    }
  ],
  "problems": [
    {
      "address": "0000:6b:00.0",
      "error": "read numa_node: strconv.Atoi: parsing \"x\": invalid syntax"
    }
  ]
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestAThousandVFs(t *testing.T) {
	inv := discover(t, qattest.New(t, qattest.Many(64)).Root)
	seen := make(map[qat.Address]bool)
	for vf := range inv.VFs() {
		seen[vf.Address] = vf.Group != nil && len(vf.Group.Members) == 1 && vf.PF != ""
	}
	if len(inv.PFs) != 64 || len(seen) != 1024 || problems(inv) != "" {
		t.Fatalf("%d PFs, %d VFs, problems %q", len(inv.PFs), len(seen), problems(inv))
	}
	for a, whole := range seen {
		if !whole {
			t.Errorf("%s lacks its group or its PF", a)
		}
	}
}

func BenchmarkDiscover1024VFs(b *testing.B) {
	tree := qattest.New(b, qattest.Many(64))
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		inv, err := qat.Discover(tree.Root)
		if err != nil || len(inv.PFs) != 64 {
			b.Fatal(inv, err)
		}
	}
	// What it takes of a machine, whatever else that does.
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
