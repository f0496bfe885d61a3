package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// SystemDisk returns an image for Config.Disk that is the test's own: a Debian
// 12 without recommended packages, with systemd, udev and GRUB's programs (the
// guest is not started by GRUB), and the lab's kernel with all its modules.
func SystemDisk(tb testing.TB) string {
	tb.Helper()
	l, err := open()
	if err != nil {
		tb.Fatal(err)
	}
	image := filepath.Join(tb.TempDir(), "system.ext4")
	// Most of it is a hole.
	if out, err := exec.CommandContext(tb.Context(), "cp", "--sparse=always", filepath.Join(l.dir, "system.ext4"), image).CombinedOutput(); err != nil {
		tb.Fatalf("copy the disk: %v: %s", err, out)
	}
	return image
}

// FromDisk returns a file of a disk that no guest runs from.
func FromDisk(tb testing.TB, image, name string) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), "file")
	if msg, err := exec.CommandContext(tb.Context(), "debugfs", "-R", "dump "+name+" "+out, image).CombinedOutput(); err != nil {
		tb.Fatalf("read %s of the disk: %v: %s", name, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		tb.Fatalf("read %s of the disk: %v", name, err)
	}
	return string(b)
}

// GRUBCommandLine is what the first entry of a disk's GRUB configuration gives
// the kernel. That GRUB itself does not start the guest saves a minute.
func GRUBCommandLine(tb testing.TB, image string) string {
	tb.Helper()
	for line := range strings.Lines(FromDisk(tb, image, "/boot/grub/grub.cfg")) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "linux" {
			return strings.Join(f[2:], " ")
		}
	}
	tb.Fatal("GRUB's configuration starts no Linux")
	return ""
}
