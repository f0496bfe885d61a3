package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
	"github.com/kata-qat/kata-qat/provision/guest"
)

// standInMake does what make would do to a kernel's source, as far as files go,
// and writes down how it was called. $FIXTURE has what comes of a build.
const standInMake = `#!/bin/sh
echo "make $*" >>"$FIXTURE/calls"
for arg; do
	case $arg in
	O=*) out=${arg#O=} ;;
	M=*) module=${arg#M=} ;;
	INSTALL_MOD_PATH=*) stage=${arg#*=} ;;
	esac
done
case "$*" in
*x86_64_defconfig*) echo CONFIG_X86=y >"$KCONFIG_CONFIG" ;;
*olddefconfig*) ;;
*fail*) echo "no rule"; exit 2 ;;
*bzImage*)
	[ ! -e "$FIXTURE/forever" ] || { echo waiting; sleep 1000; }
	env | grep ^KBUILD | sort >>"$FIXTURE/calls"
	mkdir -p "$out/arch/x86/boot" "$out/include/config"
	cp "$FIXTURE/bzImage" "$out/arch/x86/boot/bzImage"
	touch "$out/Makefile"
	echo ` + kmodtest.Release + ` >"$out/include/config/kernel.release"
	for i in 1 2 3; do echo "  CC      kernel/$i.o"; done ;;
*modules_install*) mkdir -p "$stage"; cp -r "$FIXTURE/lib" "$stage/" ;;
*M=*) cp "$FIXTURE/qat_4xxxvf.ko" "$module/" ;;
*) echo "unexpected: $*"; exit 2 ;;
esac
`

// kernelSource is a kernel's source with the options of all fragments and no
// code, as files to put into an archive.
func kernelSource(t *testing.T) map[string]string {
	t.Helper()
	names := map[string]bool{"MODULES": true, "X86": true}
	option := regexp.MustCompile(`(?m)^CONFIG_(\w+)=`)
	extra, err := os.ReadFile("kata.config")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range option.FindAllStringSubmatch(string(extra), -1) {
		names[m[1]] = true
	}
	for _, f := range kernelconfig.Fragments() {
		for _, s := range f.Symbols {
			names[s.Name] = true
		}
	}
	kconfig := "mainmenu \"Linux\"\n"
	for n := range names {
		kconfig += "config " + n + "\n\ttristate \"" + n + "\"\n"
	}
	return map[string]string{
		"Makefile": "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n", "Kbuild": "", "Kconfig": kconfig, "arch/x86/Kconfig": "config DUMMY\n\tbool\n",
		"scripts/kconfig/merge_config.sh": "out=$3\ncat $4 $5 >\"${KCONFIG_CONFIG:-$out/.config}\"\n",
	}
}

// builder is a machine that can build.
func builder(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.o.Kernel = ""
	fixture := t.TempDir()
	t.Setenv("FIXTURE", fixture)
	t.Setenv("PATH", fixture+":"+os.Getenv("PATH"))
	m.must(os.WriteFile(filepath.Join(fixture, "make"), []byte(standInMake), 0o755))
	m.must(os.WriteFile(filepath.Join(fixture, "bzImage"), bzImage(kmodtest.Release), 0o644))
	kmodtest.Tree(t, fixture, append(slices.Clone(builtin), "vfio", "vfio-pci", "vfio_iommu_type1", "virtio_net", "vmw_vsock_virtio_transport"), kmodtest.Module{File: "kernel/qat_c62xvf.ko"})
	m.must(os.Remove(filepath.Join(fixture, "lib/modules", kmodtest.Release, "modules.dep")))
	m.o.Source = m.tarball("linux-6.12.1/", kernelSource(t))
	return m
}

func (m *machine) tarball(top string, files map[string]string) string {
	m.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		m.must(w.WriteHeader(&tar.Header{Name: top + name, Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(text))
		m.must(err)
	}
	m.must(w.Close())
	name := filepath.Join(m.t.TempDir(), "source.tar")
	m.must(os.WriteFile(name, b.Bytes(), 0o644))
	return name
}

func calls(t *testing.T) (all []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(os.Getenv("FIXTURE"), "calls"))
	if err != nil {
		t.Fatal(err)
	}
	temporary := regexp.MustCompile(`/\S*/(out/)?\.build/kernel-[0-9a-f]{16}|/\S*/\.build/driver-[0-9a-f]{16}`)
	for line := range strings.Lines(string(b)) {
		line = temporary.ReplaceAllString(strings.TrimSpace(line), "BUILD")
		all = append(all, regexp.MustCompile(`-j\d+`).ReplaceAllString(line, "-jN"))
	}
	return all
}

func TestAKernelIsConfiguredAndBuiltBesideItsSource(t *testing.T) {
	m := builder(t)
	var shown []string
	m.o.Progress = func(what string, done, of int) { shown = append(shown, what) }
	got := m.mustMake()
	want := []string{
		"make -s -C BUILD/src O=BUILD/obj ARCH=x86_64 x86_64_defconfig",
		"make -s -C BUILD/src O=BUILD/obj ARCH=x86_64 olddefconfig",
		"make -C BUILD/src O=BUILD/obj -jN bzImage modules",
		"KBUILD_BUILD_HOST=kata-qat", "KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=kata-qat",
		"make -C BUILD/src O=BUILD/obj modules_install INSTALL_MOD_PATH=BUILD/stage INSTALL_MOD_STRIP=1 DEPMOD=true",
	}
	if diff := cmp.Diff(want, calls(t)); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	configs, err := filepath.Glob(filepath.Join(m.o.Out, ".build/kernel-*/obj/.config"))
	if err != nil || len(configs) != 1 {
		t.Fatalf("configurations %v, %v", configs, err)
	}
	config, err := os.ReadFile(configs[0])
	m.must(err)
	for _, option := range []string{"CONFIG_X86=y", "CONFIG_MODULES=y", "CONFIG_VIRTIO_VSOCKETS=y", "CONFIG_VFIO_PCI=y", "CONFIG_INTEL_IOMMU=y"} {
		if !strings.Contains(string(config), option+"\n") {
			t.Errorf("%s is not in the configuration", option)
		}
	}
	if len(got.AgentModules) != 0 || !slices.Equal(got.KernelParams, []string{"vfio_pci.disable_denylist=1"}) {
		t.Errorf("all is built in, but the agent is to load %q, the kernel to get %q", got.AgentModules, got.KernelParams)
	}
	if !slices.Contains(shown, "CC      kernel/2.o") || !slices.Contains(shown, "configure the kernel") {
		t.Errorf("progress was shown as %q", shown)
	}
	before := len(calls(t))
	m.o.Plain = true
	m.mustMake()
	if after := calls(t); len(after) != before {
		t.Errorf("the kernel was built again: %q", after[before:])
	}
}

func TestADryRunShowsTheCommandsOfABuildAndRunsNone(t *testing.T) {
	m := builder(t)
	d, err := guest.Prepare(t.Context(), m.o, false)
	m.must(err)
	if len(d.Commands) != 3 || !slices.Contains(d.Commands[0], "kernel-config") || !slices.Contains(d.Commands[1], "bzImage") || !slices.Contains(d.Commands[2], "modules_install") {
		t.Errorf("commands %q", d.Commands)
	}
	if _, err := d.Make(t.Context()); err == nil {
		t.Error("a guest was made without its kernel")
	}
	if _, err := os.Stat(m.o.Out); !os.IsNotExist(err) {
		t.Errorf("it made %s", m.o.Out)
	}
}

func TestABuildThatFailsSaysWhyAndIsNotTakenForDone(t *testing.T) {
	m := builder(t)
	m.must(os.Remove(filepath.Join(os.Getenv("FIXTURE"), "bzImage")))
	for range 2 {
		if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "bzImage") {
			t.Fatalf("got %v", err)
		}
	}
}

func TestABuildThatIsCancelledStopsWithItsChildren(t *testing.T) {
	m := builder(t)
	m.must(os.WriteFile(filepath.Join(os.Getenv("FIXTURE"), "forever"), nil, 0o644))
	ctx, cancel := context.WithCancel(t.Context())
	m.o.Progress = func(what string, done, of int) {
		if what == "waiting" {
			cancel()
		}
	}
	start := time.Now()
	if _, err := guest.Prepare(ctx, m.o, true); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// A child that lives on holds the output open until the delay is over.
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestAChangedTreeIsBuiltAgain(t *testing.T) {
	m := builder(t)
	tree := t.TempDir()
	for name, text := range kernelSource(t) {
		m.must(os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755))
		m.must(os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644))
	}
	m.o.Source = tree
	m.mustMake()
	before := len(calls(t))
	m.must(os.WriteFile(filepath.Join(tree, "new.c"), nil, 0o644))
	m.mustMake()
	if len(calls(t)) == before {
		t.Error("it was not")
	}
}

func TestTheVendorsDriversAreBuiltAgainstTheKernel(t *testing.T) {
	builder(t) // for its make
	m := newMachine(t)
	kmodtest.Module{File: "qat_4xxxvf.ko"}.Write(t, os.Getenv("FIXTURE"))
	build := filepath.Join(m.root, "lib/modules", kmodtest.Release, "build")
	m.must(os.MkdirAll(build, 0o755))
	m.must(os.WriteFile(filepath.Join(build, "Makefile"), nil, 0o644))
	m.o.Profile, m.o.Families = edits.ProfileGuestKernel, m.families("4xxx")
	m.o.DriverArchive = m.tarball("QAT20/", map[string]string{"Kbuild": "obj-m := qat_4xxxvf.o\n", "qat_4xxxvf.c": ""})
	archive, err := os.ReadFile(m.o.DriverArchive)
	m.must(err)
	m.o.DriverSHA256 = fmt.Sprintf("%x", sha256.Sum256(archive))
	got := m.mustMake()
	if want := "make -C " + build + " M=BUILD-" + kmodtest.Release + "/src modules"; !slices.Contains(calls(t), want) {
		t.Errorf("commands %q, expected %q", calls(t), want)
	}
	if joined := strings.Join(paths(got), " "); !strings.Contains(joined, modules+"/updates/qat_4xxxvf.ko") {
		t.Errorf("files %s", joined)
	}
	if !slices.Equal(got.AgentModules, []string{"qat_4xxxvf"}) {
		t.Errorf("the agent's modules: %q", got.AgentModules)
	}
}

func TestAnArchiveThatClimbsOutIsRefused(t *testing.T) {
	m := builder(t)
	m.o.Source = m.tarball("../", map[string]string{"evil": "x"})
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "leads out of the archive") {
		t.Errorf("got %v", err)
	}
	if found, _ := filepath.Glob(filepath.Join(m.o.Out, ".build/*/evil")); len(found) > 0 {
		t.Errorf("%v was unpacked", found)
	}
}
