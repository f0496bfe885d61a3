package qattest

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// Tree is a machine that Node.Write has built. Its methods do to it what happens
// to real machines; each may be called while somebody reads.
type Tree struct {
	Root       string
	GroupMajor uint32 // of new nodes; 0 means DefaultGroupMajor
}

// Counter is what an acceleration engine's firmware has counted.
type Counter struct{ Requests, Responses uint64 }

// engines is the number of acceleration engines of a Gen4 PF that do not
// administer it (Linux, adf_4xxx_hw_data.h).
const engines = 8

// The kernel ends what it writes with a NUL that it counts as content
// (Linux, adf_heartbeat_dbgfs.c).
const (
	heartbeatOK   = "0\n\x00"
	heartbeatDead = "-1\n\x00"
)

const controlNode = "/dev/vfio/vfio"

func (t Tree) path(name string) string { return filepath.Join(t.Root, name) }

// Device is the path of the real directory of the device at an address.
func (t Tree) Device(a qat.Address) (string, error) {
	link := t.path("/sys/bus/pci/devices/" + string(a))
	target, err := os.Readlink(link)
	if err != nil {
		return "", fmt.Errorf("no device %s in the tree: %w", a, err)
	}
	return filepath.Join(filepath.Dir(link), target), nil
}

// Set writes an attribute of a device: Set("0000:6b:00.0", "qat/state", "down").
func (t Tree) Set(a qat.Address, attribute, value string) error {
	dir, err := t.Device(a)
	if err != nil {
		return err
	}
	return t.replace(filepath.Join(dir, attribute), value+"\n")
}

// replace gives a file another content at one stroke, so that nobody reads half
// of it.
func (t Tree) replace(name, content string) error {
	f, err := os.CreateTemp(t.Root, ".new-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), name)
}

// Break makes an entry of a device unreadable, even for root: a file or a link
// becomes a directory, a directory becomes a file.
func (t Tree) Break(a qat.Address, entry string) error {
	dir, err := t.Device(a)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, entry)
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	if info.IsDir() {
		return os.WriteFile(name, nil, 0o644)
	}
	return os.Mkdir(name, 0o755)
}

// Vanish takes a device's directory away and leaves every link to it, as one
// sees it who has just listed the bus.
func (t Tree) Vanish(a qat.Address) error {
	dir, err := t.Device(a)
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Remove takes a device away, with all links to it and, if it was the last one
// of its IOMMU group, the group's node.
func (t Tree) Remove(a qat.Address) error {
	dir, err := t.Device(a)
	if err != nil {
		return err
	}
	group, _ := os.Readlink(filepath.Join(dir, "iommu_group"))
	links := []string{t.path("/sys/bus/pci/devices/" + string(a))}
	if driver, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		links = append(links, t.path(driverDir(filepath.Base(driver))+"/"+string(a)))
	}
	if group != "" {
		links = append(links, filepath.Join(dir, group, "devices", string(a)))
	}
	virtfns, err := filepath.Glob(filepath.Join(dir, "physfn", "virtfn*"))
	if err != nil {
		return err
	}
	for _, virtfn := range virtfns {
		if target, err := os.Readlink(virtfn); err == nil && filepath.Base(target) == string(a) {
			links = append(links, virtfn)
		}
	}
	for _, link := range links {
		if err := os.Remove(link); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil || group == "" {
		return err
	}
	return t.writeNode(filepath.Base(group))
}

// Rebind binds a device to another driver, or to none when that is empty. Like
// the kernel it makes the node of the device's IOMMU group when its first device
// is bound to vfio, and takes it away after the last.
func (t Tree) Rebind(a qat.Address, driver string) error {
	dir, err := t.Device(a)
	if err != nil {
		return err
	}
	if old, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		err := errors.Join(os.Remove(filepath.Join(dir, "driver")), os.Remove(t.path(driverDir(filepath.Base(old))+"/"+string(a))))
		if err != nil {
			return err
		}
	}
	if driver != "" {
		w := writer{Tree: t}
		w.driver(driver)
		device := strings.TrimPrefix(dir, filepath.Clean(t.Root))
		w.link(driverDir(driver)+"/"+string(a), device)
		w.link(device+"/driver", driverDir(driver))
		if w.err != nil {
			return w.err
		}
	}
	group, err := os.Readlink(filepath.Join(dir, "iommu_group"))
	if err != nil {
		return nil
	}
	return t.writeNode(filepath.Base(group))
}

// EnableVFs gives a PF that is there already, and has none, the VFs that pf
// describes.
func (t Tree) EnableVFs(pf PF) error {
	w := writer{Tree: t}
	w.vfs(pf)
	if w.err != nil {
		return w.err
	}
	return t.writeNodes()
}

// Kill lets a PF's heartbeat fail.
func (t Tree) Kill(pf qat.Address) error { return t.debug(pf, "heartbeat/status", heartbeatDead) }

// Revive lets a PF's heartbeat succeed again.
func (t Tree) Revive(pf qat.Address) error { return t.debug(pf, "heartbeat/status", heartbeatOK) }

// SetCounters sets the firmware counters of a PF, one for each engine.
func (t Tree) SetCounters(pf qat.Address, values ...Counter) error {
	return t.debug(pf, "fw_counters", counters(values))
}

// counters is the text of fw_counters (Linux, adf_fw_counters.c).
func counters(values []Counter) string {
	var b strings.Builder
	fmt.Fprintf(&b, "AE  %16s %16s\n", "Requests", "Responses")
	for i, v := range values {
		fmt.Fprintf(&b, "%2d: %16d %16d\n", i, v.Requests, v.Responses)
	}
	return b.String()
}

// debug writes a file of a PF's debugfs directory.
func (t Tree) debug(pf qat.Address, name, content string) error {
	dirs, err := filepath.Glob(t.path("/sys/kernel/debug/qat_*_" + string(pf)))
	if err != nil {
		return err
	}
	if len(dirs) != 1 {
		return fmt.Errorf("no debugfs directory of PF %s in the tree", pf)
	}
	return t.replace(filepath.Join(dirs[0], name), content)
}

// writeNodes makes the control node and those of all groups that vfio has.
func (t Tree) writeNodes() error {
	if err := os.MkdirAll(t.path("/dev/vfio"), 0o755); err != nil {
		return err
	}
	if err := t.mknod(controlNode, ControlMajor, ControlMinor); err != nil {
		return err
	}
	groups, err := os.ReadDir(t.path("/sys/kernel/iommu_groups"))
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := t.writeNode(g.Name()); err != nil {
			return err
		}
	}
	return nil
}

// writeNode makes the node of a group that vfio has, or removes that of one it
// does not have.
func (t Tree) writeNode(group string) error {
	dir := t.path("/sys/kernel/iommu_groups/" + group)
	node := "/dev/vfio/" + group
	if exists(filepath.Join(dir, "name")) {
		node = "/dev/vfio/noiommu-" + group
	}
	drivers, err := filepath.Glob(filepath.Join(dir, "devices", "*", "driver"))
	if err != nil {
		return err
	}
	for _, driver := range drivers {
		if target, err := os.Readlink(driver); err == nil && isVFIO(filepath.Base(target)) {
			id, err := strconv.Atoi(group)
			if err != nil {
				return fmt.Errorf("IOMMU group %q: %w", group, err)
			}
			return t.mknod(node, cmp.Or(t.GroupMajor, DefaultGroupMajor), GroupMinor(id))
		}
	}
	if err := os.Remove(t.path(node)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// GroupMinor is the minor number of a group's node. The kernel takes the lowest
// that is free; here it only has to be another number than the group's, so that
// who takes one for the other is found out.
func GroupMinor(group int) uint32 { return uint32(group) + 100 }

func (t Tree) mknod(name string, major, minor uint32) error {
	err := unix.Mknod(t.path(name), unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor)))
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("make %s: %w", name, ErrMknod)
	case err != nil:
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}
