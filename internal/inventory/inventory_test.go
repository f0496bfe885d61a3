package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/services/containers/v1"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// machine has one PF in use, one whose VFs nobody has bound, one of an older
// family that is not set up, and a VF without a PF.
var machine = qattest.Node{
	PFs: []qattest.PF{
		{Address: "0000:6b:00.0", Family: "4xxx", NUMA: 0, Services: "sym;asym", State: "up", Group: 20, VFs: 4, VFDriver: "vfio-pci", FirstGroup: 100},
		{Address: "0000:e8:00.0", Family: "4xxx", NUMA: 1, Services: "dc", State: "up", Group: 21, VFs: 3, FirstGroup: 120},
		{Address: "0000:3d:00.0", Family: "c62x", NUMA: -1, Group: 22},
	},
	Orphans: []qattest.VF{{Address: "0000:00:05.0", Family: "4xxx", Driver: "vfio-pci", Group: 7, NUMA: -1}},
}

func load(t *testing.T, root string) (*qat.Inventory, *vfio.Table) {
	t.Helper()
	inv, err := qat.Discover(root)
	if err != nil {
		t.Fatal(err)
	}
	return inv, vfio.Load(root, inv, vfio.Options{})
}

// tree is a root directory with the machine.
func tree(t *testing.T, n qattest.Node) qattest.Tree {
	t.Helper()
	root := containerstest.Root(t)
	if err := n.Write(root); err != nil {
		t.Skipf("%v: run as root", err)
	}
	return qattest.Tree{Root: root, GroupMajor: n.GroupMajor}
}

// node is a spec's entry for the node of an IOMMU group.
func node(group int) string {
	return fmt.Sprintf(`{"path":"/dev/vfio/%d","type":"c","major":%d,"minor":%d}`, group, qattest.DefaultGroupMajor, qattest.GroupMinor(group))
}

func spec(nodes ...string) string { return `{"linux":{"devices":[` + strings.Join(nodes, ",") + `]}}` }

func container(id, sandbox, pod, name string, nodes ...string) *api.Container {
	return containerstest.Container(containerstest.ID(id), containerstest.ID(sandbox), "default", pod, name, spec(nodes...))
}

func sandbox(id, pod string, nodes ...string) *api.Container {
	return containerstest.Sandbox(containerstest.ID(id), "default", pod, spec(nodes...))
}

const control = `{"path":"/dev/vfio/vfio","type":"c","major":10,"minor":196}`

func holders(t *testing.T, root string, table *vfio.Table, records ...*api.Container) (string, error) {
	t.Helper()
	s := containerstest.Serve(t, root, records...)
	found, err := FindHolders(t.Context(), s.Node(), table)
	var all []string
	for _, d := range table.Devices() {
		for _, h := range found[d.VF.Address] {
			all = append(all, fmt.Sprintf("%s=%s", d.VF.Address, h))
		}
	}
	return strings.Join(all, "; "), err
}

func TestHolders(t *testing.T) {
	for _, c := range []struct {
		name    string
		records []*api.Container
		want    string
	}{
		{"nobody", []*api.Container{container("a1", "5a", "p", "c", control)}, ""},
		{"by device number", []*api.Container{container("a1", "5a", "p", "c", control, node(101))}, "0000:6b:00.2=default/p/c"},
		{"whatever the path is", []*api.Container{container("a1", "5a", "p", "c", strings.Replace(node(101), "/dev/vfio/101", "/dev/q", 1))}, "0000:6b:00.2=default/p/c"},
		{"by path, of a VF whose node is gone", []*api.Container{container("a1", "5a", "p", "c", node(120))}, "0000:e8:00.1=default/p/c"},
		{"not by the path of another device", []*api.Container{container("a1", "5a", "p", "c", strings.Replace(node(999), "/dev/vfio/999", "/dev/vfio/101", 1))}, ""},
		{"not by a block device", []*api.Container{container("a1", "5a", "p", "c", strings.Replace(node(101), `"c"`, `"b"`, 1))}, ""},
		{"two containers", []*api.Container{container("a2", "5a", "p", "d", node(101)), container("a1", "5a", "p", "c", node(101))}, "0000:6b:00.2=default/p/c; 0000:6b:00.2=default/p/d"},
		{"a sandbox", []*api.Container{sandbox("5a", "p", node(101))}, "0000:6b:00.2=default/p (sandbox)"},
		{"a sandbox for its container", []*api.Container{sandbox("5a", "p", node(101), node(102)), container("a1", "5a", "p", "c", node(101))}, "0000:6b:00.2=default/p/c; 0000:6b:00.3=default/p (sandbox)"},
		{"a sandbox for another pod's container", []*api.Container{sandbox("5a", "p", node(101)), container("a1", "5b", "q", "c", node(101))}, "0000:6b:00.2=default/p (sandbox); 0000:6b:00.2=default/q/c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := tree(t, machine)
			_, table := load(t, tr.Root)
			if got, err := holders(t, tr.Root, table, c.records...); got != c.want || err != nil {
				t.Errorf("%q, %v, expected %q", got, err, c.want)
			}
		})
	}
}

func TestColdPluggedVFsAreInTheBundleOfTheSandbox(t *testing.T) {
	tr := tree(t, machine)
	_, table := load(t, tr.Root)
	containerstest.WriteBundle(t, tr.Root, containerstest.ID("5a"), "config.json", spec(node(102)))
	got, err := holders(t, tr.Root, table, sandbox("5a", "p"), container("a1", "5b", "q", "c", node(101)))
	if want := "0000:6b:00.2=default/q/c (exited); 0000:6b:00.3=default/p (sandbox)"; got != want || err != nil {
		t.Errorf("%q, %v, expected %q", got, err, want)
	}
}

func TestBadSpecHidesNoOtherHolder(t *testing.T) {
	tr := tree(t, machine)
	_, table := load(t, tr.Root)
	bad := container("a2", "5a", "p", "bad")
	bad.Spec.Value = []byte("{")
	got, err := holders(t, tr.Root, table, bad, container("a1", "5a", "p", "c", node(101)))
	if got != "0000:6b:00.2=default/p/c" || err == nil || !strings.Contains(err.Error(), "default/p/bad") {
		t.Errorf("%q, %v: expected the good one, and an error that names the bad one", got, err)
	}
}

func TestWithoutContainerdHoldersAreUnknown(t *testing.T) {
	tr := tree(t, machine)
	inv, table := load(t, tr.Root)
	found, err := FindHolders(t.Context(), containerstest.NodeAt(tr.Root), table)
	var e *containers.Error
	if found != nil || !errors.As(err, &e) {
		t.Fatalf("%v, %v, expected nil and a containers.Error", found, err)
	}
	var b bytes.Buffer
	if err := Write(&b, output.Table, New(inv, table, found), output.Colours{}); err != nil || !strings.Contains(b.String(), "yes     ?") {
		t.Errorf("%v, expected holders to be ?:\n%s", err, b.String())
	}
	b.Reset()
	if err := Write(&b, output.JSON, New(inv, table, found), output.Colours{}); err != nil || !strings.Contains(b.String(), `"holders": null`) {
		t.Errorf("%v, expected holders to be null:\n%s", err, b.String())
	}
}

func TestWithoutDevicesNobodyIsAsked(t *testing.T) {
	tr := tree(t, qattest.Node{})
	inv, table := load(t, tr.Root)
	found, err := FindHolders(t.Context(), containerstest.NodeAt(tr.Root), table)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Write(&b, output.Table, New(inv, table, found), output.Colours{}); err != nil || b.String() != "no QAT device on this machine\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func report(t *testing.T) *Report {
	t.Helper()
	tr := tree(t, machine)
	if err := tr.Break("0000:e8:00.0", "numa_node"); err != nil {
		t.Fatal(err)
	}
	inv, table := load(t, tr.Root)
	s := containerstest.Serve(t, tr.Root, container("a1", "5a", "qat-app", "app", control, node(100), node(101)), container("a2", "5b", "old", "job", node(102)))
	containerstest.WriteBundle(t, tr.Root, containerstest.ID("a1"), "config.json", "{}")
	found, err := FindHolders(t.Context(), s.Node(), table)
	if err != nil {
		t.Fatal(err)
	}
	return New(inv, table, found)
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, output.Table, report(t), output.Colours{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "table.golden")
	if *updateGolden {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("\n%s\nexpected:\n%s", b.String(), want)
	}
}

func TestData(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, output.JSON, report(t), output.Colours{}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		PFs []struct {
			Address, Family, Services, State, Health string
			TotalVFs                                 int
			VFs                                      []struct {
				Address, Family, Resource, Problem string
				Ready                              bool
				Node                               struct{ Path string }
				Group                              struct{ ID int }
				Holders                            []Holder
			}
		}
		Orphans []struct{ Address string }
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, pf := range got.PFs {
		if pf.Address != "0000:6b:00.0" {
			continue
		}
		vf := pf.VFs[0]
		if pf.Family != "4xxx" || pf.Services != "sym;asym" || pf.TotalVFs != 16 || vf.Address != "0000:6b:00.1" || vf.Family != "4xxx" || vf.Resource != "qat.intel.com/cy" ||
			!vf.Ready || vf.Node.Path != "/dev/vfio/100" || vf.Group.ID != 100 || len(vf.Holders) != 1 || vf.Holders[0].Container != "app" || vf.Holders[0].Exited {
			t.Errorf("%+v", pf)
		}
		if free := pf.VFs[3]; free.Holders == nil || len(free.Holders) != 0 {
			t.Errorf("%+v: expected an empty list of holders", free)
		}
	}
	if len(got.PFs) != 3 || len(got.Orphans) != 1 {
		t.Errorf("%d PFs and %d orphans, expected 3 and 1", len(got.PFs), len(got.Orphans))
	}
}

func TestOnlyReady(t *testing.T) {
	r := report(t)
	r.OnlyReady()
	n := len(r.Orphans)
	for _, pf := range r.PFs {
		n += len(pf.VFs)
		for _, vf := range pf.VFs {
			if !vf.Ready {
				t.Errorf("%s is not ready", vf.Address)
			}
		}
	}
	if n != 5 || len(r.PFs) != 3 {
		t.Errorf("%d VFs of %d PFs, expected 5 of 3", n, len(r.PFs))
	}
}

func BenchmarkHoldersAmongThousandContainers(b *testing.B) {
	root := containerstest.Root(b)
	if err := qattest.Many(4).Write(root); err != nil {
		b.Skip(err)
	}
	inv, err := qat.Discover(root)
	if err != nil {
		b.Fatal(err)
	}
	table := vfio.Load(root, inv, vfio.Options{})
	padding := `,"seccomp":{"names":["` + strings.Repeat(`a_system_call","`, 1500) + `last"]}}}`
	var records []*api.Container
	for i := range 1000 {
		records = append(records, containerstest.Container(containerstest.ID(fmt.Sprintf("c%04d", i)), containerstest.ID("5a"), "default", "p", "c",
			strings.TrimSuffix(spec(control, node(1000+i%64)), "}}")+padding))
	}
	s := containerstest.Serve(b, root, records...)
	for b.Loop() {
		if found, err := FindHolders(b.Context(), s.Node(), table); err != nil || len(found) != 64 {
			b.Fatal(len(found), err)
		}
	}
}
