package guest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
	"github.com/kata-qat/kata-qat/provision/guest"
)

func (m *machine) module(mod kmodtest.Module) {
	m.t.Helper()
	mod.Write(m.t, filepath.Join(m.root, "lib/modules", kmodtest.Release))
}

// truncate cuts the base.
func (m *machine) truncate(n int64) {
	m.t.Helper()
	st, err := os.Stat(m.o.Base)
	m.must(err)
	m.must(os.Truncate(m.o.Base, st.Size()-n))
}

func TestBadInputIsRefusedAndTheGuestThatIsThereStays(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*machine)
		says  string
	}{
		"module for another kernel": {
			func(m *machine) {
				m.module(kmodtest.Module{File: "kernel/drivers/vfio.ko.xz", Release: "6.1.0-40-amd64"})
			},
			"was built for Linux 6.1.0-40-amd64, expected " + kmodtest.Release,
		},
		"module with an unresolved dependency": {
			func(m *machine) {
				m.module(kmodtest.Module{File: "kernel/drivers/vfio-pci-core.ko", Depends: "nonesuch"})
			},
			"vfio_pci_core needs nonesuch",
		},
		"damaged module": {func(m *machine) {
			m.write("lib/modules/"+kmodtest.Release+"/kernel/drivers/vfio.ko.xz", []byte("\xfd7zXZ\x00"))
		}, "vfio.ko.xz"},
		"module that is not there": {func(m *machine) { m.o.Modules = []string{"nonesuch"} }, "module nonesuch: Linux " + kmodtest.Release + " has none such"},
		"kernel of other modules":  {func(m *machine) { m.write("boot/vmlinuz-"+kmodtest.Release, bzImage("6.1.0")) }, "is Linux 6.1.0, but its modules"},
		"no kernel":                {func(m *machine) { m.write("boot/vmlinuz-"+kmodtest.Release, bytes.Repeat([]byte("x"), 4096)) }, "expected a bzImage"},
		"kernel that is not there": {func(m *machine) { m.o.Kernel = "5.10" }, "find kernel 5.10"},
		"driver that Linux lacks":  {func(m *machine) { m.o.Profile, m.o.Families = edits.ProfileGuestKernel, m.families("4xxx") }, "only the vendor's drivers have"},
		"truncated initrd":         {func(m *machine) { m.truncate(20) }, "cut short"},
		"empty initrd":             {func(m *machine) { m.write("initrd", nil) }, "nothing in it"},
		"unknown compression":      {func(m *machine) { m.write("initrd", []byte("BZh91AY&SY")) }, "compressed with bzip2: expected gzip, xz, zstd"},
		"text for an initrd":       {func(m *machine) { m.write("initrd", []byte("hello, world")) }, "expected a cpio archive"},
		"initrd that climbs out": {func(m *machine) {
			m.base(func(w *cpio.Writer) { kataRoot(w); w.Bytes("xx/xx", 0o644, "") }, "sed", "s,xx/xx,../xx,")
		}, "leads out of the root"},
		"initrd without init":         {func(m *machine) { m.base(func(w *cpio.Writer) { w.Dir("x") }, "cat") }, "has no /init"},
		"base that was made from one": {func(m *machine) { m.o.Base = filepath.Join(m.current(), guest.InitrdFile) }, "was made by kata-qat"},
		"base with these modules": {
			func(m *machine) {
				m.base(func(w *cpio.Writer) {
					kataRoot(w)
					w.Bytes("usr/lib/modules/"+kmodtest.Release+"/modules.dep", 0o644, "")
				}, "cat")
			}, "has modules of Linux " + kmodtest.Release + " already",
		},
		"no base":            {func(m *machine) { m.o.Base = "" }, "no base"},
		"base is not there":  {func(m *machine) { m.o.Base += ".gone" }, "no such file"},
		"no family":          {func(m *machine) { m.o.Families = nil }, "no QAT family"},
		"no modprobe at all": {func(m *machine) { m.must(os.Remove(filepath.Join(m.root, "bin/busybox"))) }, "install busybox-static"},
		"busybox with libs":  {func(m *machine) { m.o.Busybox = dynamicProgram }, "linked statically"},
		"unknown profile":    {func(m *machine) { m.o.Profile = "both" }, `profile "both"`},
		"no digest":          {func(m *machine) { m.o.Profile, m.o.DriverArchive = edits.ProfileGuestKernel, "x" }, "needs its SHA-256"},
		"digest of no digits": {func(m *machine) {
			m.o.Profile, m.o.DriverArchive, m.o.DriverSHA256 = edits.ProfileGuestKernel, "x", "x"
		}, "64 hexadecimal digits"},
		"wrong digest": {
			func(m *machine) {
				m.o.Profile, m.o.DriverArchive, m.o.DriverSHA256 = edits.ProfileGuestKernel, m.o.Base, strings.Repeat("0", 64)
			}, "expected 00000000",
		},
		"two sources":         {func(m *machine) { m.o.Kernel, m.o.Source = "x", "y" }, "both an installed kernel and"},
		"source that is none": {func(m *machine) { m.o.Source = m.root }, "is no kernel tree"},
		"source that climbs out": {func(m *machine) {
			m.o.Source = filepath.Join(m.root, "linux.tar")
			m.must(exec.Command("tar", "-C", m.root, "-cPf", m.o.Source, "--transform", "s,^initrd,../../evil,", "initrd").Run())
		}, "../../evil"},
		"option for a module":   {func(m *machine) { m.o.Modules = []string{"a b"} }, "expected a module's name"},
		"a kernel without Kata": {func(m *machine) { m.write("lib/modules/"+kmodtest.Release+"/modules.builtin", nil) }, "has no virtio_pci"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			first := m.mustMake()
			o := m.o
			tc.spoil(m)
			_, err := m.make()
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, expected one line with %q", err, tc.says)
			}
			if err := guest.Verify(t.Context(), o.Out); err != nil {
				t.Error(err)
			}
			if now, err := guest.ReadManifest(m.current()); err != nil || now.ID != first.ID {
				t.Errorf("another guest is there: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(o.Out, ".new-*")); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// dynamicProgram is one that needs libraries.
const dynamicProgram = "/bin/ls"

func TestACancelledRunLeavesWhatWasThere(t *testing.T) {
	m := newMachine(t)
	m.mustMake()
	m.o.Plain = true
	d, err := guest.Prepare(t.Context(), m.o, true)
	m.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Make(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	m.must(guest.Verify(t.Context(), m.o.Out))
}

func TestWhatARunLeftThatWasKilledIsRemoved(t *testing.T) {
	m := newMachine(t)
	m.must(os.MkdirAll(filepath.Join(m.o.Out, ".new-123"), 0o755))
	m.must(os.Symlink("gone", filepath.Join(m.o.Out, ".new-current")))
	m.mustMake()
	if left, _ := filepath.Glob(filepath.Join(m.o.Out, ".new-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// A full file system is a real one: 1 MiB in memory, which only root can mount.
func TestNoSpaceLeftLeavesWhatWasThere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	m := newMachine(t)
	m.must(os.MkdirAll(m.o.Out, 0o755))
	if err := syscall.Mount("tmpfs", m.o.Out, "tmpfs", 0, "size=5m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	defer func() { m.must(syscall.Unmount(m.o.Out, syscall.MNT_DETACH)) }()
	m.mustMake()
	m.base(func(w *cpio.Writer) {
		kataRoot(w)
		w.Bytes("big", 0o644, strings.Repeat("x", 6<<20))
	}, "cat")
	_, err := m.make()
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room below "+m.o.Out) {
		t.Errorf("got %v, expected that there is no room", err)
	}
	m.must(guest.Verify(t.Context(), m.o.Out))
	if left, _ := filepath.Glob(filepath.Join(m.o.Out, ".new-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestOneRunAtATime(t *testing.T) {
	m := newMachine(t)
	m.mustMake()
	f, err := os.Open(filepath.Join(m.o.Out, ".lock"))
	m.must(err)
	defer f.Close()
	m.must(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	m.o.Plain = true
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "another kata-qat is at work") {
		t.Errorf("got %v", err)
	}
}

func TestUndoGoesBackToTheGuestBefore(t *testing.T) {
	m := newMachine(t)
	first := m.mustMake()
	m.o.Plain = true
	second := m.mustMake()
	m.o.Modules = []string{"other"}
	third := m.mustMake()
	if _, err := os.Stat(filepath.Join(m.o.Out, first.ID)); err == nil {
		t.Error("the guest before the one before is kept")
	}
	back, err := guest.Undo(m.o.Out)
	if err != nil || back.ID != second.ID {
		t.Fatalf("undone to %+v, %v: expected %s", back, err, second.ID)
	}
	m.must(guest.Verify(t.Context(), m.o.Out))
	if _, err := os.Stat(filepath.Join(m.o.Out, third.ID)); err == nil {
		t.Error("what was undone is kept")
	}
	if back, err := guest.Undo(m.o.Out); err != nil || back != nil {
		t.Errorf("undone to %+v, %v: expected to none", back, err)
	}
	if left, _ := filepath.Glob(filepath.Join(m.o.Out, "[^.]*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	if back, err := guest.Undo(m.o.Out); err != nil || back != nil {
		t.Errorf("undone to %+v, %v: expected nothing to undo", back, err)
	}
}

func TestVerifyFindsWhatIsNotAsTheManifestSays(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(dir string) error
		says   string
	}{
		"kernel":      {func(dir string) error { return os.WriteFile(filepath.Join(dir, "vmlinuz"), []byte("x"), 0o644) }, "vmlinuz has 1 bytes"},
		"initrd":      {func(dir string) error { return os.Truncate(filepath.Join(dir, "initrd"), 100) }, "initrd has 100 bytes"},
		"no manifest": {func(dir string) error { return os.Remove(filepath.Join(dir, "manifest.json")) }, "manifest"},
		"unknown manifest": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(`{"version":1,"x":2}`), 0o644)
		}, "unknown field"},
		"foreign manifest": {func(dir string) error {
			return exec.Command("sed", "-i", `s/"vmlinuz"/"..\/x"/`, filepath.Join(dir, "manifest.json")).Run()
		}, `it names "../x"`},
		"a file's digest": {func(dir string) error {
			return exec.Command("sed", "-i", `/c6xxvf_dev0/,/sha256/s/"sha256": "..../"sha256": "0000/`, filepath.Join(dir, "manifest.json")).Run()
		}, "/etc/c6xxvf_dev0.conf is"},
		"a file more": {func(dir string) error {
			return exec.Command("sed", "-i", `s/c6xxvf_dev7/c6xxvf_dev77/`, filepath.Join(dir, "manifest.json")).Run()
		}, "c6xxvf_dev77.conf is missing; /etc/c6xxvf_dev7.conf is there"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.mustMake()
			m.must(tc.damage(m.current()))
			err := guest.Verify(t.Context(), m.o.Out)
			if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "\n", "; "), tc.says) {
				t.Errorf("got %v, expected %q", err, tc.says)
			}
		})
	}
}
