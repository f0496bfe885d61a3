// Package vfio knows what the kernel's VFIO makes of the QAT virtual functions
// of a machine: which device node stands for each, and whether it can be passed
// to a VM at all. It binds drivers too; it does not know who holds a device.
package vfio

import "github.com/kata-qat/kata-qat/internal/qat"

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
	Node Node // of the VF's IOMMU group
	// Err says why the VF cannot be handed out: not bound to a vfio driver, a
	// group that is not viable, no node. It names the device, what was
	// expected and what to do. nil for a VF that is ready.
	Err error
}

// Table is an index of the VFs of one inventory. It is immutable and safe for
// concurrent use.
type Table struct {
	// Control is the control node; its numbers are 0 when the machine has none.
	Control Node

	devices   []*Device // by address
	byAddress map[qat.Address]*Device
	byNumber  map[uint64][]*Device // a group of several VFs has one node
}
