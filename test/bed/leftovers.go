package bed

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Beds without a directory of their own are made here. The name is short for
// the sake of the sockets in it.
const (
	tempDir    = "/tmp"
	tempPrefix = "kq"
)

// marker is the variable by which every process of a bed is known: containerd
// has it, and its shims inherit it.
func marker(dir string) string { return "KATA_QAT_BED=" + dir }

// leftovers are what a bed has on the machine beside its directory.
type leftovers struct {
	processes []proc
	mounts    []string
	cgroups   []string // of containers; not their parent, which is the bed's
}

type proc struct {
	pid  int
	name string
}

func (l leftovers) empty() bool { return len(l.processes)+len(l.mounts)+len(l.cgroups) == 0 }

func (l leftovers) String() string {
	var parts []string
	for _, p := range l.processes {
		parts = append(parts, fmt.Sprintf("process %d (%s)", p.pid, p.name))
	}
	for _, m := range l.mounts {
		parts = append(parts, "mount "+m)
	}
	for _, c := range l.cgroups {
		parts = append(parts, "cgroup "+c)
	}
	return strings.Join(parts, ", ")
}

// find looks for what the bed in dir has on the machine.
func find(dir string) (leftovers, error) {
	processes, err := findProcesses(dir)
	if err != nil {
		return leftovers{}, err
	}
	mounts, err := findMounts(dir)
	if err != nil {
		return leftovers{}, err
	}
	l := leftovers{processes: processes, mounts: mounts}
	for _, parent := range cgroupDirs(dir) {
		l.cgroups = append(l.cgroups, childDirs(parent)...)
	}
	return l, nil
}

// settle waits for a bed to be gone, as a shim ends a moment after its pod, and
// returns what is there when the time is up.
func settle(dir string, timeout time.Duration) (leftovers, error) {
	deadline := time.Now().Add(timeout)
	for {
		found, err := find(dir)
		if err != nil || found.empty() || time.Now().After(deadline) {
			return found, err
		}
		time.Sleep(poll)
	}
}

// sweep clears away all that the bed in dir has on the machine, by force, and
// the directory. Sweeping what is not there is no error.
func sweep(dir string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		found, err := find(dir)
		if err != nil {
			return err
		}
		for _, p := range found.processes {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d (%s): %w", p.pid, p.name, err)
			}
		}
		for _, m := range slices.Backward(found.mounts) {
			if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
		busy := removeCgroups(append(cgroupDirs(dir), found.cgroups...))
		if busy == nil && found.empty() {
			break
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("clear away what %s left: %s", dir, found), busy)
		}
		time.Sleep(poll) // for the killed to be gone from their cgroups
	}
	if err := syscall.Unmount(stateDir(dir), syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("unmount %s: %w", stateDir(dir), err)
	}
	return os.RemoveAll(dir)
}

// stateDir is containerd's state directory of the bed in dir.
func stateDir(dir string) string { return filepath.Join(dir, "state") }

// mountState puts the state directory in memory, where /run has it on every
// node: what is written durably into a bundle costs a disk nothing there. Who
// may not mount gets a directory like any other.
func mountState(dir string) error {
	state := stateDir(dir)
	if err := os.Mkdir(state, 0o711); err != nil {
		return err
	}
	err := syscall.Mount("tmpfs", state, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0711,size=256m")
	if err != nil && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("mount a tmpfs at %s: %w", state, err)
	}
	return nil
}

// newLock makes the lock that tells a bed in use from one left behind. The
// kernel lets go of it when the process dies, however it dies. It has its name
// only once it is held, so that no other process takes it first.
func newLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// sweepStale clears away the beds whose process was killed before their Stop.
func sweepStale() error {
	dirs, err := filepath.Glob(filepath.Join(tempDir, tempPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := sweepIfStale(dir); err != nil {
			return fmt.Errorf("clear away %s, which a killed process left: %w", dir, err)
		}
	}
	return nil
}

func sweepIfStale(dir string) error {
	if !ours(dir) {
		return nil
	}
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil
		}
		return err
	}
	return sweep(dir)
}

// ours tells a bed's directory from what others have made in /tmp.
func ours(dir string) bool {
	for _, path := range []string{dir, filepath.Join(dir, "lock")} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return false
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != os.Geteuid() {
			return false
		}
	}
	return true
}

// findProcesses finds containerd and its shims by their environment, and the
// containers' processes, which do not inherit it, by their cgroup.
func findProcesses(dir string) ([]proc, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []proc
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A process that ends meanwhile cannot be read, and is not left behind.
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		cgroups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		marked := slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(kv []byte) bool { return string(kv) == marker(dir) })
		if marked || bytes.Contains(cgroups, []byte(":"+cgroup(dir)+"/")) {
			name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
			found = append(found, proc{pid: pid, name: strings.TrimSpace(string(name))})
		}
	}
	return found, nil
}

// unescape undoes the octal escapes of mountinfo (Linux, fs/proc_namespace.c).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// findMounts finds the mounts below dir, in the order in which they were made,
// but for the bed's own.
func findMounts(dir string) ([]string, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if target := unescape.Replace(fields[4]); strings.HasPrefix(target, dir+"/") && target != stateDir(dir) {
			found = append(found, target)
		}
	}
	return found, nil
}

// cgroupDirs are the parents of the bed's cgroups, of which version 1 has one
// in each hierarchy.
func cgroupDirs(dir string) []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(pattern + cgroup(dir)) // the pattern is a good one
		dirs = append(dirs, found...)
	}
	return dirs
}

func childDirs(dir string) []string {
	var found []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != dir {
			found = append(found, path)
		}
		return nil // one that went away meanwhile is not there
	})
	return found
}

// removeCgroups removes cgroups given parents first.
func removeCgroups(dirs []string) error {
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// socketDir17 is where containerd 1.7 puts the sockets of shims, whatever its
// state directory is (containerd 1.7, runtime/v2/shim/util_unix.go).
const socketDir17 = "/run/containerd/s"

func shimSockets() map[string]bool {
	sockets := make(map[string]bool)
	found, _ := filepath.Glob(socketDir17 + "/*") // the pattern is a good one
	for _, s := range found {
		sockets[s] = true
	}
	return sockets
}

// newSockets are the shims' sockets that were not there before the bed.
func newSockets(before map[string]bool, version string) []string {
	if version != "1.7" {
		return nil
	}
	var left []string
	for s := range shimSockets() {
		if !before[s] {
			left = append(left, s)
		}
	}
	slices.Sort(left)
	return left
}
