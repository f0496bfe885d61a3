package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// Runner runs programs of the machine: update-grub, modprobe, the package
// manager. Below another root than "/" it changes its root to there, so that
// they find their own libraries and files; /proc, /sys and /dev must be mounted
// there then, as in a container that has the host's root with its mounts.
type Runner struct {
	Root string
	// Path are the directories in which programs are looked for, below Root.
	Path []string
	// NoChroot runs programs where this process is. Tests have programs that
	// know of Root by the environment's HOST_ROOT.
	NoChroot bool
	// Env is the programs' whole environment.
	Env []string
}

// NewRunner returns a runner for the machine below root.
func NewRunner(root string) *Runner {
	path := []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	r := &Runner{
		Root: root, Path: path, NoChroot: filepath.Clean(root) == "/",
		Env: []string{"PATH=" + strings.Join(path, ":"), "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"},
	}
	if !r.NoChroot {
		// systemctl does nothing where it believes to be in a chroot (systemd,
		// docs/ENVIRONMENT.md); there it talks to the machine's own systemd. Over the
		// bus: on systemd's own socket it wants to see the process of the other end
		// (src/shared/bus-util.c, bus_check_peercred), which has no number in the
		// process namespace of a container.
		r.Env = append(r.Env, "SYSTEMD_IGNORE_CHROOT=1", "SYSTEMCTL_FORCE_BUS=1")
	}
	return r
}

// Find returns the path of a program on the machine, "" if it has none such.
func (r *Runner) Find(name string) string {
	for _, dir := range r.Path {
		p := filepath.Join(dir, name)
		full := p
		if !r.NoChroot {
			full = filepath.Join(r.Root, p)
		}
		// Lstat: below a root a link may lead to where this process cannot see.
		if info, err := os.Lstat(full); err == nil && (info.Mode()&os.ModeSymlink != 0 || info.Mode().IsRegular() && info.Mode()&0o111 != 0) {
			return p
		}
	}
	return ""
}

// Run runs a program to its end, in a directory of the machine, and returns what
// it printed. Its name is looked up by Find unless it is a path. It is in a
// process group of its own, so that ^C at a terminal reaches this process only;
// when ctx is cancelled the whole group is killed.
func (r *Runner) Run(ctx context.Context, dir, name string, args ...string) (string, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	program := name
	if !strings.Contains(name, "/") {
		if program = r.Find(name); program == "" {
			return "", fmt.Errorf("run %s: the machine has no %s in %s", line, name, strings.Join(r.Path, ":"))
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Err = nil // LookPath looked where this process is, not on the machine
	cmd.Env, cmd.Dir = r.Env, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !r.NoChroot {
		cmd.SysProcAttr.Chroot = r.Root
		if dir == "" {
			cmd.Dir = "/"
		}
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		var ended *exec.ExitError
		switch {
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case !errors.As(err, &ended) && !r.NoChroot && without(unix.CAP_SYS_CHROOT):
			return "", fmt.Errorf("run %s below %s: %w: this process has no CAP_SYS_CHROOT: give its container that", line, r.Root, err)
		}
		return out.String(), fmt.Errorf("run %s: %w: %s", line, err, reason(out.String()))
	}
	return out.String(), nil
}

// complaint is a line with an error of a compiler or of a configure script.
var complaint = lazyregexp.New(`(?m)^.*\berror: .*$`)

// reason is what of a program's output says why it failed, on one line: its first
// error, or else its end.
func reason(out string) string {
	if line := complaint.FindStringSubmatch(out); line != nil {
		return strings.TrimSpace(line[0])
	}
	return lastLines(out, 3)
}

// RunUnconfined is Run for a program that needs more of the machine than a
// container has, whatever its capabilities are: the cgroup of one lets it open no
// disk, of which a boot loader's program reads where the root is. From below
// another root it is run by the machine's own systemd, with all rights, if that
// runs; it goes on then though ctx is cancelled. Where neither is possible it is
// an error: update-grub would end well and have written what does not boot.
func (r *Runner) RunUnconfined(ctx context.Context, dir, name string, args ...string) (string, error) {
	// Without that capability Run says so, and says it of the program that is meant.
	if r.NoChroot || without(unix.CAP_SYS_CHROOT) {
		return r.Run(ctx, dir, name, args...)
	}
	line := strings.Join(append([]string{name}, args...), " ")
	if !r.systemd() {
		if disk := deniedDisk(r.Root, openable); disk != "" {
			return "", fmt.Errorf("run %s below %s: this process may not open the disk %s, as in a container, and the machine's systemd cannot be asked to run it, for want of /run/dbus/system_bus_socket or systemd-run: run kata-qat provision host on the machine itself, or install D-Bus there", line, r.Root, disk)
		}
		return r.Run(ctx, dir, name, args...)
	}
	program := name
	if !strings.Contains(name, "/") {
		if program = r.Find(name); program == "" {
			return r.Run(ctx, dir, name, args...) // which says so
		}
	}
	own := []string{"--quiet", "--collect", "--wait", "--pipe", "--property=WorkingDirectory=" + cmp.Or(dir, "/")}
	for _, e := range r.Env {
		own = append(own, "--setenv="+e)
	}
	out, err := r.Run(ctx, "", "systemd-run", slices.Concat(own, []string{"--", program}, args)...)
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return out, fmt.Errorf("run %s, by the machine's systemd: %w: %s", line, ended, reason(out))
	}
	return out, err
}

// systemd tells whether the machine's systemd can be asked to run something, and
// to say how that ended: it wants its bus for that.
func (r *Runner) systemd() bool {
	for _, name := range []string{"/run/systemd/system", "/run/dbus/system_bus_socket"} {
		if _, err := os.Stat(filepath.Join(r.Root, name)); err != nil {
			return false
		}
	}
	return r.Find("systemd-run") != ""
}

// deniedDisk is the device that root is on, if this process may not open it; ""
// if it may, and where that cannot be told, as of a file system on no device.
func deniedDisk(root string, open func(string) error) string {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil || unix.Major(st.Dev) == 0 {
		return ""
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := open(filepath.Join(root, "dev/block", number)); errors.Is(err, unix.EPERM) {
		return number
	}
	return ""
}

func openable(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	return f.Close()
}

// without tells whether this process is without a capability.
func without(capability uint) bool {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return false // nothing is known
	}
	return data[capability/32].Effective&(1<<(capability%32)) == 0
}

// lastLines is the end of what a program printed, on one line.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
