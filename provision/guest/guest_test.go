package guest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/guest"
)

const modules = "usr/lib/modules/" + kmodtest.Release

func paths(m *guest.Manifest) (all []string) {
	for _, f := range m.Files {
		if !strings.Contains(f.Path, "_dev") && !strings.Contains(f.Path, "/modules.") {
			all = append(all, f.Path)
		}
	}
	return all
}

func TestAGuestForVFIOHasWhatItNeedsAndNothingElse(t *testing.T) {
	m := newMachine(t)
	got := m.mustMake()
	want := []string{
		"/etc/modprobe.d/kata-qat.conf", "/etc/modules-load.d/kata-qat.conf",
		"/usr/lib/kata-qat/busybox", "/usr/lib/kata-qat/guest.json",
		"/" + modules + "/kernel/drivers/vfio-pci-core.ko", "/" + modules + "/kernel/drivers/vfio-pci.ko", "/" + modules + "/kernel/drivers/vfio.ko",
		"/" + modules + "/kernel/drivers/vfio_iommu_type1.ko", "/" + modules + "/kernel/drivers/virtio_net.ko",
		"/" + modules + "/kernel/net/vmw_vsock_virtio_transport.ko", "/" + modules + "/kernel/net/vsock.ko",
		"/usr/sbin/kata-qat-init", "/usr/sbin/modprobe",
	}
	if diff := cmp.Diff(want, paths(got)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"vfio", "vfio-pci disable_denylist=1", "vfio_iommu_type1"}, got.AgentModules); diff != "" {
		t.Errorf("the agent's modules (-want +got):\n%s", diff)
	}
	if !slices.Equal(got.KernelParams, []string{"rdinit=/sbin/kata-qat-init"}) {
		t.Errorf("kernel parameters %q", got.KernelParams)
	}
	dir := m.unpacked(got, "gzip", "-dc")
	for name, want := range map[string]string{
		"etc/modprobe.d/kata-qat.conf":     "options vfio-pci disable_denylist=1",
		"etc/modules-load.d/kata-qat.conf": "vmw_vsock_virtio_transport\nvirtio_net\n",
		"usr/sbin/kata-qat-init":           "#!/usr/lib/kata-qat/busybox sh\n",
		"etc/c6xxvf_dev0.conf":             "[GENERAL]", "etc/c6xxvf_dev15.conf": "[GENERAL]",
		modules + "/modules.dep": "kernel/drivers/vfio-pci.ko: kernel/drivers/vfio-pci-core.ko kernel/drivers/vfio.ko\n",
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s has no %q: %s, %v", name, want, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/c6xxvf_dev16.conf")); err == nil {
		t.Error("there are files for more VFs than a guest can have")
	}
	if target, err := os.Readlink(filepath.Join(dir, "usr/sbin/modprobe")); err != nil || target != "/usr/lib/kata-qat/busybox" {
		t.Errorf("modprobe leads to %s, %v", target, err)
	}
	for _, link := range []string{"lib", "sbin"} {
		if _, err := os.Lstat(filepath.Join(dir, link)); err == nil {
			t.Errorf("/%s is in the archive: it would take the place of the base's link", link)
		}
	}
	if err := guest.Verify(t.Context(), m.o.Out); err != nil {
		t.Error(err)
	}
	initrd, err := os.ReadFile(filepath.Join(m.current(), guest.InitrdFile))
	m.must(err)
	base, err := os.ReadFile(m.o.Base)
	m.must(err)
	if !bytes.HasPrefix(initrd, base) {
		t.Error("the initrd does not begin with the base")
	}
}

func TestAGuestForADriverHasItAndNoVFIO(t *testing.T) {
	m := newMachine(t)
	m.o.Profile, m.o.Plain = edits.ProfileGuestKernel, true
	got := m.mustMake()
	if joined := strings.Join(paths(got), " "); !strings.Contains(joined, "qat_c62xvf.ko") || !strings.Contains(joined, "intel_qat.ko") || strings.Contains(joined, "vfio") {
		t.Errorf("files %s", joined)
	}
	if !slices.Equal(got.AgentModules, []string{"qat_c62xvf"}) {
		t.Errorf("the agent's modules: %q", got.AgentModules)
	}
	m.unpacked(got, "cat")
	if got.Root.Appended%4 != 0 {
		t.Errorf("the archive begins at %d, where the kernel does not look for one", got.Root.Appended)
	}
}

func TestWhatTheBaseHasIsUsed(t *testing.T) {
	m := newMachine(t)
	m.base(func(w *cpio.Writer) {
		kataRoot(w)
		w.Bytes("usr/bin/kmod", 0o755, "kmod")
		w.Link("usr/sbin/modprobe", "../bin/kmod")
		w.Bytes("bin/sh", 0o755, "shell")
		w.Dir("usr/lib/udev/rules.d")
	}, "zstd", "-qc")
	m.must(os.Remove(filepath.Join(m.root, "bin/busybox")))
	m.o.Profile = edits.ProfileGuestKernel
	got := m.mustMake()
	joined := strings.Join(paths(got), " ")
	if strings.Contains(joined, "busybox") || strings.Contains(joined, "modprobe ") || !strings.Contains(joined, "60-kata-qat.rules") {
		t.Errorf("files %s", joined)
	}
	hook, err := os.ReadFile(filepath.Join(m.unpacked(got, "gzip", "-dc"), "usr/sbin/kata-qat-init"))
	if err != nil || !strings.HasPrefix(string(hook), "#!/bin/sh\n") {
		t.Errorf("the hook is %s, %v", hook, err)
	}
}

func TestTheSameInputsGiveTheSameBytes(t *testing.T) {
	m := newMachine(t)
	first := m.mustMake()
	read := func() map[string][]byte {
		all := map[string][]byte{}
		for _, name := range []string{guest.KernelFile, guest.InitrdFile, guest.ManifestFile} {
			b, err := os.ReadFile(filepath.Join(m.current(), name))
			m.must(err)
			all[name] = b
		}
		return all
	}
	a := read()
	m.o.Out = filepath.Join(t.TempDir(), "elsewhere")
	second := m.mustMake()
	for name, b := range read() {
		if !bytes.Equal(a[name], b) {
			t.Errorf("%s is not what it was the first time", name)
		}
	}
	if first.ID != second.ID {
		t.Errorf("ids %s and %s", first.ID, second.ID)
	}
}

func TestASecondRunChangesNothing(t *testing.T) {
	m := newMachine(t)
	first := m.mustMake()
	before, err := os.Stat(filepath.Join(m.current(), guest.InitrdFile))
	m.must(err)
	d, err := guest.Prepare(t.Context(), m.o, true)
	m.must(err)
	if !d.Unchanged {
		t.Fatal("it would make the guest again")
	}
	again, err := d.Make(t.Context())
	m.must(err)
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("manifest (-first +again):\n%s", diff)
	}
	after, err := os.Stat(filepath.Join(m.current(), guest.InitrdFile))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the initrd was made again: %v", err)
	}
}

func TestAnyChangeOfAnInputMakesTheGuestAgain(t *testing.T) {
	for name, change := range map[string]func(*machine){
		"base":     func(m *machine) { m.base(func(w *cpio.Writer) { kataRoot(w); w.Dir("more") }, "gzip", "-nc") },
		"profile":  func(m *machine) { m.o.Profile = edits.ProfileGuestKernel },
		"families": func(m *machine) { m.o.Families = m.families("c62x", "4xxx") },
		"kernel":   func(m *machine) { m.write("boot/vmlinuz-"+kmodtest.Release, append(bzImage(kmodtest.Release), 0)) },
		"module": func(m *machine) {
			kmodtest.Module{File: "kernel/drivers/vfio.ko.xz", Size: 1}.Write(m.t, filepath.Join(m.root, "lib/modules", kmodtest.Release))
		},
		"modules": func(m *machine) { m.o.Modules = []string{"other"} },
		"form":    func(m *machine) { m.o.Plain = true },
		"result": func(m *machine) {
			m.must(os.WriteFile(filepath.Join(m.current(), guest.InitrdFile), []byte("damaged"), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.mustMake()
			change(m)
			d, err := guest.Prepare(t.Context(), m.o, true)
			m.must(err)
			if d.Unchanged {
				t.Fatal("it would leave the guest as it is")
			}
			_, err = d.Make(t.Context())
			m.must(err)
			m.must(guest.Verify(t.Context(), m.o.Out))
		})
	}
}

func TestPreparingChangesNothing(t *testing.T) {
	m := newMachine(t)
	d, err := guest.Prepare(t.Context(), m.o, false)
	m.must(err)
	if len(d.Manifest.Files) == 0 {
		t.Error("it does not say what would go in")
	}
	if _, err := os.Stat(m.o.Out); !os.IsNotExist(err) {
		t.Errorf("it made %s: %v", m.o.Out, err)
	}
}

func TestKernelsAreFoundWhereDistributionsHaveThem(t *testing.T) {
	for name, arrange := range map[string]func(*machine){
		"running":    func(m *machine) {},
		"by release": func(m *machine) { m.o.Kernel = kmodtest.Release },
		"by root":    func(m *machine) { m.o.Kernel = m.root },
		"by modules": func(m *machine) { m.o.Kernel = filepath.Join(m.root, "lib/modules", kmodtest.Release) },
		"beside them": func(m *machine) {
			m.rename("boot/vmlinuz-"+kmodtest.Release, "lib/modules/"+kmodtest.Release+"/vmlinuz")
		},
		"in usr":        func(m *machine) { m.rename("lib", "usr/lib") },
		"in usr by dir": func(m *machine) { m.rename("lib", "usr/lib"); m.o.Kernel = m.root },
		"in usr, linked": func(m *machine) {
			m.rename("lib", "usr/lib")
			m.must(os.Symlink("usr/lib", filepath.Join(m.root, "lib")))
			m.o.Kernel = m.root
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			arrange(m)
			if got := m.mustMake(); got.Kernel.Release != kmodtest.Release {
				t.Errorf("release %s", got.Kernel.Release)
			}
		})
	}
}

func (m *machine) rename(from, to string) {
	m.t.Helper()
	m.must(os.MkdirAll(filepath.Dir(filepath.Join(m.root, to)), 0o755))
	m.must(os.Rename(filepath.Join(m.root, from), filepath.Join(m.root, to)))
}

func TestFamiliesOfAMachineAreThoseOfItsDevices(t *testing.T) {
	inv := &qat.Inventory{PFs: []qat.PF{
		{Family: qat.FamilyByName("4xxx"), Services: "dc"}, {Family: qat.FamilyByName("c62x")}, {Family: qat.FamilyByName("4xxx"), Services: "sym"}, {Family: qat.FamilyByName("420xx")},
	}}
	var got []string
	for _, f := range guest.FamiliesOf(inv) {
		got = append(got, f.Name+"="+string(f.Services))
	}
	if diff := cmp.Diff([]string{"4xxx=dc", "c62x=", "420xx=sym;asym"}, got); diff != "" {
		t.Errorf("families (-want +got):\n%s", diff)
	}
}
