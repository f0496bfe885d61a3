package qattest_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

var node = qattest.Node{PFs: []qattest.PF{{
	Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: "up", VFs: 2, VFDriver: "vfio-pci", FirstGroup: 40,
}}}

func TestVFsLieWhereTheHardwarePutsThem(t *testing.T) {
	tests := []struct {
		pf     qat.Address
		family string
		index  int
		want   qat.Address
	}{
		{"0000:6b:00.0", "4xxx", 0, "0000:6b:00.1"},
		{"0000:6b:00.0", "4xxx", 7, "0000:6b:01.0"},
		{"0000:6b:00.0", "4xxx", 15, "0000:6b:02.0"},
		{"0000:3d:00.0", "c62x", 0, "0000:3d:01.0"},
		{"0000:3d:1f.7", "c62x", 0, "0000:3e:00.7"},
		{"10000:ab:00.0", "4xxx", 0, "10000:ab:00.1"},
	}
	for _, tt := range tests {
		if got := qattest.VFAddress(tt.pf, qat.FamilyByName(tt.family), tt.index); got != tt.want {
			t.Errorf("VF %d of %s %s is at %s, want %s", tt.index, tt.family, tt.pf, got, tt.want)
		}
	}
}

// A path leads to where it would on a real machine, whichever way one comes.
func TestLinksLeadWhereTheyDoInSysfs(t *testing.T) {
	root := qattest.New(t, node).Root
	const vf = "sys/devices/pci0000:6b/0000:6b:00.1"
	for link, want := range map[string]string{
		"sys/bus/pci/devices/0000:6b:00.1":                vf,
		"sys/bus/pci/devices/0000:6b:00.0/virtfn0":        vf,
		"sys/bus/pci/drivers/vfio-pci/0000:6b:00.1":       vf,
		"sys/kernel/iommu_groups/40/devices/0000:6b:00.1": vf,
		"sys/bus/pci/devices/0000:6b:00.0/virtfn0/physfn": "sys/devices/pci0000:6b/0000:6b:00.0",
		"sys/bus/pci/devices/0000:6b:00.1/iommu_group":    "sys/kernel/iommu_groups/40",
		"sys/bus/pci/devices/0000:6b:00.1/driver":         "sys/bus/pci/drivers/vfio-pci",
	} {
		got, err := filepath.EvalSymlinks(filepath.Join(root, link))
		if err != nil {
			t.Error(err)
			continue
		}
		if got != filepath.Join(root, want) {
			t.Errorf("%s leads to %s, want %s", link, got, want)
		}
	}
}

func TestFilesReadAsTheKernelWritesThem(t *testing.T) {
	tree := qattest.New(t, node)
	if err := tree.SetCounters("0000:6b:00.0", qattest.Counter{Requests: 12345, Responses: 12344}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"sys/bus/pci/devices/0000:6b:00.0/vendor":                   "0x8086\n",
		"sys/bus/pci/devices/0000:6b:00.1/device":                   "0x4941\n",
		"sys/bus/pci/devices/0000:6b:00.0/sriov_numvfs":             "2\n",
		"sys/bus/pci/devices/0000:6b:00.0/qat/cfg_services":         "sym;asym\n",
		"sys/kernel/debug/qat_4xxx_0000:6b:00.0/heartbeat/status":   "0\n\x00",
		"sys/kernel/debug/qat_4xxx_0000:6b:00.0/fw_counters":        "AE          Requests        Responses\n 0:            12345            12344\n",
		"sys/bus/pci/devices/0000:6b:00.1/iommu_group/type":         "DMA-FQ\n",
		"sys/bus/pci/devices/0000:6b:00.0/virtfn1/physfn/numa_node": "0\n",
		"sys/bus/pci/devices/0000:6b:00.0/sriov_drivers_autoprobe":  "1\n",
	} {
		got, err := os.ReadFile(filepath.Join(tree.Root, name))
		if err != nil || string(got) != want {
			t.Errorf("%s reads %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestNodesComeAndGoWithTheDrivers(t *testing.T) {
	tree := qattest.New(t, node)
	tree.RequireNodes(t)
	path := filepath.Join(tree.Root, "dev/vfio/40")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(qattest.DefaultGroupMajor, qattest.GroupMinor(40)) {
		t.Errorf("/dev/vfio/40 has mode %o and numbers %d:%d", st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	for _, step := range []struct {
		do   func() error
		node bool
	}{
		{func() error { return tree.Rebind("0000:6b:00.1", "4xxxvf") }, false},
		{func() error { return tree.Rebind("0000:6b:00.1", "vfio-pci") }, true},
		{func() error { return tree.Rebind("0000:6b:00.1", "") }, false},
		{func() error { return tree.Rebind("0000:6b:00.1", "qat_vfio_pci") }, true},
		{func() error { return tree.Remove("0000:6b:00.1") }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); (err == nil) != step.node {
			t.Errorf("node is there: %v, want %v", err == nil, step.node)
		}
	}
}

func TestAnUnknownFamilyIsRefused(t *testing.T) {
	err := qattest.Node{PFs: []qattest.PF{{Address: "0000:6b:00.0", Family: "4xx"}}}.Write(t.TempDir())
	if err == nil || errors.Is(err, qattest.ErrMknod) {
		t.Errorf("error %v, want one that names the family", err)
	}
}
