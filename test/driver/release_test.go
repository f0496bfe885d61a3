//go:build lab

package driver

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/docs"
	"github.com/kata-qat/kata-qat/test/lab"
)

const (
	version = "QAT20.L.1.2.30"
	archive = "/root/QAT20.L.tar.gz"
)

// release is a driver release with the layout of Intel's: configure is at the top
// of the archive. What it builds is the lab's stand-in for the driver, with a
// version that the lab's own has not.
func release(t *testing.T) files {
	t.Helper()
	all := make(files)
	top := "testdata/release"
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		all[strings.TrimPrefix(p, top+"/")] = string(b)
		return err
	})
	stub, serr := os.ReadFile("../lab/guest/qat_stub.c")
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	all["quickassist/qat/qat_4xxx.c"] = string(stub) + fmt.Sprintf("MODULE_VERSION(%q);\n", version)
	return all
}

// files are what is in an archive, by name.
type files map[string]string

// with are the files with another one.
func (f files) with(name, content string) files {
	f[name] = content
	return f
}

// place puts an archive of files on the machine and returns the flags to have it
// installed.
func (m *machine) place(all files) []string {
	m.t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, content := range all {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: 0o755, Size: int64(len(content))})
		if _, werr := w.Write([]byte(content)); errors.Join(err, werr) != nil {
			m.t.Fatal(err, werr)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		m.t.Fatal(err)
	}
	m.write(archive, b.String())
	// No VFs: the machine's sysfs makes none.
	return []string{"--vfs", "0", "--driver-archive", archive, "--driver-sha256", fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))}
}

// bookworm is a Debian 12 with the lab's kernel, a compiler and DKMS. Its card
// has the driver of the kernel's own tree.
func bookworm(t *testing.T) *machine {
	return newMachine(t, "bookworm", labRelease(t), qattest.PF{Family: "4xxx"})
}

// built is the file of the module that the kernel would load by name.
func (m *machine) built(name string) string {
	return m.run("modinfo", "-k", labRelease(m.t), "-n", name)
}

// vermagic is the kernel that a module is for.
func (m *machine) vermagic(file string) string {
	kernel, _, _ := strings.Cut(m.run("modinfo", "-F", "vermagic", file), " ")
	return kernel
}

// documented are the flags of a command of the documentation.
func documented(t *testing.T, line, digest string) []string {
	t.Helper()
	flags, ok := strings.CutPrefix(line, "kata-qat provision host ")
	if !ok {
		t.Fatalf("%q is no command of provision host", line)
	}
	return strings.Fields(strings.ReplaceAll(flags, `"$DIGEST"`, digest))
}

func TestAVendorsReleaseIsBuiltAndItsModuleDrivesTheCard(t *testing.T) {
	t.Parallel()
	m := bookworm(t)
	placed := m.place(release(t))
	flags := append([]string{"--vfs", "0"}, documented(t, docs.For(t).Line("kata-qat provision host --driver-archive"), placed[len(placed)-1])...)
	before := m.layer()
	m.provisions(2, append(flags, "--dry-run")...)
	m.unchanged(before)
	if out := m.provisions(0, flags...); !strings.Contains(out, "0000:6b:00.0 has the driver of the kernel's own tree still") {
		t.Error("it does not say that the driver which is loaded stays")
	}
	file := m.built("qat_4xxx")
	if want := "/lib/modules/" + labRelease(t) + "/updates/drivers/crypto/qat/qat_4xxx/qat_4xxx.ko"; file != want {
		t.Errorf("depmod has qat_4xxx in %s, want %s", file, want)
	}
	if got, want := m.vermagic(file), labRelease(t); got != want {
		t.Errorf("it is for Linux %s, want %s", got, want)
	}
	if !m.has("/lib/firmware/qat_4xxx.bin") {
		t.Error("the firmware is not there")
	}
	after := m.layer()
	m.provisions(0, flags...)
	m.provisions(0, append(flags, "--dry-run")...)
	m.unchanged(after)

	module := filepath.Join(t.TempDir(), "qat_4xxx.ko")
	content, err := os.ReadFile(filepath.Join(m.root, file))
	if err := errors.Join(err, os.WriteFile(module, content, 0o644)); err != nil {
		t.Fatal(err)
	}
	m.provisions(0, "--undo")
	m.unchanged(before)
	if out, err := exec.Command("chroot", m.root, "modinfo", "-k", labRelease(t), "-n", "qat_4xxx").CombinedOutput(); err == nil {
		t.Errorf("depmod still has qat_4xxx in %s", out)
	}

	// The kernel that it was built for takes it, and its VFs can be handed out.
	res := lab.Run(t, lab.Config{
		PFs: []lab.PF{{Family: "4xxx", ACS: true}}, IOMMU: true,
		Files: map[string]string{"/usr/local/bin/kata-qat": m.program, "/opt/qat_4xxx.ko": module},
		Script: `
			insmod /opt/qat_4xxx.ko
			echo version=$(cat /sys/module/qat_4xxx/version) kernel=$(uname -r)
			grep -q O /sys/module/qat_4xxx/taint && echo from elsewhere
			kata-qat provision host >/dev/null
			echo bound=$(ls /sys/bus/pci/drivers/vfio-pci | grep -c :)
			vfiotest $(basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn15))`,
	})
	for _, want := range []string{"version=" + version + " kernel=" + labRelease(t), "from elsewhere", "bound=16"} {
		if !slices.Contains(res.Output, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
}

func TestAReleaseThatIsMadeForDKMSIsBuiltByIt(t *testing.T) {
	t.Parallel()
	m := bookworm(t)
	flags := m.place(release(t).with("dkms.conf", `
PACKAGE_NAME="qat"
PACKAGE_VERSION="1.2.30"
BUILT_MODULE_NAME[0]="qat_4xxx"
BUILT_MODULE_LOCATION[0]="quickassist/qat"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="KERNEL_SOURCE_ROOT=$kernel_source_dir ./configure --enable-icp-sriov=host && make all"
CLEAN="true"
AUTOINSTALL="yes"
`))
	before := m.layer()
	m.provisions(0, flags...)
	if got := m.run("dkms", "status"); !strings.HasPrefix(got, "qat/1.2.30, "+labRelease(t)+", x86_64: installed") {
		t.Errorf("DKMS says %q", got)
	}
	file := m.built("qat_4xxx")
	if !strings.Contains(file, "/updates/dkms/") || m.vermagic(file) != labRelease(t) {
		t.Errorf("the module is %s for Linux %s", file, m.vermagic(file))
	}
	m.provisions(0, append(flags, "--dry-run")...)
	m.provisions(0, "--undo")
	if got := m.run("dkms", "status"); got != "" {
		t.Errorf("DKMS says %q", got)
	}
	m.unchanged(before)

	flags = m.place(release(t).with("dkms.conf", "PACKAGE_NAME=qat\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME[0]=a\nDEST_MODULE_LOCATION[0]=/updates\nMAKE[0]=\"cc -c quickassist/qat/qat_4xxx.c\"\n"))
	before = m.layer()
	out := m.provisions(1, flags...)
	oneLine(t, out, "run dkms build qat/1 -k "+labRelease(t)+": quickassist/qat/qat_4xxx.c:12:10: fatal error: linux/atomic.h: No such file or directory")
	m.unchanged(before)
}

func TestAReleaseThatCannotBeBuiltChangesNothing(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		files func(files) files
		flags []string
		want  string
	}{
		"another digest": {
			flags: []string{"--driver-sha256", strings.Repeat("0", 64)},
			want:  "expected " + strings.Repeat("0", 64) + ": it is not the archive that is meant, or is damaged",
		},
		"an archive that leads out": {
			files: func(f files) files { return f.with("quickassist/../../../etc/cron.d/evil", "") },
			want:  `entry "./quickassist/../../../etc/cron.d/evil": its name leads out of the archive`,
		},
		"configure": {
			files: func(f files) files {
				return f.with("configure", "#!/bin/sh\necho checking for libudev... no\necho configure: error: libudev is not there >&2\nexit 1\n")
			},
			want: "run ./configure --enable-icp-sriov=host: exit status 1: configure: error: libudev is not there",
		},
		"make": {
			files: func(f files) files {
				return f.with("quickassist/qat/qat_4xxx.c", strings.Replace(f["quickassist/qat/qat_4xxx.c"], "pci_disable_sriov(pdev);", "pci_disable_sriov(pdev)", 1))
			},
			want: "error: expected ';' before",
		},
		"install": {
			files: func(f files) files {
				return f.with("Makefile.in", strings.Replace(f["Makefile.in"], "mkdir -p /lib/firmware", "echo no space left; exit 1", 1))
			},
			want: "run make install",
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := bookworm(t)
			all := release(t)
			if tt.files != nil {
				all = tt.files(all)
			}
			flags := append(m.place(all), tt.flags...)
			before := m.layer()
			oneLine(t, m.provisions(1, flags...), tt.want)
			m.unchanged(before)
			if out := m.provisions(0, "--undo"); !strings.Contains(out, "Nothing to undo") {
				t.Errorf("--undo says %q", out)
			}
		})
	}
}
