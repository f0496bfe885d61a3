// Package lab boots virtual machines that have QAT devices to all appearances:
// an unmodified QEMU with emulated PCI functions that carry QAT ids and a real
// SR-IOV capability, a Debian kernel, an IOMMU, and stand-ins for the PFs'
// drivers. What a test does in such a guest, the kernel does for real: enabling
// VFs, IOMMU groups, vfio-pci, VFIO's ioctls, DMA and interrupts. No QAT driver
// and no cryptography runs there.
//
// setup.sh installs and builds what the lab needs; nothing here needs KVM or,
// once that is done, root.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/lab/report"
)

// PF is a QAT device of the guest.
type PF struct {
	// Family is its name in qat.Families.
	Family string
	// NUMA is the node it is near to; it has a meaning if any PF has one that
	// is not 0, or Config.NUMANodes says that there are nodes.
	NUMA int
	// ACS separates the PF and its VFs into IOMMU groups of their own. Without
	// it they share one, with the port that they are behind.
	ACS bool
}

// Config describes a guest and what is to run in it. The zero value of every
// field but Run and Script is a working default.
type Config struct {
	PFs       []PF
	IOMMU     bool // an Intel IOMMU, in use
	NUMANodes int  // 0: as many as PFs name, and none at all if they name only node 0
	Nested    bool // virtual machines can run in the guest, by kvm_amd; on one CPU
	CPUs      int  // 2 by default
	Memory    int  // MiB, 1024 by default; the initrd, with all Files, is in it

	// Disk is an image that SystemDisk made. The guest runs from it, with systemd
	// and udev, and leaves it changed: Files go onto it, and Run or Script, which
	// find Debian's commands, run as a service. Its end is a reboot.
	Disk string
	// Files are put into the guest: a file or a directory of this machine by
	// the path that it gets. A program that is linked dynamically brings its
	// libraries along.
	Files map[string]string
	// Modules are loaded in order before the command runs, each a name that
	// parameters may follow: "vfio-pci disable_denylist=1".
	Modules []string
	// Provide are modules that are there for modprobe, but not loaded. Those
	// of VFIO and the drivers' stand-ins always are.
	Provide []string
	// Run is the command line to run; Script is one for /bin/sh -eu instead.
	// Either finds busybox's commands, and vfiotest.
	Run    []string
	Script string
	// Env is added to the command's environment.
	Env []string

	Cmdline  string   // added to the kernel's command line
	QEMUArgs []string // added to QEMU's
	// Timeout bounds the guest's life, 4 minutes by default.
	Timeout time.Duration
	// Log gets the command's output as it comes.
	Log io.Writer
}

// Result is what came of a guest whose command ran to its end.
type Result struct {
	ExitCode int      // of the command; 128 and the number of a signal that ended it
	Output   []string // its lines, of both standard output and standard error
	Console  string   // the kernel's log
	Kernel   string   // its release

	Boot  time.Duration // until the command could run, on the guest's clock
	Total time.Duration // until the guest was off, on ours
	CPU   time.Duration // that QEMU used: on a busy machine, what Total could be
}

// Boot starts a guest, waits for the command in it, and returns what it
// reported. An exit status other than 0 is no error; a guest that could not run
// the command, that went down before the command ended, or that took too long
// is one, and then Result holds what is known.
func Boot(ctx context.Context, cfg Config) (*Result, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l, err := open()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	dir, err := os.MkdirTemp("", "kata-qat-lab-")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := l.writeInitrd(ctx, initrd, cfg); err != nil {
		return nil, fmt.Errorf("lab: make the initrd: %w", err)
	}
	args := qemuArgs(cfg, filepath.Join(l.dir, "vmlinux"), initrd)
	res, err := l.runFor(ctx, cfg, args)
	// What the emulation did to the guest says nothing of what is tested. A disk
	// is not what it was any more.
	for again := 0; again < 2 && errors.Is(err, errLostTimer) && cfg.Disk == ""; again++ {
		if cfg.Log != nil {
			fmt.Fprintf(cfg.Log, "lab: %v: once more\n", err)
		}
		res, err = l.runFor(ctx, cfg, args)
	}
	if err != nil {
		return res, fmt.Errorf("lab: %w", err)
	}
	return res, nil
}

func (l *lab) runFor(ctx context.Context, cfg Config, args []string) (*Result, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	return l.run(ctx, args, cfg.Log)
}

// Run boots a guest for a test, which fails unless the command exits with 0.
// The command's output goes to the test's log.
func Run(tb testing.TB, cfg Config) *Result {
	tb.Helper()
	res, err := Boot(tb.Context(), cfg)
	if res != nil {
		tb.Log(res.summary())
	}
	if err != nil {
		tb.Fatal(err)
	}
	if res.ExitCode != 0 {
		tb.Fatalf("the guest's command exited with %d, expected 0\nconsole:\n%s", res.ExitCode, tail(res.Console))
	}
	return res
}

// summary is how long a guest took, and its command's output.
func (res *Result) summary() string {
	return fmt.Sprintf("guest: booted in %.1f s, off after %.1f s, with %.1f s of CPU\n%s",
		res.Boot.Seconds(), res.Total.Seconds(), res.CPU.Seconds(), strings.Join(res.Output, "\n"))
}

// complete fills in the defaults and refuses what cannot work.
func (cfg *Config) complete() error {
	switch {
	case (len(cfg.Run) == 0) == (cfg.Script == ""):
		return errors.New("nothing or two things to run: expected either Run or Script")
	case cfg.Nested && cfg.CPUs > 1:
		return fmt.Errorf("%d CPUs with nested virtualization: QEMU's emulation of SVM loses timers with more than one", cfg.CPUs)
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
		if cfg.Nested {
			cfg.CPUs = 1
		}
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1024
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 4 * time.Minute
	}
	if cfg.Nested {
		cfg.Modules = append([]string{"kvm_amd"}, cfg.Modules...)
	}
	for i, pf := range cfg.PFs {
		if !emulated(pf.Family) {
			return fmt.Errorf("PF %d of family %q: QEMU emulates none such: expected one of %s", i, pf.Family, strings.Join(Families(), ", "))
		}
		if pf.NUMA > 0 {
			cfg.NUMANodes = max(cfg.NUMANodes, pf.NUMA+1)
		}
	}
	return nil
}

func (cfg *Config) orders() report.Orders {
	o := report.Orders{Modules: cfg.Modules, Run: cfg.Run, Env: cfg.Env}
	if cfg.Script != "" {
		o.Run = []string{"/bin/busybox", "sh", "-eu", scriptPath}
	}
	if cfg.Disk != "" {
		o.Disk = "/dev/vda"
		if cfg.Script != "" {
			o.Run = []string{"/bin/sh", "-eu", path.Join(report.SystemDirectory, "script")}
		}
	}
	return o
}

// tail is the end of a log that is worth showing.
func tail(log string) string {
	const most = 4000
	if len(log) <= most {
		return log
	}
	return "…" + log[len(log)-most:]
}
