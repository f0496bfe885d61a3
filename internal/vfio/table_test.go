package vfio_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// pf is a PF as it is after provisioning: its VFs are ready.
func pf() qattest.PF {
	return qattest.PF{
		Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: "up", Group: 30,
		VFs: 3, VFDriver: "vfio-pci", FirstGroup: 40,
	}
}

const major = qattest.DefaultGroupMajor

func load(t *testing.T, tree qattest.Tree, o vfio.Options) *vfio.Table {
	t.Helper()
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	return vfio.Load(tree.Root, inv, o)
}

func minor(group int) int64 { return int64(qattest.GroupMinor(group)) }

// reason is why a VF cannot be handed out, "" for one that is ready.
func reason(t *testing.T, table *vfio.Table, a qat.Address) string {
	t.Helper()
	d := table.ByAddress(a)
	switch {
	case d == nil:
		t.Fatalf("%s is not in the table", a)
	case d.Err != nil:
		return d.Err.Error()
	}
	return ""
}

func TestATableFindsVFsByAddressAndByNode(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf()}})
	tree.RequireNodes(t)
	table := load(t, tree, vfio.Options{})

	if want := (vfio.Node{Path: "/dev/vfio/vfio", Major: 10, Minor: 196}); table.Control != want {
		t.Errorf("control node %+v, want %+v", table.Control, want)
	}
	devices := table.Devices()
	if len(devices) != 3 {
		t.Fatalf("%d devices, want 3", len(devices))
	}
	second := devices[1]
	if second.VF.Address != "0000:6b:00.2" || second.Err != nil {
		t.Errorf("second device is %s, %v", second.VF.Address, second.Err)
	}
	if want := (vfio.Node{Path: "/dev/vfio/41", Major: major, Minor: qattest.GroupMinor(41)}); second.Node != want {
		t.Errorf("its node is %+v, want %+v", second.Node, want)
	}
	if table.ByAddress("0000:6b:00.2") != second {
		t.Error("it is not found by its address")
	}
	if got := table.ByNumber(major, minor(41)); len(got) != 1 || got[0] != second {
		t.Errorf("its node stands for %v", got)
	}
	for name, got := range map[string]int{
		"the control node":       len(table.ByNumber(10, 196)),
		"another minor":          len(table.ByNumber(major, minor(50))),
		"another major":          len(table.ByNumber(major+1, minor(41))),
		"a minor beyond 32 bits": len(table.ByNumber(major, minor(41)+1<<32)),
		"a negative number":      len(table.ByNumber(-1, -1)),
	} {
		if got != 0 {
			t.Errorf("%s stands for %d VFs", name, got)
		}
	}
}

func TestANodeStandsForAllVFsOfItsGroup(t *testing.T) {
	shared := pf()
	shared.OneGroup = true
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{shared}})
	tree.RequireNodes(t)
	var got []qat.Address
	for _, d := range load(t, tree, vfio.Options{}).ByNumber(major, minor(40)) {
		if d.Err != nil {
			t.Error(d.Err)
		}
		got = append(got, d.VF.Address)
	}
	if diff := cmp.Diff([]qat.Address{"0000:6b:00.1", "0000:6b:00.2", "0000:6b:00.3"}, got); diff != "" {
		t.Errorf("VFs of the node (-want +got):\n%s", diff)
	}
}

func TestEveryFamilyIsReadyOnVFIO(t *testing.T) {
	for _, f := range qat.Families {
		t.Run(f.Name, func(t *testing.T) {
			one := pf()
			one.Family, one.VFs, one.Services, one.State = f.Name, 1, "", ""
			tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{one}})
			tree.RequireNodes(t)
			if got := reason(t, load(t, tree, vfio.Options{}), qattest.VFAddress(one.Address, &f, 0)); got != "" {
				t.Errorf("not ready: %s", got)
			}
		})
	}
}

func TestAMachineWithoutQATHasAnEmptyTable(t *testing.T) {
	tree := qattest.New(t, qattest.Node{})
	for name, table := range map[string]*vfio.Table{
		"nil table":     nil,
		"nil inventory": vfio.Load(tree.Root, nil, vfio.Options{}),
		"no devices":    load(t, tree, vfio.Options{}),
	} {
		if len(table.Devices()) != 0 || table.ByAddress("0000:6b:00.1") != nil || table.ByNumber(major, minor(40)) != nil {
			t.Errorf("%s: something was found", name)
		}
	}
}

// A tree in a container's file system must not lead to the container's own /dev.
func TestANodeThatIsALinkIsNotFollowed(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf()}})
	tree.RequireNodes(t)
	node := filepath.Join(tree.Root, "dev/vfio/40")
	if err := os.Remove(node); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", node); err != nil {
		t.Fatal(err)
	}
	table := load(t, tree, vfio.Options{})
	const want = "0000:6b:00.1 has no device node /dev/vfio/40: it is no character device: expected the node of IOMMU group 40: is devtmpfs mounted on /dev?"
	if got := reason(t, table, "0000:6b:00.1"); got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
	if got := table.ByNumber(1, 3); got != nil {
		t.Error("/dev/null stands for a VF")
	}
}

func TestADeviceAsJSON(t *testing.T) {
	one := pf()
	one.VFs = 1
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{one}})
	tree.RequireNodes(t)
	ready := load(t, tree, vfio.Options{}).ByAddress("0000:6b:00.1")
	if err := tree.Rebind("0000:6b:00.1", "4xxxvf"); err != nil {
		t.Fatal(err)
	}
	bound := load(t, tree, vfio.Options{}).ByAddress("0000:6b:00.1")

	const vf = `{"address":"0000:6b:00.1","pf":"0000:6b:00.0","index":0,"family":"4xxx","driver":"%","numaNode":0,` +
		`"group":{"id":40,"members":[{"address":"0000:6b:00.1","driver":"%"}]},"services":"sym;asym","health":"healthy"}`
	for _, tt := range []struct {
		device       *vfio.Device
		driver, rest string
	}{
		{ready, "vfio-pci", `,"node":{"path":"/dev/vfio/40","major":511,"minor":140}}`},
		{bound, "4xxxvf", `,"node":{"path":"/dev/vfio/40","major":0,"minor":0},"error":"0000:6b:00.1 is bound to 4xxxvf, expected vfio-pci: run kata-qat provision host"}`},
	} {
		got, err := json.Marshal(tt.device)
		if err != nil {
			t.Fatal(err)
		}
		want := `{"vf":` + strings.ReplaceAll(vf, "%", tt.driver) + tt.rest
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("JSON (-want +got):\n%s", diff)
		}
	}
}

func TestLookUpsDoNotAllocate(t *testing.T) {
	tree := qattest.New(t, qattest.Many(2))
	table := load(t, tree, vfio.Options{})
	if n := testing.AllocsPerRun(100, func() {
		table.ByAddress("0000:00:00.1")
		table.ByNumber(major, minor(1000))
		table.Devices()
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestAThousandVFs(t *testing.T) {
	tree := qattest.New(t, qattest.Many(64))
	tree.RequireNodes(t)
	table := load(t, tree, vfio.Options{})
	for _, d := range table.Devices() {
		found := table.ByNumber(int64(d.Node.Major), int64(d.Node.Minor))
		if d.Err != nil || len(found) != 1 || found[0] != d {
			t.Fatalf("%s: %v; its node stands for %v", d.VF.Address, d.Err, found)
		}
	}
	if n := len(table.Devices()); n != 1024 {
		t.Errorf("%d devices, want 1024", n)
	}
}

func BenchmarkLoad1024VFs(b *testing.B) {
	tree := qattest.New(b, qattest.Many(64))
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		vfio.Load(tree.Root, inv, vfio.Options{})
	}
}
