// Package machine is where the VM of a sandbox is found in a lab guest: what
// katavm makes of a VM while it runs, and what it leaves when it has ended. It
// reads what the kernel and the VM say, not what anybody meant to start.
package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Root is the directory of all machines.
const Root = "/run/katavm"

// Payload is the kernel that machines run, test/lab/payload/payload.c.
const Payload = "/opt/vm/payload.elf"

// Machine is the VM of a sandbox, by the sandbox's id.
type Machine string

func (m Machine) path(name string) string { return filepath.Join(Root, string(m), name) }

// Dir is the machine's directory.
func (m Machine) Dir() string { return m.path("") }

// Serial is the socket of its serial port, and Console a file with all that it
// wrote there.
func (m Machine) Serial() string  { return m.path("serial") }
func (m Machine) Console() string { return m.path("console") }

// PIDFile is QEMU's.
func (m Machine) PIDFile() string { return m.path("pid") }

// Word is what the machine is to write into its VF: no other machine has it.
func (m Machine) Word() string { return string(m[:8]) }

// PID is that of the QEMU that runs the machine.
func (m Machine) PID() (int, error) {
	b, err := os.ReadFile(m.PIDFile())
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(b)))
}

// Functions are the PCI functions that the command line of the running QEMU hands
// to the machine, and Nodes the files below /dev/vfio that it has open.
func (m Machine) Functions() ([]string, error) {
	pid, err := m.PID()
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	var all []string
	for arg := range strings.SplitSeq(string(b), "\x00") {
		if rest, ok := strings.CutPrefix(arg, "vfio-pci,host="); ok {
			all = append(all, rest)
		} else if strings.Contains(arg, "vfio") {
			return nil, fmt.Errorf("QEMU has the argument %q: expected VFs as vfio-pci,host=ADDRESS", arg)
		}
	}
	return all, nil
}

// Nodes: see Functions.
func (m Machine) Nodes() ([]string, error) {
	pid, err := m.PID()
	if err != nil {
		return nil, err
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed in the meantime
		}
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/dev/vfio/") {
			all = append(all, target)
		}
	}
	return all, nil
}

// Said are the lines that the payload wrote so far that begin with a word, without
// it: "pci", "vf", "wrote", "ready", "requests" or "failed:".
func (m Machine) Said(word string) ([]string, error) {
	b, err := os.ReadFile(m.Console())
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		first, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if first == word && strings.HasSuffix(line, "\n") {
			all = append(all, rest)
		}
	}
	return all, nil
}
