package lab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/cpio"
)

// unpack unpacks an archive with busybox's cpio into a new directory.
func unpack(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	return dir
}

func TestArchiveUnpacksToWhatWasPutIn(t *testing.T) {
	source := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(source, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	program := []byte("#!/bin/sh\n")
	if err := os.WriteFile(filepath.Join(source, "sub", "program"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/program", filepath.Join(source, "link")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := cpio.NewWriter(&b)
	if err := addFiles(a, map[string]string{
		"/opt/tree":  source,
		"/bin/named": filepath.Join(source, "link"),
	}); err != nil {
		t.Fatal(err)
	}
	for n := range 5 { // every padding
		a.Bytes("/sizes/"+strings.Repeat("x", n+1), 0o600, strings.Repeat("y", n))
	}
	a.Bytes("/sizes/x", 0o600, "the first of a name counts")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	dir := unpack(t, b.Bytes())
	for _, name := range []string{"opt/tree/sub/program", "bin/named"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, program) {
			t.Errorf("%s holds %q (%v), expected %q", name, got, err, program)
		}
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || st.Mode() != 0o755 {
			t.Errorf("%s is %v (%v), expected an executable file", name, st.Mode(), err)
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, "opt/tree/link")); err != nil || target != "sub/program" {
		t.Errorf("link leads to %q (%v), expected sub/program", target, err)
	}
	for n := range 5 {
		got, err := os.ReadFile(filepath.Join(dir, "sizes", strings.Repeat("x", n+1)))
		if err != nil || len(got) != n {
			t.Errorf("file of %d bytes has %d (%v)", n, len(got), err)
		}
	}
}

func TestDynamicProgramsBringTheirLibraries(t *testing.T) {
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	libs, err := libraries(sh)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(libs, func(l string) bool { return strings.Contains(l, "/libc.so") }) {
		t.Errorf("libraries of %s are %v, expected libc among them", sh, libs)
	}
}

func TestModulesComeWithWhatTheyNeed(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules/6.12")
	for name, content := range map[string]string{
		"modules.dep":             "kernel/vfio-pci.ko: kernel/vfio-pci-core.ko\nkernel/vfio-pci-core.ko: kernel/vfio.ko\nkernel/vfio.ko:\nkernel/other.ko:\n",
		"modules.alias":           "alias pci:v* vfio_pci\nalias x other\n",
		"modules.builtin":         "kernel/fuse.ko\n",
		"kernel/vfio-pci.ko":      "1",
		"kernel/vfio-pci-core.ko": "2",
		"kernel/vfio.ko":          "3",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := readModules(root, "6.12")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := cpio.NewWriter(&b)
	if err := m.add(a, []string{"vfio_pci disable_denylist=1", "fuse"}); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := filepath.Glob(filepath.Join(unpack(t, b.Bytes()), "lib/modules/6.12/kernel/*"))
	if err != nil || len(got) != 3 {
		t.Errorf("the archive has %v (%v), expected vfio-pci, vfio-pci-core and vfio", got, err)
	}
	if err := m.add(cpio.NewWriter(&b), []string{"nonesuch"}); err == nil {
		t.Error("a module that the kernel does not have was taken")
	}
}
