package guest_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
	"github.com/kata-qat/kata-qat/provision/guest"
)

// machine is one with an installed kernel and a base for a guest.
type machine struct {
	t    *testing.T
	root string
	o    guest.Options
}

// builtin is what a distribution's kernel has built in of what Kata needs, and
// modules the rest.
var builtin = []string{"virtio_pci", "virtiofs", "ext4", "irqbypass"}

func distribution() []kmodtest.Module {
	return []kmodtest.Module{
		{File: "kernel/net/vsock.ko.xz"},
		{File: "kernel/net/vmw_vsock_virtio_transport.ko", Depends: "vsock"},
		{File: "kernel/drivers/virtio_net.ko"},
		{File: "kernel/drivers/vfio.ko.xz", Exports: []string{"vfio_init"}},
		{File: "kernel/drivers/vfio-pci-core.ko", Depends: "vfio,irqbypass"},
		{File: "kernel/drivers/vfio-pci.ko", Depends: "vfio-pci-core"},
		{File: "kernel/drivers/vfio_iommu_type1.ko", Depends: "vfio"},
		{File: "kernel/drivers/qat_c62xvf.ko", Depends: "intel_qat", Aliases: []string{"pci:v00008086d000037C9sv*sd*bc*sc*i*"}, Size: 1000},
		{File: "kernel/drivers/intel_qat.ko", Size: 100000},
		{File: "kernel/other.ko", Size: 1000},
	}
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir()}
	kmodtest.Tree(t, m.root, builtin, distribution()...)
	m.write("boot/vmlinuz-"+kmodtest.Release, bzImage(kmodtest.Release))
	m.write("proc/sys/kernel/osrelease", []byte(kmodtest.Release+"\n"))
	m.write("bin/busybox", busybox())
	m.o = guest.Options{Root: m.root, Out: filepath.Join(t.TempDir(), "out"), Profile: edits.ProfileVFIO, Families: m.families("c62x")}
	m.base(kataRoot, "gzip", "-nc")
	return m
}

func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) write(name string, data []byte) {
	m.t.Helper()
	name = filepath.Join(m.root, name)
	m.must(os.MkdirAll(filepath.Dir(name), 0o755))
	m.must(os.WriteFile(name, data, 0o644))
}

func (m *machine) families(names ...string) (all []guest.Family) {
	m.t.Helper()
	for _, n := range names {
		f, err := guest.ParseFamily(n)
		m.must(err)
		all = append(all, f)
	}
	return all
}

// busybox is the head of a program without a linker, and names of applets.
func busybox() []byte {
	b := make([]byte, 64, 128)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], 2)  // an executable
	binary.LittleEndian.PutUint16(b[18:], 62) // for x86-64
	binary.LittleEndian.PutUint32(b[20:], 1)
	binary.LittleEndian.PutUint16(b[52:], 64)
	return append(b, "\x00modprobe\x00sh\x00"...)
}

// bzImage is the head of a kernel, which says what release it is.
func bzImage(release string) []byte {
	b := make([]byte, 4096)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x400)
	copy(b[0x600:], release+" (builder@host) #1 SMP")
	return b
}

// kataRoot is an initrd of Kata's form whose lib and sbin are links.
func kataRoot(w *cpio.Writer) {
	w.Dir("usr/lib")
	w.Dir("usr/sbin")
	w.Link("lib", "usr/lib")
	w.Link("sbin", "usr/sbin")
	w.Link("init", "/sbin/init")
	w.Bytes("usr/sbin/init", 0o755, "agent")
	w.Bytes("usr/lib/libc.so.6", 0o755, "libc")
}

func cpioOf(t *testing.T, fill func(*cpio.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// base makes an initrd the base.
func (m *machine) base(fill func(*cpio.Writer), compress ...string) {
	m.t.Helper()
	cmd := exec.Command(compress[0], compress[1:]...)
	cmd.Stdin = bytes.NewReader(cpioOf(m.t, fill))
	out, err := cmd.Output()
	m.must(err)
	m.write("initrd", out)
	m.o.Base = filepath.Join(m.root, "initrd")
}

func (m *machine) make() (*guest.Manifest, error) {
	m.t.Helper()
	d, err := guest.Prepare(m.t.Context(), m.o, true)
	if err != nil {
		return nil, err
	}
	return d.Make(m.t.Context())
}

func (m *machine) mustMake() *guest.Manifest {
	m.t.Helper()
	manifest, err := m.make()
	m.must(err)
	return manifest
}

func (m *machine) current() string { return filepath.Join(m.o.Out, guest.Current) }

// unpacked is the guest's root as busybox's cpio unpacks it, one archive after
// the other.
func (m *machine) unpacked(manifest *guest.Manifest, appendedIs ...string) string {
	m.t.Helper()
	dir := m.t.TempDir()
	data, err := os.ReadFile(filepath.Join(m.current(), guest.InitrdFile))
	m.must(err)
	cmd := exec.Command("sh", "-c", `"$@" | busybox cpio -i -d -u`, "sh", appendedIs[0])
	cmd.Args = append(cmd.Args, appendedIs[1:]...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(data[manifest.Root.Appended:])
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
	return dir
}
