package inventory

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// FindHolders asks containerd which containers have the node of a VF in their
// spec. If containerd cannot be asked the holders are nil. If only some specs
// cannot be read, the error says which, and the rest is there. Where there is no
// VF nobody is asked.
func FindHolders(ctx context.Context, n containers.Node, table *vfio.Table) (Holders, error) {
	if len(table.Devices()) == 0 {
		return Holders{}, nil
	}
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	find := newFinder(table)
	bundles := n.Bundles()
	var errs error
	for c, err := range client.All(ctx) {
		if err != nil {
			return nil, err
		}
		// What cold-plug adds to a sandbox is in its bundle only.
		if c.Type == containers.Sandbox {
			if _, err := bundles.Spec(&c); err != nil {
				errs = errors.Join(errs, err)
				continue
			}
		}
		if err := find.add(&c, bundles); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return find.holders(), errs
}

// finder collects the holders.
type finder struct {
	table  *vfio.Table
	byPath map[string][]*vfio.Device // of the VFs whose node is not there now
	held   map[qat.Address][]held
}

type held struct {
	Holder
	typ     containers.Type
	sandbox string
}

func newFinder(table *vfio.Table) *finder {
	f := &finder{table: table, byPath: make(map[string][]*vfio.Device), held: make(map[qat.Address][]held)}
	for _, d := range table.Devices() {
		if d.Node.Major == 0 && d.VF.Group != nil {
			f.byPath[d.VF.Group.Node()] = append(f.byPath[d.VF.Group.Node()], d)
		}
	}
	return f
}

// add notes what a container holds.
func (f *finder) add(c *containers.Container, bundles containers.Bundles) error {
	facts, err := c.Facts()
	if err != nil {
		return err
	}
	devices := make(map[*vfio.Device]bool)
	for _, node := range facts.Linux.Devices {
		if node.Type != "c" {
			continue
		}
		found := f.table.ByNumber(node.Major, node.Minor)
		if len(found) == 0 {
			found = f.byPath[node.Path]
		}
		for _, d := range found {
			devices[d] = true
		}
	}
	if len(devices) == 0 {
		return nil
	}
	if err := c.Identify(); err != nil {
		return err
	}
	running, known := bundles.Running(c.ID)
	for d := range devices {
		f.held[d.VF.Address] = append(f.held[d.VF.Address], held{
			Holder: Holder{ID: c.ID, Namespace: c.Namespace, Pod: c.Pod, Container: c.Name, Exited: known && !running},
			typ:    c.Type, sandbox: cmp.Or(c.SandboxID, c.ID),
		})
	}
	return nil
}

// holders returns what was found, without the sandboxes that only hold what a
// container of theirs holds.
func (f *finder) holders() Holders {
	out := make(Holders, len(f.held))
	for address, all := range f.held {
		inContainer := make(map[string]bool)
		for _, h := range all {
			if h.typ != containers.Sandbox {
				inContainer[h.sandbox] = true
			}
		}
		for _, h := range all {
			if h.typ != containers.Sandbox || !inContainer[h.sandbox] {
				out[address] = append(out[address], h.Holder)
			}
		}
		slices.SortFunc(out[address], func(a, b Holder) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container), cmp.Compare(a.ID, b.ID))
		})
	}
	return out
}
