package vfio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// The drivers that a VF can be bound to for a VM.
const (
	DriverPCI = "vfio-pci"
	DriverQAT = "qat_vfio_pci" // with live migration (Linux 6.10, drivers/vfio/pci/qat)
)

// Binder binds devices to drivers. It is safe for concurrent use on different
// devices.
type Binder struct {
	Root string
	// Write writes an attribute of sysfs, given its path with the root before
	// it. nil means that the file itself is written; tests put a kernel here.
	Write func(path, value string) error
}

// Binding is what a device is bound to, and told to be bound to.
type Binding struct {
	Driver   string `json:"driver"`   // "" for none
	Override string `json:"override"` // driver_override; "" for none
}

// WriteAttribute writes an attribute of sysfs with a single write, which is what
// the kernel takes as one value.
func WriteAttribute(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (b Binder) write(path, value string) error {
	path = filepath.Join(b.Root, path)
	if b.Write != nil {
		return b.Write(path, value)
	}
	return WriteAttribute(path, value)
}

const (
	devicesDir = "/sys/bus/pci/devices"
	driversDir = "/sys/bus/pci/drivers"
)

// Binding reads what a device is bound to.
func (b Binder) Binding(a qat.Address) (Binding, error) {
	dir := filepath.Join(b.Root, devicesDir, string(a))
	if _, err := os.Stat(dir); err != nil {
		return Binding{}, fmt.Errorf("binding of %s: %w", a, err)
	}
	override, err := os.ReadFile(filepath.Join(dir, "driver_override"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Binding{}, fmt.Errorf("binding of %s: %w", a, err)
	}
	got := Binding{Driver: b.driver(a), Override: strings.TrimSpace(string(override))}
	if got.Override == "(null)" { // Linux, drivers/pci/pci-sysfs.c, driver_override_show: "%s" of NULL
		got.Override = ""
	}
	return got, nil
}

func (b Binder) driver(a qat.Address) string {
	target, err := os.Readlink(filepath.Join(b.Root, devicesDir, string(a), "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// Bind binds a device to a driver, whatever it was bound to before, and sees
// that the driver took it. It goes by driver_override, which concerns this one
// device; new_id would claim every device of its kind. A device that is in use
// must not be unbound: vfio's remove waits, in the kernel, for whoever has it
// open. See Users.
func (b Binder) Bind(a qat.Address, driver string) error {
	had := b.driver(a)
	if err := b.override(a, driver); err != nil {
		return fmt.Errorf("bind %s to %s: %w", a, driver, err)
	}
	if had == driver {
		return nil
	}
	if had != "" {
		if err := b.unbind(a, had); err != nil {
			return fmt.Errorf("bind %s to %s: %w", a, driver, err)
		}
	}
	if err := b.write("/sys/bus/pci/drivers_probe", string(a)); err != nil {
		return fmt.Errorf("bind %s to %s: probe: %w", a, driver, err)
	}
	switch got := b.driver(a); got {
	case driver:
		return nil
	case "":
		return fmt.Errorf("bind %s to %s: %w", a, driver, b.refusal(a, driver))
	default:
		return fmt.Errorf("bind %s to %s: %s took it instead", a, driver, got)
	}
}

// refusal finds out why a driver did not take a device: drivers_probe keeps a
// probe's error to itself (Linux, drivers/base/dd.c, __device_attach_driver),
// the driver's own bind returns it.
func (b Binder) refusal(a qat.Address, driver string) error {
	if _, err := os.Stat(filepath.Join(b.Root, driversDir, driver)); err != nil {
		return fmt.Errorf("the driver is not there: expected its module to be loaded")
	}
	err := b.write(driversDir+"/"+driver+"/bind", string(a))
	switch {
	case err == nil && b.driver(a) == driver:
		return nil
	case errors.Is(err, unix.EINVAL) && driver == DriverPCI:
		return fmt.Errorf("%w: vfio-pci refuses devices of its deny-list unless it is loaded with disable_denylist=1: see dmesg", err)
	case err != nil:
		return fmt.Errorf("%w: see dmesg", err)
	}
	return errors.New("the driver did not take it: see dmesg")
}

// Unbind takes a device from its driver, if it has one. See Bind for devices in
// use.
func (b Binder) Unbind(a qat.Address) error {
	driver := b.driver(a)
	if driver == "" {
		return nil
	}
	if err := b.unbind(a, driver); err != nil {
		return fmt.Errorf("unbind %s: %w", a, err)
	}
	return nil
}

func (b Binder) unbind(a qat.Address, driver string) error {
	if err := b.write(driversDir+"/"+driver+"/unbind", string(a)); err != nil {
		return fmt.Errorf("take it from %s: %w", driver, err)
	}
	return nil
}

// Restore makes a device's binding what it was. Its driver gets it back even if
// sriov_drivers_autoprobe is 0.
func (b Binder) Restore(a qat.Address, was Binding) error {
	var err error
	switch {
	case was.Driver == "":
		err = b.Unbind(a)
	case b.driver(a) != was.Driver:
		// The kernel probes a VF whose driver is named in spite of autoprobe
		// (Linux, drivers/pci/pci-driver.c, pci_device_can_probe).
		err = b.Bind(a, was.Driver)
	}
	if err != nil {
		return err
	}
	if err := b.override(a, was.Override); err != nil {
		return fmt.Errorf("restore the binding of %s: %w", a, err)
	}
	return nil
}

// override sets driver_override; a line without a name clears it (Linux,
// drivers/base/driver.c, driver_set_override).
func (b Binder) override(a qat.Address, driver string) error {
	if err := b.write(devicesDir+"/"+string(a)+"/driver_override", driver+"\n"); err != nil {
		return fmt.Errorf("set driver_override: %w", err)
	}
	return nil
}

// Foreign returns the first member of a group that keeps its VFs from being
// handed out: one that is not ours and that the kernel, or vfio, drives. nil
// means that the group is viable once all that is ours is bound to vfio.
func Foreign(g *qat.Group, ours func(address string) bool) *qat.GroupMember {
	for i := range g.Members {
		if m := &g.Members[i]; !ours(m.Address) && m.Driver != "" && !managed[m.Driver] {
			return m
		}
	}
	return nil
}
