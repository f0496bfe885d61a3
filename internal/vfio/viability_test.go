package vfio_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// A VF that cannot be handed out says why, what was expected and what to do. The
// second VF of the PF, in a group of its own, stays ready unless said otherwise.
func TestWhyAVFCannotBeHandedOut(t *testing.T) {
	const vf qat.Address = "0000:6b:00.1"
	nic := func(driver string) qattest.Device {
		return qattest.Device{Address: "0000:3b:00.0", Vendor: qat.Vendor, Device: 0x1521, Driver: driver, Group: 40}
	}
	tests := []struct {
		name   string
		change func(*qattest.Node)
		fault  func(qattest.Tree) error
		want   string // "" for a VF that is ready
		all    bool   // the other VFs of the PF are not ready either
	}{
		{name: "nothing is wrong"},
		{
			name:  "the guest's driver has it",
			fault: func(t qattest.Tree) error { return t.Rebind(vf, "4xxxvf") },
			want:  "0000:6b:00.1 is bound to 4xxxvf, expected vfio-pci: run kata-qat provision host",
		},
		{
			name:  "no driver has it",
			fault: func(t qattest.Tree) error { return t.Rebind(vf, "") },
			want:  "0000:6b:00.1 is bound to no driver, expected vfio-pci: run kata-qat provision host",
		},
		{
			name:  "the variant driver for QAT has it",
			fault: func(t qattest.Tree) error { return t.Rebind(vf, "qat_vfio_pci") },
		},
		{
			name:   "no IOMMU",
			change: func(n *qattest.Node) { n.PFs[0].FirstGroup = 0 },
			want:   "0000:6b:00.1 is in no IOMMU group: is the IOMMU on? (firmware: VT-d or AMD-Vi; kernel command line: intel_iommu=on): run kata-qat provision host",
			all:    true,
		},
		{
			name:   "vfio's no-IOMMU mode",
			change: func(n *qattest.Node) { n.NoIOMMU = true },
			want:   "0000:6b:00.1 is in a group of vfio's no-IOMMU mode, which protects the host from nobody who holds it: expected an IOMMU: run kata-qat provision host",
			all:    true,
		},
		{
			name:   "a foreign device with a driver is in the group",
			change: func(n *qattest.Node) { n.Others = []qattest.Device{nic("igb")} },
			want:   "0000:6b:00.1: group 40 also holds 0000:3b:00.0 (igb): move it or exclude this PF",
		},
		{
			name:   "a foreign device of another bus is in the group",
			change: func(n *qattest.Node) { n.Others = []qattest.Device{{Address: "dma.0", Driver: "dw-dma", Group: 40}} },
			want:   "0000:6b:00.1: group 40 also holds dma.0 (dw-dma): move it or exclude this PF",
		},
		{
			name:   "a foreign device without a driver is in the group",
			change: func(n *qattest.Node) { n.Others = []qattest.Device{nic("")} },
		},
		{
			name:   "a foreign device that pci-stub keeps is in the group",
			change: func(n *qattest.Node) { n.Others = []qattest.Device{nic("pci-stub")} },
		},
		{
			name:   "a bridge is in the group",
			change: func(n *qattest.Node) { n.Others = []qattest.Device{nic("pcieport")} },
		},
		{
			name:   "a foreign device on vfio would be handed out too",
			change: func(n *qattest.Node) { n.Others = []qattest.Device{nic("vfio-pci")} },
			want:   "0000:6b:00.1: group 40 also holds 0000:3b:00.0 (vfio-pci), which is no QAT VF and would be handed out with it: move it or exclude this PF",
		},
		{
			name:   "the PF is in the group, as without ACS",
			change: func(n *qattest.Node) { n.PFs[0].Group = 40 },
			want:   "0000:6b:00.1: group 40 also holds 0000:6b:00.0 (4xxx): move it or exclude this PF",
		},
		{
			name:   "the PF is in the group and on vfio itself",
			change: func(n *qattest.Node) { n.PFs[0].Group, n.PFs[0].Driver = 40, "vfio-pci" },
			want:   "0000:6b:00.1: group 40 also holds 0000:6b:00.0 (vfio-pci), which is no QAT VF and would be handed out with it: move it or exclude this PF",
		},
		{
			name:   "another VF of the group is not on vfio",
			change: func(n *qattest.Node) { n.PFs[0].OneGroup = true },
			fault:  func(t qattest.Tree) error { return t.Rebind("0000:6b:00.3", "") },
			want:   "0000:6b:00.1: group 40 also holds the VF 0000:6b:00.3, which is bound to no driver, expected vfio-pci: run kata-qat provision host",
			all:    true,
		},
		{
			name:  "the heartbeat fails",
			fault: func(t qattest.Tree) error { return t.Kill("0000:6b:00.0") },
			want:  "0000:6b:00.1: its PF 0000:6b:00.0 does not answer the heartbeat: see dmesg, then write down and up to /sys/bus/pci/devices/0000:6b:00.0/qat/state, or reset it",
			all:   true,
		},
		{
			name:   "the PF is down",
			change: func(n *qattest.Node) { n.PFs[0].State = "down" },
			want:   "0000:6b:00.1: its PF 0000:6b:00.0 is down, expected up: write up to /sys/bus/pci/devices/0000:6b:00.0/qat/state",
			all:    true,
		},
		{
			name:  "no node",
			fault: func(t qattest.Tree) error { return os.Remove(filepath.Join(t.Root, "dev/vfio/40")) },
			want:  "0000:6b:00.1 has no device node /dev/vfio/40: no such file or directory: expected the node of IOMMU group 40: is devtmpfs mounted on /dev?",
		},
		{
			name:  "its group cannot be read",
			fault: func(t qattest.Tree) error { return os.RemoveAll(filepath.Join(t.Root, "sys/kernel/iommu_groups/40")) },
			want:  "0000:6b:00.1 cannot be read properly in sysfs: IOMMU group 40: list its devices: no such file or directory",
		},
		{
			name:  "its PF cannot be read",
			fault: func(t qattest.Tree) error { return t.Break("0000:6b:00.0", "vendor") },
			want:  "0000:6b:00.1 cannot be read properly in sysfs: physfn is 0000:6b:00.0: no such QAT PF that has this VF: expected one, unless VFs are being changed",
			all:   true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			node := qattest.Node{PFs: []qattest.PF{pf()}}
			if tt.change != nil {
				tt.change(&node)
			}
			tree := qattest.New(t, node)
			tree.RequireNodes(t)
			if tt.fault != nil {
				if err := tt.fault(tree); err != nil {
					t.Fatal(err)
				}
			}
			table := load(t, tree, vfio.Options{})
			if got := reason(t, table, vf); got != tt.want {
				t.Errorf("reason\n%s\nwant\n%s", got, tt.want)
			}
			if got := reason(t, table, "0000:6b:00.2"); (got != "") != tt.all {
				t.Errorf("the second VF: %q", got)
			}
		})
	}
}

func TestNoIOMMUModeMustBeAllowed(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf()}, NoIOMMU: true})
	tree.RequireNodes(t)
	d := load(t, tree, vfio.Options{AllowNoIOMMU: true}).ByAddress("0000:6b:00.1")
	if want := (vfio.Node{Path: "/dev/vfio/noiommu-40", Major: major, Minor: qattest.GroupMinor(40)}); d.Err != nil || d.Node != want {
		t.Errorf("node %+v, %v; want %+v", d.Node, d.Err, want)
	}
}

// A VF that a VM got from its host has no PF there, and can be handed on.
func TestAnOrphanIsReady(t *testing.T) {
	tree := qattest.New(t, qattest.Node{Orphans: []qattest.VF{{Address: "0000:01:00.0", Family: "4xxx", Driver: "vfio-pci", Group: 5}}})
	tree.RequireNodes(t)
	if got := reason(t, load(t, tree, vfio.Options{}), "0000:01:00.0"); got != "" {
		t.Errorf("not ready: %s", got)
	}
}
