// Package qat knows the Intel QuickAssist (QAT) devices of a machine: their
// families, their physical and virtual functions, the services that they offer
// and their health, as sysfs and debugfs tell. It only reads; nothing here
// changes a device, and nothing here knows who uses one.
package qat

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Address is a PCI address in the kernel's form, domain:bus:device.function
// in lower-case hexadecimal: "0000:6b:00.1".
type Address string

// ParseAddress checks that s is a full PCI address and returns it in lower
// case. A short form without a domain ("6b:00.1") is refused: it is ambiguous
// on machines with more than one domain.
func ParseAddress(s string) (Address, error) {
	a := strings.ToLower(s)
	if !validAddress(a) {
		return "", fmt.Errorf("PCI address %q: expected domain:bus:device.function in hexadecimal, for example 0000:6b:00.1", s)
	}
	return Address(a), nil
}

func validAddress(s string) bool {
	domain, rest, ok := strings.Cut(s, ":")
	// A VMD controller makes domains of more than four digits.
	if !ok || len(domain) < 4 || len(domain) > 8 || !hexDigits(domain) || len(rest) != len("6b:00.1") {
		return false
	}
	return hexDigits(rest[0:2]) && rest[2] == ':' && hexDigits(rest[3:5]) && rest[5] == '.' && rest[6] >= '0' && rest[6] <= '7'
}

// Compare orders addresses by domain, bus, device and function.
func (a Address) Compare(b Address) int {
	// The kernel pads a domain to four digits only, so a longer address is of
	// a higher domain.
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(string(a), string(b)))
}

func hexDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// PF is a physical function: the QAT device itself. It belongs to the host and
// is never handed to a pod.
type PF struct {
	Address  Address  `json:"address"`
	Family   *Family  `json:"family"`
	Driver   string   `json:"driver,omitempty"` // as sysfs names it; empty when none is bound
	NUMANode int      `json:"numaNode"`         // -1 when the machine has no NUMA information
	TotalVFs int      `json:"totalVFs"`         // sriov_totalvfs
	NumVFs   int      `json:"numVFs"`           // sriov_numvfs
	Services Services `json:"services,omitempty"`
	State    string   `json:"state,omitempty"` // StateUp, StateDown, or empty where the driver has no such file
	Health   Health   `json:"health"`
	VFs      []VF     `json:"vfs,omitempty"` // in the order of their index
}

// The states of a PF, as its qat/state says.
const (
	StateUp   = "up"
	StateDown = "down"
)

// debugDir is the PF's directory below debugfs. The driver names it after its
// class of devices, which is its own name, not its module's or the family's
// (Linux, adf_dbgfs.c).
func (pf *PF) debugDir() string { return "qat_" + pf.Family.PFDriver + "_" + string(pf.Address) }

// VF is a virtual function: what a pod can hold.
type VF struct {
	Address  Address  `json:"address"`
	PF       Address  `json:"pf,omitempty"` // empty for a VF without a PF on this machine, as in a guest
	Index    int      `json:"index"`        // N of the PF's virtfnN link
	Family   *Family  `json:"family"`
	Driver   string   `json:"driver,omitempty"` // "vfio-pci", …; empty when none is bound
	NUMANode int      `json:"numaNode"`         // that of its PF, with which it shares the slot
	Group    *Group   `json:"group,omitempty"`  // shared by the VFs of one group; nil when the VF is in none, or it could not be read
	Services Services `json:"services,omitempty"`
	Health   Health   `json:"health"` // that of its PF
}

// Group is an IOMMU group: the smallest set of devices that the IOMMU can tell
// apart, and so the unit in which VFIO hands devices out.
type Group struct {
	ID int `json:"id"`
	// NoIOMMU is set for a group of vfio's no-IOMMU mode, whose node is
	// /dev/vfio/noiommu-<ID> and which protects nobody from the device.
	NoIOMMU bool          `json:"noIOMMU,omitempty"`
	Members []GroupMember `json:"members"` // every device of the group, this one included
}

// GroupMember is one device of an IOMMU group.
type GroupMember struct {
	Address string `json:"address"` // a PCI address, or the name of a device of another bus
	Driver  string `json:"driver,omitempty"`
}

// Node is the path of the group's device node below the root directory.
func (g *Group) Node() string {
	if g.NoIOMMU {
		return fmt.Sprintf("/dev/vfio/noiommu-%d", g.ID)
	}
	return fmt.Sprintf("/dev/vfio/%d", g.ID)
}

// Health is what the driver's heartbeat says of a PF.
type Health string

// The states of a PF's health.
const (
	HealthUnknown Health = "unknown" // no heartbeat, or debugfs not mounted
	HealthOK      Health = "healthy"
	HealthDead    Health = "dead"
)

// Problem is an entry of sysfs that could not be read as it should be. It
// hides no other device.
type Problem struct {
	Address string `json:"address"` // of the device it concerns
	Err     error  `json:"-"`
}

func (p Problem) Error() string { return fmt.Sprintf("%s: %v", p.Address, p.Err) }

// Unwrap returns the error itself, without the address.
func (p Problem) Unwrap() error { return p.Err }

// MarshalJSON gives the address and the text of the error.
func (p Problem) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Address string `json:"address"`
		Error   string `json:"error"`
	}{p.Address, p.Err.Error()})
}

// Inventory is what one pass over sysfs found. The order of everything in it is
// the same for the same devices.
type Inventory struct {
	PFs []PF `json:"pfs"` // by address
	// Orphans are VFs that no PF of the inventory has, by address. In a guest
	// that is every VF. A VF whose PF could not be read, or does not own up to
	// it, has its PF field set and is among the Problems too.
	Orphans  []VF      `json:"orphans,omitempty"`
	Problems []Problem `json:"problems,omitempty"` // by address
}

// VFs yields every VF: those of the PFs in the order of PF and index, then the
// orphans. The pointers stay valid as long as the inventory.
func (inv *Inventory) VFs() iter.Seq[*VF] {
	return func(yield func(*VF) bool) {
		for i := range inv.PFs {
			for j := range inv.PFs[i].VFs {
				if !yield(&inv.PFs[i].VFs[j]) {
					return
				}
			}
		}
		for i := range inv.Orphans {
			if !yield(&inv.Orphans[i]) {
				return
			}
		}
	}
}

// PF returns the PF at an address, or nil.
func (inv *Inventory) PF(a Address) *PF {
	i, ok := slices.BinarySearchFunc(inv.PFs, a, func(pf PF, a Address) int { return pf.Address.Compare(a) })
	if !ok {
		return nil
	}
	return &inv.PFs[i]
}

// VF returns the VF at an address, orphan or not, or nil. It looks at all of
// them: for many look-ups there is vfio.Table.
func (inv *Inventory) VF(a Address) *VF {
	for vf := range inv.VFs() {
		if vf.Address == a {
			return vf
		}
	}
	return nil
}
