package vfio

import (
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// managed are the drivers other than vfio's own whose devices may stay in a
// group that vfio hands out: those that do no DMA for the kernel and say so with
// driver_managed_dma (Linux 5.19, drivers/pci/pci-stub.c and
// drivers/pci/pcie/portdrv.c; iommu_group_claim_dma_owner refuses a group in
// which any other driver is bound).
var managed = map[string]bool{"pci-stub": true, "pcieport": true}

// isVFIO tells whether a driver gives its devices to vfio: vfio-pci, or one of
// the variant drivers that build on it, which are all named so: qat_vfio_pci
// (Linux 6.10), mlx5_vfio_pci and others (Linux, drivers/vfio/pci).
func isVFIO(driver string) bool {
	return driver == "vfio-pci" || strings.HasSuffix(driver, "_vfio_pci")
}

// Bound tells whether a vfio driver has the VF.
func Bound(vf *qat.VF) bool { return isVFIO(vf.Driver) }

const bindHint = "run kata-qat provision host"

// loader makes the devices of one inventory.
type loader struct {
	Options
	root       string
	inv        *qat.Inventory
	vfs        map[string]bool // addresses of all QAT VFs
	unreadable map[string]error
	nodes      map[*qat.Group]groupNode
}

// groupNode is the node of a group, or why there is none.
type groupNode struct {
	Node
	err error
}

func newLoader(root string, inv *qat.Inventory, options Options) *loader {
	l := &loader{
		Options:    options,
		root:       root,
		inv:        inv,
		vfs:        make(map[string]bool),
		unreadable: make(map[string]error),
		nodes:      make(map[*qat.Group]groupNode),
	}
	for vf := range inv.VFs() {
		l.vfs[string(vf.Address)] = true
	}
	for _, p := range inv.Problems {
		l.unreadable[p.Address] = p.Err
	}
	return l
}

func (l *loader) device(vf *qat.VF) *Device {
	d := &Device{VF: vf}
	var nodeErr error
	if vf.Group != nil {
		d.Node, nodeErr = l.node(vf.Group)
	}
	for _, check := range []func(*qat.VF) error{l.checkRead, l.checkPF, checkGroup, checkDriver, l.checkMembers, l.checkIOMMU} {
		if d.Err = check(vf); d.Err != nil {
			return d
		}
	}
	if nodeErr != nil {
		d.Err = fmt.Errorf("%s has no device node %s: %w: expected the node of IOMMU group %d: is devtmpfs mounted on /dev?", vf.Address, d.Node.Path, nodeErr, vf.Group.ID)
	}
	return d
}

// node reads the node of a group once for all VFs of the group.
func (l *loader) node(g *qat.Group) (Node, error) {
	n, ok := l.nodes[g]
	if !ok {
		n.Node, n.err = stat(l.root, g.Node())
		l.nodes[g] = n
	}
	return n.Node, n.err
}

// checkRead refuses a VF of which something could not be read: it may not be
// what it seems.
func (l *loader) checkRead(vf *qat.VF) error {
	if err := l.unreadable[string(vf.Address)]; err != nil {
		return fmt.Errorf("%s cannot be read properly in sysfs: %w", vf.Address, err)
	}
	return nil
}

func (l *loader) checkPF(vf *qat.VF) error {
	if vf.Health == qat.HealthDead {
		return fmt.Errorf("%s: its PF %s does not answer the heartbeat: see dmesg, then write down and up to /sys/bus/pci/devices/%s/qat/state, or reset it", vf.Address, vf.PF, vf.PF)
	}
	if pf := l.inv.PF(vf.PF); pf != nil && pf.State == qat.StateDown {
		return fmt.Errorf("%s: its PF %s is down, expected up: write up to /sys/bus/pci/devices/%s/qat/state", vf.Address, vf.PF, vf.PF)
	}
	return nil
}

func checkGroup(vf *qat.VF) error {
	if vf.Group == nil {
		return fmt.Errorf("%s is in no IOMMU group: is the IOMMU on? (firmware: VT-d or AMD-Vi; kernel command line: intel_iommu=on): %s", vf.Address, bindHint)
	}
	return nil
}

func checkDriver(vf *qat.VF) error {
	switch {
	case isVFIO(vf.Driver):
		return nil
	case vf.Driver == "":
		return fmt.Errorf("%s is bound to no driver, expected vfio-pci: %s", vf.Address, bindHint)
	}
	return fmt.Errorf("%s is bound to %s, expected vfio-pci: %s", vf.Address, vf.Driver, bindHint)
}

// checkMembers refuses a group that cannot be handed out, or not without a
// device that nobody asked for. The kernel lets every member be bound to a vfio
// driver, to nothing, or to a driver that does no DMA; Kata then passes all
// members but bridges to the VM (kata-containers, GetAllVFIODevicesFromIOMMUGroup),
// so that one that vfio has, and that is no QAT VF, would go with them.
func (l *loader) checkMembers(vf *qat.VF) error {
	for _, m := range vf.Group.Members {
		switch {
		case l.vfs[m.Address] && isVFIO(m.Driver), !l.vfs[m.Address] && (m.Driver == "" || managed[m.Driver]):
			continue
		case l.vfs[m.Address]:
			return fmt.Errorf("%s: group %d also holds the VF %s, which is bound to %s, expected vfio-pci: %s", vf.Address, vf.Group.ID, m.Address, orNothing(m.Driver), bindHint)
		case isVFIO(m.Driver):
			return fmt.Errorf("%s: group %d also holds %s (%s), which is no QAT VF and would be handed out with it: move it or exclude this PF", vf.Address, vf.Group.ID, m.Address, m.Driver)
		}
		return fmt.Errorf("%s: group %d also holds %s (%s): move it or exclude this PF", vf.Address, vf.Group.ID, m.Address, m.Driver)
	}
	return nil
}

func orNothing(driver string) string {
	if driver == "" {
		return "no driver"
	}
	return driver
}

func (l *loader) checkIOMMU(vf *qat.VF) error {
	if vf.Group.NoIOMMU && !l.AllowNoIOMMU {
		return fmt.Errorf("%s is in a group of vfio's no-IOMMU mode, which protects the host from nobody who holds it: expected an IOMMU: %s", vf.Address, bindHint)
	}
	return nil
}
