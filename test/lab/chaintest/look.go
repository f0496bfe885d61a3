package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/test/lab/katavm/machine"
)

const (
	// The part of the PF's BAR 0 that test/lab/qemu/qatemu.c has messages in.
	messages    = 0x800
	messagesEnd = 0xc00

	engines = 8
)

// view is what the host sees of the one PF.
type view struct {
	pf       *qat.PF
	requests [engines]uint64 // the firmware's counters
	messages map[int]string  // the last word of VFs that wrote one, by index, as the payload says it
}

func look() (*view, error) {
	inv, err := qat.Discover("/")
	if err != nil {
		return nil, err
	}
	if len(inv.PFs) != 1 {
		return nil, fmt.Errorf("the guest has %d PFs, expected 1", len(inv.PFs))
	}
	v := &view{pf: &inv.PFs[0], messages: map[int]string{}}
	vitals := qat.ReadVitals("/", v.pf)
	if vitals.Err != nil {
		return nil, vitals.Err
	}
	for _, e := range vitals.Counters {
		v.requests[e.Index] = e.Requests
	}
	return v, v.readMessages()
}

// readMessages reads the PF's registers past its driver: sysfs lets root map
// them.
func (v *view) readMessages() error {
	file := filepath.Join("/sys/bus/pci/devices", string(v.pf.Address), "resource0")
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	bar, err := unix.Mmap(int(f.Fd()), 0, messagesEnd, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", file, err)
	}
	for i := range (messagesEnd - messages) / 8 {
		if w := atomic.LoadUint64((*uint64)(unsafe.Pointer(&bar[messages+8*i]))); w != 0 {
			v.messages[i] = fmt.Sprintf("%08x", w)
		}
	}
	return unix.Munmap(bar)
}

func (v *view) vf(a qat.Address) *qat.VF {
	for i := range v.pf.VFs {
		if v.pf.VFs[i].Address == a {
			return &v.pf.VFs[i]
		}
	}
	return nil
}

// expect is an error unless two values are the same.
func expect[T any](what string, got, want T) error {
	if reflect.DeepEqual(got, want) {
		return nil
	}
	return fmt.Errorf("%s: %v, expected %v", what, got, want)
}

// expectMachine sees that a machine that runs has a VF, or none if it is nil, and
// that what runs in it saw the same.
func expectMachine(m machine.Machine, vf *qat.VF) error {
	functions, ferr := m.Functions()
	nodes, nerr := m.Nodes()
	pci, perr := m.Said("pci")
	wrote, werr := m.Said("wrote")
	if err := errors.Join(ferr, nerr, perr, werr); err != nil {
		return err
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	var seen []string
	for _, line := range pci {
		if _, id, _ := strings.Cut(line, " "); isQAT(id) {
			seen = append(seen, id)
		}
	}
	var wantFunctions, wantNodes, wantSeen, wantWrote []string
	if vf != nil {
		wantFunctions = []string{string(vf.Address)}
		wantNodes = []string{fmt.Sprintf("/dev/vfio/%d", vf.Group.ID), "/dev/vfio/vfio"}
		wantSeen = []string{fmt.Sprintf("8086:%04x", vf.Family.VFDevice)}
		wantWrote = []string{m.Word()}
	}
	if len(pci) == 0 {
		return errors.New("the payload saw no PCI function at all")
	}
	return errors.Join(
		expect("functions on QEMU's command line", functions, wantFunctions),
		expect("VFIO nodes that QEMU has open", nodes, wantNodes),
		expect("QAT functions that the payload saw", seen, wantSeen),
		expect("words that the payload wrote", wrote, wantWrote),
	)
}

// isQAT tells whether vendor:device is a function of any QAT family.
func isQAT(id string) bool {
	return slices.ContainsFunc(qat.Families, func(f qat.Family) bool {
		return id == fmt.Sprintf("8086:%04x", f.PFDevice) || id == fmt.Sprintf("8086:%04x", f.VFDevice)
	})
}

// expectFree sees that nobody holds a VF any more: not for the daemon, and not for
// the kernel.
func expectFree(ctx context.Context, v *view) error {
	c, err := api.Dial(ctx, api.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.Assignments(ctx, &nodev1.AssignmentsRequest{Client: api.Self()})
	if err != nil {
		return err
	}
	var all []*qat.VF
	for i := range v.pf.VFs {
		all = append(all, &v.pf.VFs[i])
	}
	users, err := vfio.Users("/", all)
	return errors.Join(err,
		expect("VFs that the daemon keeps for pods", len(answer.GetAssignments()), 0),
		expect("processes that have a VF open", len(users), 0),
	)
}

// qemus are the processes that run QEMU.
func qemus() (pids []int, _ error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		// Those of kernel threads, zombies and ended processes lead nowhere.
		if target, err := os.Readlink(l); err == nil && strings.HasPrefix(filepath.Base(target), "qemu-system-") {
			pid, err := strconv.Atoi(strings.Split(l, "/")[2])
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
