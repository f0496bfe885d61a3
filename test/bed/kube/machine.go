package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir holds what a bed has that a machine would not: logs, keys, and the upper
// layers of what is laid over the machine's directories. Like all of /run it is
// in memory and goes with the bed.
const Dir = "/run/kata-qat-bed"

// The bed's programs are where an administrator would have put them, and come
// first in PATH. They are not seen on the machine.
const (
	binDir  = "/usr/local/bin"
	sbinDir = "/usr/local/sbin"
)

// covered are the directories that are laid over, so that programs write to
// their usual places and the machine stays as it is.
var covered = []string{"/etc", "/opt", "/usr/local", "/var"}

// onTop are directories that must not be on an overlay: containerd's snapshots
// are overlays themselves, and kubelet mounts volumes below its own.
var onTop = []string{"/var/lib/containerd", "/var/lib/kubelet"}

// nodeIP and serviceIP are the addresses of the node and of the API server's
// Service. Nothing translates addresses in the bed: the node has both.
const (
	nodeIP    = "10.88.0.1"
	serviceIP = "10.96.0.1"
)

// makeMachine makes the new namespaces of this process a machine: it has a
// network, and its own files where the node's programs write.
func makeMachine(cgroup string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := enterCgroups(cgroup); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range covered {
		upper, work := filepath.Join(Dir, "over", dir), filepath.Join(Dir, "work", dir)
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
			return fmt.Errorf("lay a directory over %s: %w", dir, err)
		}
	}
	for _, dir := range onTop {
		real := filepath.Join(Dir, "top", dir)
		if err := errors.Join(os.MkdirAll(real, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount(real, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("lay a directory over %s: %w", dir, err)
		}
	}
	for _, dir := range []string{binDir, sbinDir, logDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return makeNetwork()
}

// makeNetwork gives the node one interface, which leads nowhere.
func makeNetwork() error {
	for _, line := range []string{
		"link set lo up",
		"link add eth0 type bridge",
		"addr add " + nodeIP + "/24 dev eth0",
		"link set eth0 up",
		"addr add " + serviceIP + "/32 dev lo",
		"route add default dev eth0",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// cover makes /sys the machine's own but for what the tree has, for example the
// PCI bus with its devices and IOMMU groups; /dev gets the tree's nodes. Without
// a tree only the network interfaces of /sys are the bed's.
func cover(tree string) error {
	real := filepath.Join(Dir, "sys")
	if err := os.MkdirAll(real, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", real, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	// The cgroups stay where they are mounted.
	if err := unix.Mount(cgroupRoot, filepath.Join(real, "fs/cgroup"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", cgroupRoot, err)
	}
	if tree == "" {
		return bind(real, "/sys")
	}
	sys := filepath.Join(tree, "sys")
	for _, dir := range []string{"", "bus", "devices", "kernel"} {
		if err := addEntries(filepath.Join(real, dir), filepath.Join(sys, dir)); err != nil {
			return err
		}
	}
	if err := bind(sys, "/sys"); err != nil {
		return err
	}
	dev := filepath.Join(tree, "dev")
	if err := addEntries("/dev", dev); err != nil {
		return err
	}
	return bind(dev, "/dev")
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("lay %s over %s: %w", from, to, err)
	}
	return nil
}

// addEntries adds to a directory what another one has and it has not:
// directories and files by a mount, device nodes and links as they are.
func addEntries(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if _, err := os.Lstat(target); err == nil {
			continue // the tree's own, or one whose entries are added
		}
		if err := addEntry(e, source, target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("add %s to the simulated machine: %w", source, err)
		}
	}
	return nil
}

func addEntry(e fs.DirEntry, source, target string) error {
	switch {
	case e.Type()&fs.ModeSymlink != 0:
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	case e.Type()&fs.ModeDevice != 0:
		info, err := e.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		if err := unix.Mknod(target, stat.Mode, int(stat.Rdev)); err != nil {
			return err
		}
		return os.Chmod(target, info.Mode().Perm())
	case e.IsDir():
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		return bind(source, target)
	case e.Type().IsRegular():
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
		return bind(source, target)
	}
	return nil // sockets of the host's programs
}
