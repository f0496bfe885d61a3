package host_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// bare is a machine whose PF has no driver and no firmware.
func bare(t *testing.T, osRelease string) *bench {
	node := one()
	node.PFs[0].Driver, node.PFs[0].Services, node.PFs[0].State = qattest.Unbound, "", ""
	b := newBench(t, node)
	b.files(map[string]string{
		"/etc/os-release":                          osRelease,
		"/lib/modules/" + release + "/modules.dep": "kernel/vfio-pci.ko:\n",
		"/lib/firmware/keep":                       "",
	})
	return b
}

// packageManager installs packages by noting them below /pkg. One of apt's brings
// another along.
const packageManager = `
case "$1 $2" in
"install -s") for p; do case $p in install|-*) ;; *) echo "Inst $p (1 test [all])"; case $p in linux-image-*) echo "Inst initramfs (1 test [all])" ;; esac ;; esac; done; exit 0 ;;
"remove -s") for p; do case $p in remove|-*) ;; *) echo "Remv $p [1]" ;; esac; done; exit 0 ;;
esac
mkdir -p $HOST_ROOT/pkg
case $1 in
install) shift; for p; do case $p in -*) ;; *)
	touch $HOST_ROOT/pkg/$p
	case $p in linux-image-*) touch $HOST_ROOT/pkg/initramfs ;; esac
	case $p in *firmware*) touch $HOST_ROOT/lib/firmware/qat_4xxx.bin.xz $HOST_ROOT/lib/firmware/qat_4xxx_mmp.bin.xz ;; *)
		if ! grep -q qat_4xxx $HOST_ROOT/lib/modules/` + release + `/modules.dep; then echo kernel/qat_4xxx.ko: >>$HOST_ROOT/lib/modules/` + release + `/modules.dep; fi ;;
	esac ;; esac; done ;;
remove) shift; for p; do case $p in -*) ;; *)
	rm $HOST_ROOT/pkg/$p
	case $p in *firmware*) rm $HOST_ROOT/lib/firmware/qat_* ;; *) sed -i /qat_4xxx/d $HOST_ROOT/lib/modules/` + release + `/modules.dep ;; esac ;; esac; done
	rmdir $HOST_ROOT/pkg ;;
esac`

func TestDriversComeFromTheDistributionsPackages(t *testing.T) {
	for name, tt := range map[string]struct {
		osRelease string
		manager   string
		want      string // the package manager's command line
	}{
		"Debian 12":    {"ID=debian\nVERSION_ID=\"12\"\n", "apt-get", "apt-get install -y --no-install-recommends linux-image-" + release + " firmware-misc-nonfree"},
		"Debian 13":    {"ID=debian\nVERSION_ID=\"13\"\n", "apt-get", "apt-get install -y --no-install-recommends linux-image-" + release + " firmware-intel-misc"},
		"Debian sid":   {"ID=debian\n", "apt-get", "apt-get install -y --no-install-recommends linux-image-" + release + " firmware-intel-misc"},
		"Ubuntu":       {"ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"26.04\"\n", "apt-get", "apt-get install -y --no-install-recommends linux-modules-" + release + " linux-firmware"},
		"Ubuntu 24.04": {"ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", "apt-get", "apt-get install -y --no-install-recommends linux-modules-extra-" + release + " linux-firmware"},
		"Fedora":       {"ID=fedora\n", "dnf", "dnf install -y --setopt=install_weak_deps=False kernel-modules-" + release + " linux-firmware"},
		"Rocky":        {"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "dnf", "dnf install -y --setopt=install_weak_deps=False kernel-modules-" + release + " linux-firmware"},
	} {
		t.Run(name, func(t *testing.T) {
			b := bare(t, tt.osRelease)
			b.program(tt.manager, packageManager)
			b.program("dpkg-query", `[ -e $HOST_ROOT/pkg/$4 ] && printf installed`)
			b.program("rpm", `[ -e $HOST_ROOT/pkg/$2 ]`)
			b.options.Config.Driver.Source = config.DriverPackages
			before := b.snapshot()
			out := b.apply()
			if got := step(out, "driver-release").Status; got != plan.Changed {
				t.Errorf("driver-release is %s", got)
			}
			if !slices.Contains(b.ran(), tt.want) {
				t.Errorf("programs %q, want %q among them", b.ran(), tt.want)
			}
			if !slices.Contains(b.ran(), "modprobe qat_4xxx") {
				t.Errorf("programs %q, want the driver to be loaded", b.ran())
			}
			if b.apply().Changed {
				t.Error("a second run changed something")
			}
			b.undo()
			b.unchanged(before)
		})
	}
}

// debian is a bare machine that says it is Debian 12, with an apt-get that does
// what a script says.
func debian(t *testing.T, aptGet string) *bench {
	b := bare(t, "ID=debian\nVERSION_ID=12\n")
	b.program("apt-get", aptGet)
	b.program("dpkg-query", `[ -e $HOST_ROOT/pkg/$4 ] && printf installed`)
	b.options.Config.Driver.Source = config.DriverPackages
	return b
}

func TestOnlyWhatIsLackingIsInstalled(t *testing.T) {
	b := debian(t, packageManager)
	b.files(map[string]string{"/lib/modules/" + release + "/modules.dep": "kernel/vfio-pci.ko:\nkernel/qat_4xxx.ko:\n"})
	b.apply()
	if want := "apt-get install -y --no-install-recommends firmware-misc-nonfree"; !slices.Contains(b.ran(), want) {
		t.Errorf("programs %q, want %q among them", b.ran(), want)
	}
}

func TestPackagesThatCannotBeInstalledAreRefusedBefore(t *testing.T) {
	for name, tt := range map[string]struct{ aptGet, want string }{
		"not known":            {"echo Reading package lists...; echo 'E: Unable to locate package firmware-misc-nonfree'; exit 100", "E: Unable to locate package firmware-misc-nonfree: the package lists may be old (apt-get update)"},
		"in the way of others": {"echo 'Remv openssh-server [1]'; echo 'Inst firmware-misc-nonfree (2 test [all])'", "apt-get would remove openssh-server for them"},
	} {
		t.Run(name, func(t *testing.T) { debian(t, tt.aptGet).refuses(tt.want) })
	}
}

func TestPackagesThatDoNotHelpAreTakenAway(t *testing.T) {
	b := debian(t, strings.ReplaceAll(packageManager, "qat_4xxx_mmp.bin.xz", "qat_c62x.bin"))
	b.refuses("do not have firmware qat_4xxx_mmp.bin: name others in provision.driver.packages")
}

func TestWhatOthersNeedIsNotRemoved(t *testing.T) {
	b := debian(t, packageManager)
	b.apply()
	after := b.snapshot()
	b.program("apt-get", `echo "Remv firmware-misc-nonfree [1]"; echo "Remv kdump-tools [1]"`)
	_, err := b.engine().Undo(t.Context())
	if err == nil || !strings.Contains(err.Error(), "kdump-tools was installed since and needs them: remove it first") {
		t.Errorf("error %v", err)
	}
	if b.snapshot()["/lib/firmware/qat_4xxx.bin.xz"] != after["/lib/firmware/qat_4xxx.bin.xz"] {
		t.Error("the firmware is gone")
	}
}

func TestPackagesOfAnotherDistributionAreRefused(t *testing.T) {
	b := bare(t, "ID=gentoo\n")
	b.options.Config.Driver.Source = config.DriverPackages
	b.refuses("packages of drivers are known for Debian, Ubuntu, Fedora and RHEL and those like them, not for gentoo")
}

// release files of a tiny driver: make builds nothing, and installs a module and
// firmware.
var tinyRelease = map[string]string{
	"QAT/configure": "#!/bin/sh\necho \"$@\" >configured\n",
	"QAT/Makefile":  "",
	"QAT/src/a.c":   "int a;\n",
}

// makeProgram does what a release's Makefile would.
const makeProgram = `
case $1 in
all) test -e configured -a -e src/a.c; touch built ;;
install)
	test -e built
	touch $HOST_ROOT/lib/firmware/qat_4xxx.bin $HOST_ROOT/lib/firmware/qat_4xxx_mmp.bin
	grep -q qat_4xxx $HOST_ROOT/lib/modules/` + release + `/modules.dep || echo updates/qat_4xxx.ko: >>$HOST_ROOT/lib/modules/` + release + `/modules.dep ;;
uninstall)
	rm -f $HOST_ROOT/lib/firmware/qat_4xxx*
	sed -i /qat_4xxx/d $HOST_ROOT/lib/modules/` + release + `/modules.dep ;;
esac`

// archive makes a .tar.gz of entries and returns its digest.
func (b *bench) archive(name string, headers ...tar.Header) string {
	b.t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, h := range headers {
		content := h.Uname // carried there
		h.Uname, h.Size = "", int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			b.t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		b.t.Fatal(err)
	}
	b.files(map[string]string{name: buf.String()})
	sum := sha256.Sum256(buf.Bytes())
	return hex.EncodeToString(sum[:])
}

func regular(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: content}
}

// withRelease is a machine with a tiny driver release to be built.
func withRelease(t *testing.T, headers ...tar.Header) *bench {
	b := bare(t, "ID=gentoo\n")
	if headers == nil {
		for _, name := range []string{"QAT/configure", "QAT/Makefile", "QAT/src/a.c"} {
			headers = append(headers, regular(name, tinyRelease[name]))
		}
	}
	b.files(map[string]string{"/lib/modules/" + release + "/build/Makefile": ""})
	b.program("make", makeProgram)
	b.program("gcc", "")
	b.program("depmod", "")
	digest := b.archive("/root/qat.tar.gz", headers...)
	b.options.Config.Driver = config.Driver{Source: config.DriverArchive, Archive: "/root/qat.tar.gz", SHA256: digest, Configure: []string{"--enable-icp-sriov=host"}}
	return b
}

func TestADriverReleaseIsBuiltAndTakenAway(t *testing.T) {
	b := withRelease(t)
	before := b.snapshot()
	b.apply()
	for _, want := range []string{"make all KERNEL_SOURCE_ROOT=/lib/modules/" + release + "/build", "depmod -a " + release, "modprobe qat_4xxx"} {
		if !slices.Contains(b.ran(), want) {
			t.Errorf("programs %q, want %q among them", b.ran(), want)
		}
	}
	configured, err := filepath.Glob(filepath.Join(b.root, "var/lib/kata-qat/driver/*/src/QAT/configured"))
	if err != nil || len(configured) != 1 {
		t.Fatalf("it was configured in %v, %v", configured, err)
	}
	if got, _ := os.ReadFile(configured[0]); string(got) != "--enable-icp-sriov=host\n" {
		t.Errorf("it was configured with %q", got)
	}
	if b.apply().Changed {
		t.Error("a second run changed something")
	}
	b.undo()
	b.unchanged(before)
}

func TestADriverThatIsLoadedIsSaidToStay(t *testing.T) {
	for taint, want := range map[string]int{"\n": 1, "OE\n": 0} {
		b := withRelease(t)
		if err := b.kernel.Tree.Rebind("0000:6b:00.0", "4xxx"); err != nil && !errors.Is(err, qattest.ErrMknod) {
			t.Fatal(err)
		}
		b.files(map[string]string{"/sys/module/qat_4xxx/taint": taint})
		notes := step(b.apply(), "driver-release").Notes
		if len(notes) != want || want > 0 && notes[0] != "0000:6b:00.0 has the driver of the kernel's own tree still: it gets the release's at the next boot" {
			t.Errorf("with the taint %q it says %q", taint, notes)
		}
	}
}

func TestAKilledBuildIsCompletedOrTakenAway(t *testing.T) {
	for n := 1; ; n++ {
		b := withRelease(t)
		before := b.snapshot()
		e := b.engine()
		e.Fault = faultAt(n)
		if _, err := e.Apply(context.Background()); err == nil {
			return
		}
		if n%2 == 0 {
			b.apply()
		}
		b.undo()
		b.unchanged(before)
		if t.Failed() {
			t.Fatalf("killed at place %d", n)
		}
	}
}

func TestAnInterruptedBuildIsTakenAway(t *testing.T) {
	b := withRelease(t)
	ctx, cancel := context.WithCancel(t.Context())
	fifo := filepath.Join(b.bin, "started")
	b.program("make", "case $1 in all) touch "+fifo+"; exec sleep 100 ;; esac\n"+makeProgram)
	before := b.snapshot()
	go func() {
		for {
			if _, err := os.Stat(fifo); err == nil || ctx.Err() != nil {
				cancel()
				return
			}
		}
	}()
	_, err := b.engine().Apply(ctx)
	if !errors.Is(err, plan.ErrInterrupted) {
		t.Errorf("error %v, want %v", err, plan.ErrInterrupted)
	}
	b.unchanged(before)
}

func TestDKMSBuildsAReleaseThatIsMadeForIt(t *testing.T) {
	b := withRelease(t, regular("qat-1.2/dkms.conf", "PACKAGE_NAME=\"qat\"\nPACKAGE_VERSION=\"1.2\"\n"))
	b.program("dkms", `
case $1 in
add) mkdir -p $HOST_ROOT/var/lib/dkms/qat ;;
install) touch $HOST_ROOT/lib/firmware/qat_4xxx.bin $HOST_ROOT/lib/firmware/qat_4xxx_mmp.bin; echo updates/qat_4xxx.ko: >>$HOST_ROOT/lib/modules/`+release+`/modules.dep ;;
status) if [ -e $HOST_ROOT/var/lib/dkms/qat ]; then echo qat/1.2; fi ;;
remove) rm -r $HOST_ROOT/var/lib/dkms $HOST_ROOT/lib/firmware/qat_4xxx*; sed -i /qat_4xxx/d $HOST_ROOT/lib/modules/`+release+`/modules.dep ;;
esac`)
	before := b.snapshot()
	b.apply()
	if want := "dkms install qat/1.2 -k " + release; !slices.Contains(b.ran(), want) {
		t.Errorf("programs %q, want %q among them", b.ran(), want)
	}
	b.undo()
	b.unchanged(before)
}

func TestAnArchiveWithAnotherDigestIsRefused(t *testing.T) {
	b := withRelease(t)
	b.options.Config.Driver.SHA256 = strings.Repeat("0", 64)
	b.refuses("expected " + strings.Repeat("0", 64))
	if slices.ContainsFunc(b.ran(), func(s string) bool { return strings.HasPrefix(s, "make") }) {
		t.Errorf("programs %v were run", b.ran())
	}
}

func TestABuildThatFailsChangesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		configure, make, want string
	}{
		"configure": {"echo checking for pkg-config; echo 'configure: error: no libudev'; echo see config.log; exit 1", makeProgram, "run ./configure --enable-icp-sriov=host: exit status 1: configure: error: no libudev"},
		"make":      {"", "echo 'a.c:1:2: error: no such thing'; echo 'make: *** [Makefile:1: all] Error 2'; exit 2", "run make all KERNEL_SOURCE_ROOT=/lib/modules/" + release + "/build: exit status 2: a.c:1:2: error: no such thing"},
		"install":   {"", makeProgram + "\n[ $1 != install ] || { echo 'install: cannot create file: Read-only file system'; exit 1; }", "cannot create file: Read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			b := withRelease(t, regular("QAT/configure", "#!/bin/sh -e\n"+tt.configure+"\n[ -n \"$KERNEL_SOURCE_ROOT\" ]\ntouch configured\n"), regular("QAT/src/a.c", ""))
			b.program("make", tt.make)
			b.refuses(tt.want)
		})
	}
}

func TestAnArchiveThatLeadsOutIsRefused(t *testing.T) {
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
	}
	for name, headers := range map[string][]tar.Header{
		"by ..":                 {regular("QAT/../../evil", "")},
		"by an absolute path":   {regular("/evil", "")},
		"by a link":             {link("QAT/out", "../../evil"), regular("QAT/out", "")},
		"by an absolute link":   {link("QAT/out", "/etc"), regular("QAT/out/evil", "")},
		"by a link to a link":   {link("QAT/a", "."), link("QAT/a/b", "../.."), regular("QAT/b/evil", "")},
		"by a hard link":        {{Typeflag: tar.TypeLink, Name: "QAT/evil", Linkname: "../../../../../etc/os-release"}},
		"with a device":         {{Typeflag: tar.TypeChar, Name: "QAT/null", Devmajor: 1, Devminor: 3}},
		"with a file twice":     {regular("QAT/a", "1"), regular("QAT/a", "2")},
		"with nothing in it":    {},
		"a file that is a link": {link("QAT/a", "b"), regular("QAT/b", ""), regular("QAT/a", "2")},
	} {
		t.Run(name, func(t *testing.T) {
			if headers == nil {
				headers = []tar.Header{}
			}
			b := withRelease(t, headers...)
			b.refuses("unpack ")
		})
	}
}

func TestWithoutHeadersThereIsNoBuild(t *testing.T) {
	b := withRelease(t)
	if err := os.RemoveAll(filepath.Join(b.root, "lib/modules", release, "build")); err != nil {
		t.Fatal(err)
	}
	b.refuses("/lib/modules/" + release + "/build is not there: expected the headers of the running kernel")
}
