package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/kata-qat/kata-qat/test/lab/report"
)

// families are those that qemu/qatemu.c emulates, as qat.Families calls them.
var families = []string{"dh895xcc", "c62x", "c3xxx", "d15xx", "c4xxx", "200xx", "4xxx", "401xx", "402xx", "420xx", "6xxx"}

// Families returns the names of the families that a PF can have, oldest first.
func Families() []string { return slices.Clone(families) }

func emulated(family string) bool { return slices.Contains(families, family) }

// qemuArgs is QEMU's command line for a guest. Its console is QEMU's standard
// output, its report file descriptor 3.
func qemuArgs(cfg Config, kernel, initrd string) []string {
	// Under emulation an interrupt of a CPU's timer is lost now and then. A
	// periodic timer ticks on; one that is set for each tick is never set again.
	cpu, machine, cmdline := "max", "q35", "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check nohz=off highres=off"
	if cfg.Nested {
		cpu += ",+svm"
	}
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg,thread=multi"}
	if cfg.IOMMU {
		// intel-iommu with interrupt remapping insists on a split irqchip, and
		// on being there before the devices that it is for.
		machine += ",kernel-irqchip=split"
		args = append(args, "-device", "intel-iommu,intremap=on,caching-mode=on")
		cmdline += " intel_iommu=on"
	}
	if cfg.Cmdline != "" {
		cmdline += " " + cfg.Cmdline
	}
	args = append(args, "-machine", machine, "-cpu", cpu, "-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.Memory),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "file,id=report,path=/dev/fd/3", "-serial", "chardev:report",
		"-kernel", kernel, "-initrd", initrd, "-append", cmdline)
	args = append(args, numaArgs(cfg)...)
	for i, pf := range cfg.PFs {
		port := fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d,slot=%d", i, i+1, i+1)
		if cfg.NUMANodes > 0 {
			port += fmt.Sprintf(",bus=node%d", pf.NUMA)
		}
		if !pf.ACS {
			port += ",disable-acs=on"
		}
		args = append(args, "-device", port, "-device", fmt.Sprintf("qat-%s,bus=port%d", pf.Family, i))
	}
	if cfg.Disk != "" {
		args = append(args, "-drive", "if=virtio,format=raw,cache=unsafe,file="+cfg.Disk)
	}
	return append(args, cfg.QEMUArgs...)
}

// numaArgs splits memory and CPUs among the nodes and gives each node a PCI
// host bridge of its own, which is what makes a device's numa_node.
func numaArgs(cfg Config) []string {
	var args []string
	for n := range cfg.NUMANodes {
		size := cfg.Memory / cfg.NUMANodes
		if n == 0 {
			size += cfg.Memory % cfg.NUMANodes
		}
		node := fmt.Sprintf("node,nodeid=%d,memdev=ram%d", n, n)
		for cpu := n; cpu < cfg.CPUs; cpu += cfg.NUMANodes {
			node += fmt.Sprintf(",cpus=%d", cpu)
		}
		args = append(args,
			"-object", fmt.Sprintf("memory-backend-ram,id=ram%d,size=%dM", n, size), "-numa", node,
			"-device", fmt.Sprintf("pxb-pcie,id=node%d,bus=pcie.0,bus_nr=%d,numa_node=%d", n, 32*(n+1), n))
	}
	return args
}

// run starts QEMU and follows the guest's report.
func (l *lab) run(ctx context.Context, args []string, log io.Writer) (*Result, error) {
	start := time.Now()
	rd, wr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	console := &console{stuck: func() { cancel(errLostTimer) }}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	// Only QEMU itself can load the device emulation.
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+filepath.Join(l.dir, "qatemu.so"))
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = console, &stderr, []*os.File{wr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The death signal comes when the thread ends that started QEMU
		// (prctl(2)), so the thread must stay for as long as QEMU.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		wr.Close()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	res := &Result{}
	followErr := follow(rd, res, log)
	qemuErr := <-ended
	res.Total, res.Console = time.Since(start), console.text.String()
	res.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	switch {
	case followErr == nil:
		return res, nil
	case ctx.Err() != nil:
		return res, fmt.Errorf("guest is not done after %.0f s: %w: console:\n%s%s", res.Total.Seconds(), context.Cause(ctx), tail(res.Console), &stderr)
	case qemuErr != nil:
		return res, fmt.Errorf("run QEMU: %w: %s", qemuErr, &stderr)
	}
	return res, fmt.Errorf("%w: console:\n%s%s", followErr, tail(res.Console), &stderr)
}

// errLostTimer is a guest that waits for an interrupt of a timer that QEMU's
// emulation has lost.
var errLostTimer = errors.New("QEMU lost a timer of the guest's")

// console keeps what a guest's kernel says, and tells of a lost timer.
type console struct {
	text  bytes.Buffer
	stuck func()
}

// lostTimer is how the kernel says so, after some twenty seconds (Linux,
// kernel/rcu/tree_stall.h, rcu_check_gp_kthread_expired_fqs_timer).
const lostTimer = "timer wakeup didn't happen"

func (c *console) Write(p []byte) (int, error) {
	from := max(0, c.text.Len()-len(lostTimer)) // it may come in two pieces
	c.text.Write(p)
	if bytes.Contains(c.text.Bytes()[from:], []byte(lostTimer)) {
		c.stuck()
	}
	return len(p), nil
}

// errWentDown is a guest that ended without a last word.
var errWentDown = errors.New("guest went down before its command ended")

// follow reads the guest's report until QEMU ends.
func follow(rd io.Reader, res *Result, log io.Writer) error {
	err := errWentDown
	for dec := json.NewDecoder(rd); ; {
		var e report.Event
		switch derr := dec.Decode(&e); {
		case errors.Is(derr, io.EOF), errors.Is(derr, io.ErrUnexpectedEOF): // cut short by the guest's end
			return err
		case derr != nil:
			return fmt.Errorf("read the guest's report: %w", derr)
		}
		switch e.Kind {
		case report.Started:
			res.Boot, res.Kernel = e.Uptime, e.Text
		case report.Output:
			res.Output = append(res.Output, e.Text)
			if log != nil {
				fmt.Fprintln(log, e.Text)
			}
		case report.Exited:
			res.ExitCode, err = e.Code, nil
		case report.Failed:
			err = fmt.Errorf("guest: %s", e.Text)
		}
	}
}
