package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

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
	return &Runner{
		Root: root, Path: path, NoChroot: filepath.Clean(root) == "/",
		// systemctl does nothing where it believes to be in a chroot (systemd,
		// docs/ENVIRONMENT.md); there it talks to the machine's own systemd.
		Env: []string{"PATH=" + strings.Join(path, ":"), "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_IGNORE_CHROOT=1"},
	}
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
		if ctx.Err() != nil {
			err = context.Cause(ctx)
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

// lastLines is the end of what a program printed, on one line.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
