// Package vfio knows what the kernel's VFIO makes of the QAT virtual functions
// of a machine: which device node stands for each, and whether it can be passed
// to a VM at all. It binds drivers too; it does not know who holds a device.
package vfio

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// ControlNode is VFIO's control node, which every user of a group needs beside
// the group's own.
const ControlNode = "/dev/vfio/vfio"

// Node is a character device node.
type Node struct {
	Path  string `json:"path"` // as the container and the host without a root directory see it
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// Device is a VF together with the node that stands for it.
type Device struct {
	VF   *qat.VF
	Node Node // of the VF's IOMMU group; the zero Node when it is in none
	// Err says why the VF cannot be handed out: not bound to a vfio driver, a
	// group that is not viable, no node. It names the device, what was
	// expected and what to do. nil for a VF that is ready.
	Err error
}

// MarshalJSON gives the VF, its node and the text of the error.
func (d *Device) MarshalJSON() ([]byte, error) {
	form := struct {
		VF    *qat.VF `json:"vf"`
		Node  *Node   `json:"node,omitempty"`
		Error string  `json:"error,omitempty"`
	}{VF: d.VF}
	if d.Node != (Node{}) {
		form.Node = &d.Node
	}
	if d.Err != nil {
		form.Error = d.Err.Error()
	}
	return json.Marshal(form)
}

// Table is an index of the VFs of one inventory. It is immutable and safe for
// concurrent use. A nil Table is an empty one.
type Table struct {
	// Control is the control node; its numbers are 0 when the machine has none.
	Control Node

	devices   []*Device // by address
	byAddress map[qat.Address]*Device
	byNumber  map[uint64][]*Device // a group of several VFs has one node
}

// Options change what Load makes of an inventory.
type Options struct {
	// AllowNoIOMMU lets VFs be handed out that no IOMMU confines (vfio's
	// enable_unsafe_noiommu_mode): whoever holds one can read and write all of
	// the host's memory. It is for experiments on machines that hold nothing
	// else.
	AllowNoIOMMU bool
}

// Load makes the table of an inventory's VFs. It reads the numbers of the device
// nodes below root, and each node once. What is wrong with a VF is in its
// Device.Err, so Load itself cannot fail.
func Load(root string, inv *qat.Inventory, options Options) *Table {
	control, _ := stat(root, ControlNode) // without one its numbers are 0, as promised
	t := &Table{
		Control:   control,
		byAddress: make(map[qat.Address]*Device),
		byNumber:  make(map[uint64][]*Device),
	}
	if inv == nil {
		return t
	}

	l := newLoader(root, inv, options)
	for vf := range inv.VFs() {
		d := l.device(vf)
		t.devices = append(t.devices, d)
		t.byAddress[vf.Address] = d
	}
	slices.SortFunc(t.devices, func(a, b *Device) int { return a.VF.Address.Compare(b.VF.Address) })
	for _, d := range t.devices {
		if d.Node.Major != 0 {
			n := number(d.Node.Major, d.Node.Minor)
			t.byNumber[n] = append(t.byNumber[n], d)
		}
	}
	return t
}

// Devices returns all devices by address, ready or not. The slice is the table's
// own: do not change it.
func (t *Table) Devices() []*Device {
	if t == nil {
		return nil
	}
	return t.devices
}

// ByAddress returns the device at an address, or nil.
func (t *Table) ByAddress(a qat.Address) *Device {
	if t == nil {
		return nil
	}
	return t.byAddress[a]
}

// ByNumber returns the devices that the node with these numbers stands for, by
// address: all VFs of an IOMMU group, none for the control node and for nodes
// that are no QAT VF's. The slice is the table's own: do not change it.
func (t *Table) ByNumber(major, minor int64) []*Device {
	if t == nil || major != int64(uint32(major)) || minor != int64(uint32(minor)) {
		return nil
	}
	return t.byNumber[number(uint32(major), uint32(minor))]
}

func number(major, minor uint32) uint64 { return uint64(major)<<32 | uint64(minor) }

// stat reads the numbers of a device node. It follows no link: below a root
// directory that would lead out of it.
func stat(root, path string) (Node, error) {
	node := Node{Path: path}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, path), &st); err != nil {
		return node, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return node, errors.New("it is no character device")
	}
	rdev := uint64(st.Rdev) // not a uint64 on every architecture
	node.Major, node.Minor = unix.Major(rdev), unix.Minor(rdev)
	return node, nil
}
