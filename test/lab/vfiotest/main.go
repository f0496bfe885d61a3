// Command vfiotest shows that functions of the lab's emulated QAT devices can
// be used through VFIO as a virtual machine monitor or DPDK would use them:
//
//	vfiotest 0000:01:00.1 0000:01:00.2
//
// For each it opens the IOMMU group, checks that it is viable, reads the
// configuration space and BAR 0, resets the function, has it move data by DMA,
// takes the interrupt, and sees that the IOMMU refuses an address that was not
// mapped. It prints one line for each function and exits with 1 if one of them
// does not pass.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The registers of test/lab/qemu/qatemu.c in BAR 0.
const (
	regScratch  = 0x00
	regSource   = 0x40
	regDest     = 0x48
	regLength   = 0x50
	regDoorbell = 0x58
	regStatus   = 0x60

	statusDone = 1 << 63
	xor        = 0x5a // what a request does to every byte
)

const (
	iova     = 0x10000    // where the memory for DMA is mapped for the device
	unmapped = 0x70000000 // where nothing is
	request  = 4096
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: vfiotest BDF...")
		os.Exit(2)
	}
	failed := false
	for _, bdf := range os.Args[1:] {
		passed, err := test(bdf)
		if err != nil {
			fmt.Printf("FAIL %s: %v (passed: %s)\n", bdf, err, strings.Join(passed, ", "))
			failed = true
			continue
		}
		fmt.Printf("PASS %s: %s\n", bdf, strings.Join(passed, ", "))
	}
	if failed {
		os.Exit(1)
	}
}

// test runs all checks on a function and returns what passed.
func test(bdf string) (passed []string, err error) {
	link, err := os.Readlink("/sys/bus/pci/devices/" + bdf + "/iommu_group")
	if err != nil {
		return nil, fmt.Errorf("find its IOMMU group: %w", err)
	}
	group := filepath.Base(link)
	dev, err := openDevice(group, bdf)
	if err != nil {
		return nil, err
	}
	defer dev.close()
	checks := []struct {
		name string
		run  func(*device) error
	}{
		{"viable group " + group, func(*device) error { return nil }}, // or it would not have opened
		{"configuration space", checkConfig},
		{"BAR 0", checkBAR},
		{"reset", checkReset},
		{"DMA", checkDMA},
		{"MSI-X", checkInterrupt},
		{"unmapped address refused", checkIsolation},
	}
	for _, c := range checks {
		if err := c.run(dev); err != nil {
			return passed, fmt.Errorf("%s: %w", c.name, err)
		}
		passed = append(passed, c.name)
	}
	return passed, nil
}

func checkConfig(d *device) error {
	want, err := os.ReadFile("/sys/bus/pci/devices/" + d.name + "/device")
	if err != nil {
		return err
	}
	var id [4]byte
	if err := d.read(regionConfig, 0, id[:]); err != nil {
		return err
	}
	// A VF's own registers hold all ones for the vendor; VFIO shows the right ones (PCIe, SR-IOV 9.3.4.1).
	got := fmt.Sprintf("%#04x:%#04x", binary.LittleEndian.Uint16(id[:]), binary.LittleEndian.Uint16(id[2:]))
	if want := "0x8086:" + string(bytes.TrimSpace(want)); got != want {
		return fmt.Errorf("it says %s, expected %s as in sysfs", got, want)
	}
	return nil
}

func checkBAR(d *device) error {
	const value = 0x0123456789abcdef
	if err := d.setReg(regScratch, value); err != nil {
		return err
	}
	return d.expectReg(regScratch, value)
}

// checkReset relies on checkBAR to have left something in the register.
func checkReset(d *device) error {
	if err := d.reset(); err != nil {
		return err
	}
	return d.expectReg(regScratch, 0)
}

func checkDMA(d *device) error {
	// Memory space and bus mastering, which a reset switches off.
	if err := d.write(regionConfig, pciCommand, []byte{0x6, 0}); err != nil {
		return err
	}
	if err := d.watchInterrupt(); err != nil {
		return err
	}
	source, dest := d.memory[:request], d.memory[request:2*request]
	for i := range source {
		source[i], dest[i] = byte(i*7), 0
	}
	if err := d.submit(iova); err != nil {
		return err
	}
	if err := d.expectReg(regStatus, statusDone); err != nil {
		return err
	}
	for i := range source {
		if dest[i] != source[i]^xor {
			return fmt.Errorf("byte %d is %#x, expected %#x", i, dest[i], source[i]^xor)
		}
	}
	return nil
}

func checkInterrupt(d *device) error {
	fds := []unix.PollFd{{Fd: int32(d.interrupt), Events: unix.POLLIN}}
	const timeout = 5 * time.Second
	n, err := unix.Poll(fds, int(timeout.Milliseconds()))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(fds, int(timeout.Milliseconds()))
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("none came within %s", timeout)
	}
	return nil
}

func checkIsolation(d *device) error {
	if err := d.submit(unmapped); err != nil {
		return err
	}
	status, err := d.reg(regStatus)
	if err != nil {
		return err
	}
	if status == statusDone {
		return fmt.Errorf("the device read %#x, which is not mapped for it", unmapped)
	}
	return nil
}
