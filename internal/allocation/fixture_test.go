package allocation

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// crypto and compression are PFs of a kind that a test can vary.
func crypto(address qat.Address, vfs int) qattest.PF {
	group := 0
	fmt.Sscanf(string(address), "0000:%x:00.0", &group)
	return qattest.PF{
		Address: address, Family: "4xxx", Services: "sym;asym", State: qat.StateUp,
		VFs: vfs, VFDriver: "vfio-pci", Group: group, FirstGroup: 1000 * group,
	}
}

func compression(address qat.Address, vfs int) qattest.PF {
	pf := crypto(address, vfs)
	pf.Services = "dc"
	return pf
}

func onNode(numa int, pf qattest.PF) qattest.PF { pf.NUMA = numa; return pf }

func inOneGroup(pf qattest.PF) qattest.PF { pf.OneGroup = true; return pf }

func unbound(pf qattest.PF) qattest.PF { pf.VFDriver = ""; return pf }

func machine(tb testing.TB, pfs ...qattest.PF) *vfio.Table {
	tb.Helper()
	return load(tb, qattest.Node{PFs: pfs})
}

func load(tb testing.TB, n qattest.Node) *vfio.Table {
	tb.Helper()
	tree := qattest.New(tb, n)
	tree.RequireNodes(tb)
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		tb.Fatal(err)
	}
	return vfio.Load(tree.Root, inv, vfio.Options{})
}

func resolver(tb testing.TB, o Options, table *vfio.Table) *Resolver {
	tb.Helper()
	r, err := NewResolver(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	r.SetTable(table)
	return r
}

// pod is default/<name>, whose sandbox and UID are named after it.
func pod(name string) Pod {
	return Pod{ID: "sandbox-" + name, UID: "uid-" + name, Namespace: "default", Name: name}
}

// asking is a pod with request annotations: "app: cy=2".
func asking(name string, requests ...string) Pod {
	p := pod(name)
	p.Annotations = make(map[string]string)
	for _, q := range requests {
		container, value, _ := strings.Cut(q, ": ")
		p.Annotations[RequestAnnotation+container] = value
	}
	return p
}

// container has no devices; its id is that of its pod and name.
func container(p Pod, name string) Container {
	return Container{ID: p.ID + "/" + name, Name: name}
}

// with is the container with the nodes of VFs, and with the control node that
// comes with them.
func (c Container) with(table *vfio.Table, addresses ...qat.Address) Container {
	c.Devices = append(c.Devices, SpecDevice{vfio.ControlNode, qattest.ControlMajor, qattest.ControlMinor})
	for _, a := range addresses {
		n := table.ByAddress(a).Node
		c.Devices = append(c.Devices, SpecDevice{n.Path, int64(n.Major), int64(n.Minor)})
	}
	return c
}

func assign(tb testing.TB, r *Resolver, p Pod, c Container) Assignment {
	tb.Helper()
	a, err := r.Assign(context.Background(), p, c)
	if err != nil {
		tb.Fatalf("Assign %s to %s: %v", c.Name, p, err)
	}
	return a
}

// refused expects an error of one line that has all these words.
func refused(tb testing.TB, err error, words ...string) {
	tb.Helper()
	if err == nil {
		tb.Fatalf("no error, expected one with %q", words)
	}
	if strings.Contains(err.Error(), "\n") {
		tb.Errorf("error of several lines: %q", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			tb.Errorf("error %q\ndoes not say %q", err, w)
		}
	}
}

// vfs renders what an assignment holds: "cy=0000:6b:00.1#0 cy=0000:6b:00.2#1".
func vfs(a Assignment) string {
	var parts []string
	for _, v := range a.VFs {
		parts = append(parts, fmt.Sprintf("%s=%s#%d", strings.TrimPrefix(v.Resource, qat.ResourceDomain+"/"), v.Device.VF.Address, v.Index))
	}
	return strings.Join(parts, " ")
}

func expect(tb testing.TB, a Assignment, source Source, want string) {
	tb.Helper()
	if got := vfs(a); got != want || a.Source != source {
		tb.Errorf("%s, container %s: holds %q by %q\nexpected %q by %q", a.Pod, a.Container, got, a.Source, want, source)
	}
}
