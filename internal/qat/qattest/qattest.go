// Package qattest builds machines with QAT devices out of plain files: what
// sysfs, debugfs and /dev/vfio of such a machine look like, below a directory of
// the caller's. Tests, benchmarks and demonstrations need no hardware then; it
// knows the shape of these trees but not what kata-qat makes of them.
package qattest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// Node describes a machine.
type Node struct {
	PFs     []PF
	Orphans []VF     // VFs whose PF is not there, as in a guest
	Others  []Device // devices that are not QAT
	// NoIOMMU gives a machine without an IOMMU whose vfio is in no-IOMMU mode:
	// only what is bound to a vfio driver is in a group, and each group's name
	// says so.
	NoIOMMU bool
	// GroupMajor is the major number of the nodes /dev/vfio/<group>, which the
	// kernel chooses when vfio is loaded. 0 means DefaultGroupMajor.
	GroupMajor uint32
}

// PF describes a physical function and its VFs, which lie at the addresses that
// the hardware would give them.
type PF struct {
	Address  qat.Address
	Family   string // of qat.Families
	Driver   string // empty for the family's, Unbound for none
	NUMA     int
	Services string // cfg_services; no such file when empty
	State    string // state; no such file when empty
	Group    int    // the PF's own IOMMU group; 0 for none

	VFs        int
	TotalVFs   int    // 0 for the family's
	VFDriver   string // empty for none
	FirstGroup int    // IOMMU group of the first VF; the others follow. 0 for none
	OneGroup   bool   // all VFs are in FirstGroup, as below a bridge without ACS

	NoDebugfs bool // no heartbeat and no firmware counters
}

// VF describes a VF without a PF.
type VF struct {
	Address qat.Address
	Family  string // of qat.Families
	Driver  string // empty for none
	NUMA    int
	Group   int // IOMMU group; 0 for none
}

// Device describes a device that is not QAT. One whose address is no PCI
// address is put on the platform bus.
type Device struct {
	Address        string
	Vendor, Device uint16
	Driver         string // empty for none
	NUMA           int
	Group          int // IOMMU group; 0 for none
}

// Unbound as a PF's driver means that it has none.
const Unbound = "(none)"

// Numbers of the device nodes. The control node's are fixed
// (Linux, include/linux/miscdevice.h), those of groups are an example.
const (
	ControlMajor, ControlMinor = 10, 196
	DefaultGroupMajor          = 511
)

// ErrMknod says that this process may not make device nodes. Everything else of
// the tree is there nevertheless.
var ErrMknod = errors.New("this process may not make device nodes")

// Write builds the machine below root, which must not hold one yet. Device nodes
// are real ones: a process without CAP_MKNOD gets the rest, and ErrMknod.
func (n Node) Write(root string) error {
	w := writer{Tree: Tree{Root: root, GroupMajor: n.GroupMajor}, noIOMMU: n.NoIOMMU}
	w.dir("/sys/bus/pci/devices")
	w.file("/sys/bus/pci/drivers_probe", "")
	w.dir("/sys/kernel/iommu_groups")
	w.driver("vfio-pci")
	for _, pf := range n.PFs {
		w.pf(pf)
		w.vfs(pf)
	}
	for _, vf := range n.Orphans {
		w.orphan(vf)
	}
	for _, dev := range n.Others {
		w.device(pciDevice{address: dev.Address, vendor: dev.Vendor, device: dev.Device, class: 0x020000, driver: dev.Driver, numa: dev.NUMA, group: dev.Group})
	}
	if w.err != nil {
		return fmt.Errorf("write a machine with QAT devices below %s: %w", root, w.err)
	}
	return w.writeNodes()
}

// TB is what New and RequireNodes need of a *testing.T or *testing.B.
type TB interface {
	Helper()
	TempDir() string
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// New builds the machine in a directory that goes with the test. It has no
// device nodes if the process may not make them: see RequireNodes.
func New(t TB, n Node) Tree {
	t.Helper()
	root := t.TempDir()
	if err := n.Write(root); err != nil && !errors.Is(err, ErrMknod) {
		t.Fatalf("%v", err)
	}
	return Tree{Root: root, GroupMajor: n.GroupMajor}
}

// RequireNodes skips the test when the tree has no device nodes because the
// process may not make them.
func (t Tree) RequireNodes(tb TB) {
	tb.Helper()
	if _, err := os.Lstat(filepath.Join(t.Root, controlNode)); err != nil {
		tb.Skipf("needs device nodes, and %v: run as root", ErrMknod)
	}
}

// VFAddress is the address of a PF's VF: first VF offset and stride apart in
// routing ids, over into the next device and bus (PCI Express, SR-IOV).
func VFAddress(pf qat.Address, f *qat.Family, index int) qat.Address {
	var domain, bus, device, function int
	if _, err := fmt.Sscanf(string(pf), "%x:%x:%x.%x", &domain, &bus, &device, &function); err != nil {
		panic(fmt.Sprintf("PF address %q: %v", pf, err))
	}
	const stride = 1
	id := bus<<8 + device<<3 + function + f.VFOffset + stride*index
	return qat.Address(fmt.Sprintf("%04x:%02x:%02x.%d", domain, id>>8, id>>3&0x1f, id&7))
}

// Many describes a machine with that many PFs of the 4xxx family, each with all
// its 16 VFs bound to vfio-pci, over two NUMA nodes.
func Many(pfs int) Node {
	n := Node{PFs: make([]PF, pfs)}
	for i := range n.PFs {
		n.PFs[i] = PF{
			Address: qat.Address(fmt.Sprintf("%04x:%02x:00.0", i/128, 2*(i%128))), Family: "4xxx", NUMA: 2 * i / pfs,
			Services: []string{"sym;asym", "dc"}[i%2], State: qat.StateUp, Group: 1 + i,
			VFs: 16, VFDriver: "vfio-pci", FirstGroup: 1000 + 16*i,
		}
	}
	return n
}

func family(name string) (*qat.Family, error) {
	if f := qat.FamilyByName(name); f != nil {
		return f, nil
	}
	known := slices.Collect(func(yield func(string) bool) {
		for i := range qat.Families {
			if !yield(qat.Families[i].Name) {
				return
			}
		}
	})
	return nil, fmt.Errorf("QAT family %q: expected one of %v", name, known)
}
