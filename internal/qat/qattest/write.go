package qattest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// classQAT is the PCI class of QAT devices: a co-processor.
const classQAT = 0x0b4000

// writer writes below a root until something fails; err is the first failure.
type writer struct {
	Tree
	noIOMMU bool
	err     error
}

func (w *writer) dir(name string) {
	if w.err == nil {
		w.err = os.MkdirAll(w.path(name), 0o755)
	}
}

func (w *writer) file(name, content string) {
	if w.err == nil {
		w.err = os.WriteFile(w.path(name), []byte(content), 0o644)
	}
}

// link makes the link name, with a relative target as sysfs has them, so that it
// leads to the same place wherever the root is mounted.
func (w *writer) link(name, target string) {
	if w.err != nil {
		return
	}
	relative, err := filepath.Rel(filepath.Dir(name), target)
	if err == nil {
		err = os.Symlink(relative, w.path(name))
	}
	w.err = err
}

// pciDevice is what all devices of the tree have in common.
type pciDevice struct {
	address        string
	parent         string // directory it lies in; empty for that of its bus
	vendor, device uint16
	class          uint32
	driver         string
	numa, group    int
}

func (d pciDevice) dir() string {
	if _, err := qat.ParseAddress(d.address); err != nil {
		return "/sys/devices/platform/" + d.address
	}
	return filepath.Join(cmp.Or(d.parent, "/sys/devices/pci"+d.address[:strings.LastIndexByte(d.address, ':')]), d.address)
}

func (w *writer) device(d pciDevice) (dir string) {
	dir = d.dir()
	w.dir(dir)
	if strings.HasPrefix(dir, "/sys/devices/pci") {
		w.file(dir+"/vendor", fmt.Sprintf("0x%04x\n", d.vendor))
		w.file(dir+"/device", fmt.Sprintf("0x%04x\n", d.device))
		w.file(dir+"/class", fmt.Sprintf("0x%06x\n", d.class))
		w.file(dir+"/numa_node", fmt.Sprintf("%d\n", d.numa))
		w.file(dir+"/driver_override", "(null)\n")
		w.link("/sys/bus/pci/devices/"+d.address, dir)
	}
	if d.driver != "" {
		w.driver(d.driver)
		w.link(driverDir(d.driver)+"/"+d.address, dir)
		w.link(dir+"/driver", driverDir(d.driver))
	}
	if d.group != 0 && (!w.noIOMMU || isVFIO(d.driver)) {
		w.group(d.group)
		w.link(fmt.Sprintf("%s/devices/%s", groupDir(d.group), d.address), dir)
		w.link(dir+"/iommu_group", groupDir(d.group))
	}
	return dir
}

func (w *writer) driver(name string) {
	dir := driverDir(name)
	if w.err != nil || exists(w.path(dir)) {
		return
	}
	w.dir(dir)
	for _, control := range []string{"bind", "unbind", "new_id", "remove_id"} {
		w.file(dir+"/"+control, "")
	}
}

func (w *writer) group(id int) {
	dir := groupDir(id)
	if w.err != nil || exists(w.path(dir)) {
		return
	}
	w.dir(dir + "/devices")
	if w.noIOMMU {
		w.file(dir+"/name", "vfio-noiommu\n")
	} else {
		w.file(dir+"/type", "DMA-FQ\n")
	}
}

func (w *writer) pf(pf PF) {
	f, err := family(pf.Family)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return
	}
	driver := cmp.Or(pf.Driver, f.PFDriver)
	if driver == Unbound {
		driver = ""
	}
	dir := w.device(pciDevice{address: string(pf.Address), vendor: qat.Vendor, device: f.PFDevice, class: classQAT, driver: driver, numa: pf.NUMA, group: pf.Group})
	w.file(dir+"/sriov_totalvfs", fmt.Sprintf("%d\n", cmp.Or(pf.TotalVFs, f.MaxVFs)))
	w.file(dir+"/sriov_numvfs", "0\n")
	w.file(dir+"/sriov_drivers_autoprobe", "1\n")
	w.file(dir+"/sriov_offset", fmt.Sprintf("%d\n", f.VFOffset))
	w.file(dir+"/sriov_stride", "1\n")
	w.file(dir+"/sriov_vf_device", fmt.Sprintf("%x\n", f.VFDevice))
	if pf.Services != "" || pf.State != "" {
		w.dir(dir + "/qat")
	}
	if pf.State != "" {
		w.file(dir+"/qat/state", pf.State+"\n")
	}
	if pf.Services != "" {
		w.file(dir+"/qat/cfg_services", pf.Services+"\n")
	}
	if !pf.NoDebugfs && driver == f.PFDriver {
		debug := debugDir(f, pf.Address)
		w.dir(debug + "/heartbeat")
		w.file(debug+"/heartbeat/status", heartbeatOK)
		w.file(debug+"/fw_counters", counters(make([]Counter, engines)))
	}
}

func (w *writer) vfs(pf PF) {
	f, err := family(pf.Family)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return
	}
	pfDir := pciDevice{address: string(pf.Address)}.dir()
	for i := range pf.VFs {
		group := pf.FirstGroup
		if group != 0 && !pf.OneGroup {
			group += i
		}
		dir := w.device(pciDevice{
			address: string(VFAddress(pf.Address, f, i)), parent: filepath.Dir(pfDir),
			vendor: qat.Vendor, device: f.VFDevice, class: classQAT, driver: pf.VFDriver, numa: pf.NUMA, group: group,
		})
		w.link(dir+"/physfn", pfDir)
		w.link(fmt.Sprintf("%s/virtfn%d", pfDir, i), dir)
	}
	w.file(pfDir+"/sriov_numvfs", fmt.Sprintf("%d\n", pf.VFs))
}

func (w *writer) orphan(vf VF) {
	f, err := family(vf.Family)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return
	}
	w.device(pciDevice{address: string(vf.Address), vendor: qat.Vendor, device: f.VFDevice, class: classQAT, driver: vf.Driver, numa: vf.NUMA, group: vf.Group})
}

func driverDir(name string) string { return "/sys/bus/pci/drivers/" + name }

func groupDir(id int) string { return fmt.Sprintf("/sys/kernel/iommu_groups/%d", id) }

func debugDir(f *qat.Family, pf qat.Address) string {
	return "/sys/kernel/debug/qat_" + f.PFDriver + "_" + string(pf)
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// isVFIO tells whether a driver gives its devices to vfio.
func isVFIO(driver string) bool {
	return driver == "vfio-pci" || strings.HasSuffix(driver, "_vfio_pci")
}
