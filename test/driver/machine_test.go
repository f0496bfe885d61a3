//go:build lab

package driver

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/plan"
	"github.com/kata-qat/kata-qat/test/lab"
)

// The machines are mounted where nobody else sees them, and are gone with this
// process.
func TestMain(m *testing.M) {
	const inside = "KATA_QAT_DRIVER_TEST"
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "--", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// machine is a Debian root with a QAT card: what is changed in it is in upper.
type machine struct {
	t                  *testing.T
	root, lower, upper string
	program            string
}

func directory(t *testing.T, variable, name string) string {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		dir = filepath.Join("../../build", name)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// labRelease is the release of the lab's kernel.
func labRelease(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(directory(t, "KATA_QAT_LAB_DIR", "lab"), "release"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// newMachine starts a machine of a Debian suite that runs a kernel and has a card
// of a family, on which all but drivers is as it should be.
func newMachine(t *testing.T, suite, kernel string, pf qattest.PF) *machine {
	t.Helper()
	program, err := lab.Build(t.Context(), "./cmd/kata-qat")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := &machine{t: t, root: filepath.Join(dir, "root"), lower: filepath.Join(directory(t, "KATA_QAT_DRIVER_DIR", "driver"), suite), upper: filepath.Join(dir, "layer/upper"), program: program}
	m.mount("tmpfs", filepath.Join(dir, "layer"), "tmpfs", 0, "")
	work := filepath.Join(dir, "layer/work")
	for _, d := range []string{m.upper, work, m.root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.mount("overlay", m.root, "overlay", 0, "lowerdir="+m.lower+",upperdir="+m.upper+",workdir="+work)
	m.mount("proc", filepath.Join(m.root, "proc"), "proc", 0, "")
	pf.Address, pf.Group, pf.NoDebugfs = "0000:6b:00.0", 3, true
	if err := (qattest.Node{PFs: []qattest.PF{pf}}).Write(m.root); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"/sys/module/vfio_pci/initstate":         "live\n",
		"/sys/module/vfio_iommu_type1/initstate": "live\n",
		"/sys/module/qat_4xxx/taint":             "\n",
		"/usr/local/bin/kata-qat":                "",
	} {
		m.write(name, content)
	}
	for name, content := range map[string]string{
		"/proc/sys/kernel/osrelease": kernel + "\n",
		"/proc/cmdline":              "root=/dev/sda1 intel_iommu=on iommu=pt\n",
	} {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		m.mount(file, filepath.Join(m.root, name), "", syscall.MS_BIND, "")
	}
	return m
}

func (m *machine) mount(source, target, kind string, flags uintptr, options string) {
	m.t.Helper()
	if flags&syscall.MS_BIND == 0 {
		if err := os.MkdirAll(target, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := syscall.Mount(source, target, kind, flags, options); err != nil {
		m.t.Fatalf("mount %s: %v", target, err)
	}
	m.t.Cleanup(func() {
		if err := syscall.Unmount(target, 0); err != nil {
			m.t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func (m *machine) write(name, content string) {
	m.t.Helper()
	p := filepath.Join(m.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) has(name string) bool {
	_, err := os.Lstat(filepath.Join(m.root, name))
	return err == nil
}

// provision runs kata-qat provision host for the machine and returns what it
// printed and its exit code.
func (m *machine) provision(args ...string) (string, int) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), m.program, append([]string{"--host-root", m.root, "provision", "host"}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	m.t.Logf("kata-qat provision host %s: exit code %d\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), out)
	return string(out), cmd.ProcessState.ExitCode()
}

// provisions expects an exit code.
func (m *machine) provisions(code int, args ...string) string {
	m.t.Helper()
	out, got := m.provision(args...)
	if got != code {
		m.t.Fatalf("exit code %d, want %d", got, code)
	}
	return out
}

// run runs a program of the machine.
func (m *machine) run(argv ...string) string {
	m.t.Helper()
	out, err := exec.CommandContext(m.t.Context(), "chroot", append([]string{m.root}, argv...)...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// aptsOwn is what apt writes whenever it is asked something.
var aptsOwn = []string{"/var/cache/apt/pkgcache.bin", "/var/cache/apt/srcpkgcache.bin", "/var/log/apt/eipp.log.xz"}

// layer describes what is in the machine's layer: by name, mode and content. A
// device 0:0 hides what is below (Linux, Documentation/filesystems/overlayfs.rst).
type layer map[string]string

func (m *machine) layer() layer {
	m.t.Helper()
	l := make(layer)
	err := filepath.WalkDir(m.upper, func(p string, _ fs.DirEntry, err error) error {
		if name := strings.TrimPrefix(p, m.upper); err == nil && !slices.Contains(aptsOwn, name) {
			l[name] = describe(m.t, p)
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

func describe(t *testing.T, p string) string {
	t.Helper()
	info, err := os.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	switch mode := info.Mode(); {
	case strings.HasSuffix(p, plan.Directory+"/lock"): // says who ran last
		return mode.String()
	case mode.IsRegular():
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%v %x", mode, sha256.Sum256(b))
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		return "link " + target
	case mode&fs.ModeCharDevice != 0 && info.Sys().(*syscall.Stat_t).Rdev == 0:
		return ""
	default:
		return mode.String()
	}
}

// unchanged expects that the machine is as it was: files may have been written
// again, with what they had.
func (m *machine) unchanged(before layer) {
	m.t.Helper()
	now := m.layer()
	names := slices.Collect(maps.Keys(now))
	for name := range before {
		if _, ok := now[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		below := describe(m.t, m.lower+name)
		was, ok := before[name]
		if !ok {
			was = below
		}
		is, ok := now[name]
		if !ok {
			is = below
		}
		if was != is {
			m.t.Errorf("%s was %q, is %q", name, was, is)
		}
	}
}

// oneLine expects that a command which failed said why in one line with this in
// it.
func oneLine(t *testing.T, out, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "kata-qat: ") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 || !strings.Contains(lines[0], want) || !bytes.HasSuffix([]byte(out), []byte(lines[0])) {
		t.Errorf("it says\n%s\nwant one line at the end, with %q", strings.Join(lines, ""), want)
	}
}
