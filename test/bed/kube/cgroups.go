package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupEnv tells the init the name of the bed's cgroups.
const cgroupEnv = "KATA_QAT_KUBE_CGROUP"

// cgroupPrefix is how the names of all beds' cgroups begin.
const cgroupPrefix = "kata-qat-kube-"

const cgroupRoot = "/sys/fs/cgroup"

// hierarchy is one of version 1's, or the only one of version 2.
type hierarchy struct {
	path    string // where it is mounted
	options string // of its mount; empty for version 2
}

// hierarchies are those that a kubelet uses. A machine that has version 2 beside
// the controllers of version 1 is one of version 1 for it
// (k8s.io/kubernetes, pkg/kubelet/cm, IsCgroup2UnifiedMode).
func hierarchies() ([]hierarchy, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", cgroupRoot, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []hierarchy{{path: cgroupRoot}}, nil
	}
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for line := range strings.Lines(string(content)) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(super) < 3 || super[0] != "cgroup" || filepath.Dir(mount[4]) != cgroupRoot {
			continue
		}
		options := slices.DeleteFunc(strings.Split(super[2], ","), func(o string) bool {
			return o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent=")
		})
		if slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "name=") }) {
			options = append(options, "none") // no controller, only a name
		}
		// A later mount hides an earlier one.
		all = slices.DeleteFunc(all, func(h hierarchy) bool { return h.path == mount[4] })
		all = append(all, hierarchy{path: mount[4], options: strings.Join(options, ",")})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s: a kubelet needs cgroups", cgroupRoot)
	}
	return all, nil
}

// cgroups are the cgroups of one bed, one in each hierarchy.
type cgroups struct {
	name string
	dirs []string
	lock *os.File
}

// newCgroups makes the cgroups, and clears away those of beds whose process was
// killed before it could.
func newCgroups() (_ *cgroups, err error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	if err := sweepCgroups(all); err != nil {
		return nil, err
	}
	g := &cgroups{name: fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid())}
	for _, h := range all {
		g.dirs = append(g.dirs, filepath.Join(h.path, g.name))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.remove())
		}
	}()
	for i, dir := range g.dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the bed's cgroup: %w", err)
		}
		if i == 0 {
			if g.lock, err = lockCgroup(dir); err != nil {
				return nil, err
			}
		}
		if err := prepareCgroup(all[i], dir); err != nil {
			return nil, fmt.Errorf("make the bed's cgroup: %w", err)
		}
	}
	return g, nil
}

// lockCgroup tells beds in use from those left behind: the kernel lets go of the
// lock when the process dies.
func lockCgroup(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// prepareCgroup makes controllers usable in the bed that are not by themselves.
func prepareCgroup(h hierarchy, dir string) error {
	switch {
	case h.options == "":
		return enableControllers(h.path)
	case slices.Contains(strings.Split(h.options, ","), "cpuset"):
		// A new cpuset has no CPU, and no process can join it
		// (Linux, Documentation/admin-guide/cgroup-v1/cpusets.rst).
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.path, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), value, 0)
			}
			if err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0)
	}
	return nil
}

// enableControllers gives the children of a cgroup of version 2 its controllers.
func enableControllers(dir string) error {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable the controller %s: %w", c, err)
		}
	}
	return nil
}

// remove removes the cgroups; everything in them must be dead.
func (g *cgroups) remove() error {
	var errs []error
	for _, dir := range g.dirs {
		errs = append(errs, removeCgroup(dir))
	}
	if g.lock != nil {
		errs = append(errs, g.lock.Close())
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup and all below it. What was killed leaves it a
// moment later.
func removeCgroup(dir string) error {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // one that went away meanwhile is not there
	})
	deadline := time.Now().Add(5 * time.Second)
	for _, d := range slices.Backward(dirs) {
		for {
			err := syscall.Rmdir(d)
			if err == nil || errors.Is(err, syscall.ENOENT) {
				break
			}
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("remove cgroup %s: %w", d, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// sweepCgroups clears away the cgroups that killed beds have left.
func sweepCgroups(all []hierarchy) error {
	lefts, err := filepath.Glob(filepath.Join(all[0].path, cgroupPrefix+"*"))
	if err != nil {
		return err
	}
	for _, left := range lefts {
		lock, err := lockCgroup(left)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, h := range all {
			if err := removeCgroup(filepath.Join(h.path, filepath.Base(left))); err != nil {
				return errors.Join(err, lock.Close())
			}
		}
		if err := lock.Close(); err != nil {
			return err
		}
	}
	return nil
}

// enterCgroups moves this process into the bed's cgroups and makes them the
// roots of what it and its children see.
func enterCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := os.WriteFile(filepath.Join(h.path, name, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter the bed's cgroup: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if all[0].options == "" {
		return remountCgroup2()
	}
	if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", cgroupRoot, err)
	}
	for _, h := range all {
		if err := os.Mkdir(h.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", h.path, "cgroup", 0, h.options); err != nil {
			return fmt.Errorf("mount %s (%s): %w", h.path, h.options, err)
		}
	}
	return nil
}

// remountCgroup2 shows version 2 from the bed's cgroup on. Only a cgroup without
// processes can give its children controllers, so that they move into a child.
func remountCgroup2() error {
	// The kernel refuses the same filesystem on the same mount point.
	if err := unix.Unmount(cgroupRoot, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", cgroupRoot, err)
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", cgroupRoot, err)
	}
	leaf := filepath.Join(cgroupRoot, "bed")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	return enableControllers(cgroupRoot)
}
