// Package simkernel stands behind a machine that qattest has built out of files
// and does what the kernel does when attributes of sysfs are written: VFs come
// and go, drivers take devices or refuse them. It knows only what provisioning
// meets; test/lab has a real kernel.
package simkernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// Kernel is the kernel of a machine.
type Kernel struct {
	Tree qattest.Tree
	// Exact makes drivers enable as many VFs as are asked for; those of the
	// kernel's own tree enable all or none.
	Exact bool
	// VFDrivers are loaded: they take VFs that nobody keeps from them.
	VFDrivers bool
	// NewGroups are the IOMMU groups of a PF's VFs to come, from this number
	// on; without one for a PF its VFs are in none.
	NewGroups map[qat.Address]int

	mu     sync.Mutex
	writes []string
}

// Writes are the attributes that were written so far, "path value" below the
// root, in order.
func (k *Kernel) Writes() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]string(nil), k.writes...)
}

// New returns the kernel of a tree.
func New(tree qattest.Tree) *Kernel {
	return &Kernel{Tree: tree, NewGroups: make(map[qat.Address]int)}
}

// Write is what happens when value is written to the attribute at path, with
// the root before it.
func (k *Kernel) Write(path, value string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := "/" + strings.TrimPrefix(strings.TrimPrefix(path, filepath.Clean(k.Tree.Root)), "/")
	value = strings.TrimSpace(value)
	k.writes = append(k.writes, name+" "+value)
	parts := strings.Split(strings.TrimPrefix(name, "/sys/bus/pci/"), "/")
	err := unix.ENOENT
	switch {
	case parts[0] == "drivers_probe":
		return k.probe(qat.Address(value))
	case parts[0] == "drivers" && len(parts) == 3 && parts[2] == "unbind":
		return k.unbind(qat.Address(value), parts[1])
	case parts[0] == "drivers" && len(parts) == 3 && parts[2] == "bind":
		return k.bind(qat.Address(value), parts[1])
	case parts[0] == "devices" && len(parts) >= 3:
		return k.set(qat.Address(parts[1]), strings.Join(parts[2:], "/"), value)
	}
	return &os.PathError{Op: "write", Path: path, Err: err}
}

func (k *Kernel) set(a qat.Address, attribute, value string) error {
	if _, err := k.Tree.Device(a); err != nil {
		return unix.ENOENT
	}
	switch attribute {
	case "sriov_numvfs":
		return k.numVFs(a, value)
	case "sriov_drivers_autoprobe", "qat/auto_reset":
		return k.Tree.Set(a, attribute, value)
	case "driver_override":
		if value == "" {
			value = "(null)"
		}
		return k.Tree.Set(a, attribute, value)
	case "qat/state":
		if value == qat.StateDown && k.get(a, "sriov_numvfs") != "0" {
			return unix.EBUSY
		}
		return k.Tree.Set(a, attribute, value)
	case "qat/cfg_services":
		if k.get(a, "qat/state") != qat.StateDown {
			return unix.EINVAL
		}
		return k.Tree.Set(a, attribute, value)
	}
	return unix.EACCES
}

func (k *Kernel) get(a qat.Address, attribute string) string {
	b, _ := os.ReadFile(filepath.Join(k.Tree.Root, "sys/bus/pci/devices", string(a), attribute))
	return strings.TrimSpace(string(b))
}

func (k *Kernel) driver(a qat.Address) string {
	link, err := os.Readlink(filepath.Join(k.Tree.Root, "sys/bus/pci/devices", string(a), "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// family is that of a device by its ids, and whether it is a VF.
func (k *Kernel) family(a qat.Address) (f *qat.Family, vf bool) {
	id := k.get(a, "device")
	for i := range qat.Families {
		f := &qat.Families[i]
		switch id {
		case fmt.Sprintf("0x%04x", f.PFDevice):
			return f, false
		case fmt.Sprintf("0x%04x", f.VFDevice):
			return f, true
		}
	}
	return nil, false
}

func (k *Kernel) numVFs(a qat.Address, value string) error {
	n, err := strconv.Atoi(value)
	if err != nil {
		return unix.EINVAL
	}
	f, _ := k.family(a)
	total, _ := strconv.Atoi(k.get(a, "sriov_totalvfs"))
	now, _ := strconv.Atoi(k.get(a, "sriov_numvfs"))
	switch {
	case k.driver(a) == "": // as the kernel has it: no driver, no sriov_configure
		return unix.ENOENT
	case n == now:
		return nil
	case n == 0:
		for i := range now {
			if err := k.Tree.Remove(qattest.VFAddress(a, f, i)); err != nil {
				return err
			}
			_ = k.removeEmptyGroup(k.NewGroups[a] + i)
		}
		return k.Tree.Set(a, "sriov_numvfs", "0")
	case now != 0:
		return unix.EBUSY
	case n > total:
		return unix.ERANGE
	}
	if !k.Exact {
		n = total
	}
	pf := qattest.PF{Address: a, Family: f.Name, VFs: n, FirstGroup: k.NewGroups[a]}
	numa, _ := strconv.Atoi(k.get(a, "numa_node"))
	pf.NUMA = numa
	if k.VFDrivers && k.get(a, "sriov_drivers_autoprobe") == "1" {
		pf.VFDriver = f.VFDriver
	}
	_ = k.Tree.EnableVFs(pf) // its error may be that nodes cannot be made
	return nil
}

// removeEmptyGroup lets a group go with its last device.
func (k *Kernel) removeEmptyGroup(id int) error {
	dir := filepath.Join(k.Tree.Root, "sys/kernel/iommu_groups", strconv.Itoa(id))
	entries, err := os.ReadDir(filepath.Join(dir, "devices"))
	if err != nil || len(entries) > 0 {
		return err
	}
	return os.RemoveAll(dir)
}

// probe offers a device to the drivers; that one refuses it is not told.
func (k *Kernel) probe(a qat.Address) error {
	if _, err := k.Tree.Device(a); err != nil {
		return unix.ENODEV
	}
	if k.driver(a) != "" {
		return nil
	}
	f, vf := k.family(a)
	override := k.get(a, "driver_override")
	switch {
	case override != "(null)":
		if k.admit(a, override) == nil {
			return k.take(a, override)
		}
	case vf && k.VFDrivers:
		pf, _ := os.Readlink(filepath.Join(k.Tree.Root, "sys/bus/pci/devices", string(a), "physfn"))
		if k.get(qat.Address(filepath.Base(pf)), "sriov_drivers_autoprobe") == "1" {
			return k.take(a, f.VFDriver)
		}
	}
	return nil
}

// admit says whether a driver takes a device.
func (k *Kernel) admit(a qat.Address, driver string) error {
	if _, err := os.Stat(filepath.Join(k.Tree.Root, "sys/bus/pci/drivers", driver)); err != nil {
		return unix.ENODEV
	}
	allowed, err := os.ReadFile(filepath.Join(k.Tree.Root, "sys/module/vfio_pci/parameters/disable_denylist"))
	if f, _ := k.family(a); driver == "vfio-pci" && err == nil && allowed[0] != 'Y' && f != nil && f.DenyListed {
		return unix.EINVAL
	}
	return nil
}

func (k *Kernel) take(a qat.Address, driver string) error {
	_ = k.Tree.Rebind(a, driver) // its error may be that nodes cannot be made
	if got := k.driver(a); got != driver {
		return fmt.Errorf("simulate: %s has driver %q, expected %s", a, got, driver)
	}
	return nil
}

func (k *Kernel) bind(a qat.Address, driver string) error {
	if k.driver(a) != "" {
		return unix.EBUSY
	}
	if override := k.get(a, "driver_override"); override != driver {
		return unix.ENODEV
	}
	if err := k.admit(a, driver); err != nil {
		return err
	}
	return k.take(a, driver)
}

func (k *Kernel) unbind(a qat.Address, driver string) error {
	if k.driver(a) != driver {
		return unix.ENODEV
	}
	_ = k.Tree.Rebind(a, "")
	return nil
}

// Snapshot is every file, link and directory below a root, each with its mode
// and content, but for those below the directories that are left out.
func Snapshot(root string, except ...string) (map[string]string, error) {
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		for _, e := range except {
			if name == e {
				return filepath.SkipDir
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		entry := info.Mode().String()
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			entry += " -> " + target
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			entry += " " + string(b)
		}
		all[name] = entry
		return nil
	})
	return all, err
}
