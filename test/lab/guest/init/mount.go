package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

type mount struct {
	kind, target string
	flags        uintptr
	data         string
}

const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts are the file systems of a machine, in order.
var mounts = []mount{
	{"proc", "/proc", plain, ""},
	{"sysfs", "/sys", plain, ""},
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	{"mqueue", "/dev/mqueue", plain, ""},
	{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"cgroup2", "/sys/fs/cgroup", plain, ""},
	{"debugfs", "/sys/kernel/debug", plain, ""},
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

func mountAll() error {
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	return nil
}

// leaveRootfs puts a mount of its own under the initrd's files. The kernel
// unpacks an initrd into rootfs, which has no parent mount, and pivot_root
// refuses to leave such a root (pivot_root(2)), so runc could not start a
// container. A bind mount of it moved over it has a parent, and costs no copy.
func leaveRootfs() error {
	const root = "/run"
	steps := []struct {
		what string
		do   func() error
	}{
		{"make " + root, func() error { return os.MkdirAll(root, 0o755) }},
		{"bind /", func() error { return unix.Mount("/", root, "", unix.MS_BIND, "") }},
		{"change to the bound root", func() error { return unix.Chdir(root) }},
		{"move it over /", func() error { return unix.Mount(".", "/", "", unix.MS_MOVE, "") }},
		{"make it the root", func() error { return unix.Chroot(".") }},
		{"change to /", func() error { return unix.Chdir("/") }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("leave rootfs: %s: %w", s.what, err)
		}
	}
	return nil
}
