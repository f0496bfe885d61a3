// Command katavm is the virtual machine of a sandbox behind the stand-in for
// Kata's shim, in a guest of the lab. As a Kata shim does for cold-plug, it takes
// the VFIO groups from linux.devices of the bundle's config.json, and nothing from
// elsewhere:
//
//	katavm start BUNDLE    boot the machine and return when what runs in it is ready
//	katavm stop BUNDLE     have it end, and return when it is gone
//
// Package machine knows where a machine is found.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/test/lab/katavm/machine"
)

// patience is for a machine that is emulated within an emulated one.
const patience = 60 * time.Second

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "katavm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: katavm start|stop BUNDLE")
	}
	bundle := filepath.Clean(args[1])
	m := machine.Machine(filepath.Base(bundle)) // containerd names a bundle by its container's id
	switch args[0] {
	case "start":
		return start(ctx, m, bundle)
	case "stop":
		return stop(ctx, m)
	}
	return fmt.Errorf("%q: expected start or stop", args[0])
}

func start(ctx context.Context, m machine.Machine, bundle string) error {
	groups, err := vfioGroups(bundle)
	if err != nil {
		return err
	}
	// Without KVM: the guest would need QEMU's emulation of SVM, which is sound on
	// one CPU only, and it has work for two.
	args := []string{
		"-daemonize", "-pidfile", m.PIDFile(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg,tb-size=32", "-machine", "pc", "-m", "32",
		"-chardev", "socket,id=serial,server=on,wait=off,path=" + m.Serial() + ",logfile=" + m.Console(), "-serial", "chardev:serial",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-kernel", machine.Payload, "-append", m.Word(),
	}
	for _, g := range groups {
		functions, err := os.ReadDir(filepath.Join("/sys/kernel/iommu_groups", g, "devices"))
		if err != nil {
			return fmt.Errorf("functions of VFIO group %s: %w", g, err)
		}
		for _, f := range functions {
			args = append(args, "-device", "vfio-pci,host="+f.Name())
		}
	}
	if err := os.MkdirAll(m.Dir(), 0o700); err != nil {
		return err
	}
	// What runs in it never rests: it gets the time that nobody else wants.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 19); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	// It returns when all devices are there, and the machine runs.
	if out, err := exec.CommandContext(ctx, "qemu-system-x86_64", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-system-x86_64 %s: %w: %s", strings.Join(args, " "), err, out)
	}
	if err := ready(ctx, m); err != nil {
		return errors.Join(err, kill(m))
	}
	return nil
}

// vfioGroups are those whose nodes the bundle's spec has.
func vfioGroups(bundle string) (groups []string, _ error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("config.json of bundle %s: %w", bundle, err)
	}
	if spec.Linux == nil {
		return nil, nil
	}
	for _, d := range spec.Linux.Devices {
		if g, ok := strings.CutPrefix(d.Path, "/dev/vfio/"); ok && g != "vfio" {
			groups = append(groups, g)
		}
	}
	return groups, nil
}

// ready waits for the payload's word.
func ready(ctx context.Context, m machine.Machine) error {
	for {
		done, err := m.Said("ready")
		if err != nil || len(done) > 0 {
			return err
		}
		failed, err := m.Said("failed:")
		if err != nil {
			return err
		}
		if len(failed) > 0 {
			return fmt.Errorf("the payload failed: %s", failed[0])
		}
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(m.Console())
			return fmt.Errorf("the payload is not ready after %s, it said %q", patience, said)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop has the payload end, upon which QEMU ends.
func stop(ctx context.Context, m machine.Machine) error {
	pid, err := m.PID()
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("QEMU of %s, process %d: %w: expected it to run until now", m, pid, err)
	}
	defer unix.Close(fd)
	c, err := net.Dial("unix", m.Serial())
	if err == nil {
		defer c.Close()
		_, err = c.Write([]byte{'q'})
	}
	if err == nil {
		err = gone(ctx, fd)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("have QEMU of %s, process %d, end: %w", m, pid, err), kill(m))
	}
	return nil
}

// gone waits for the end of a process.
func gone(ctx context.Context, pidfd int) error {
	deadline, _ := ctx.Deadline()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("it still runs after %s", patience)
		default:
			return nil
		}
	}
}

func kill(m machine.Machine) error {
	pid, err := m.PID()
	if errors.Is(err, os.ErrNotExist) { // QEMU removes it when it ends
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}
