package node_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio/simkernel"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/node"
	"github.com/kata-qat/kata-qat/provision/runtime"
)

// machine is a whole one below a directory: cards with a simulated kernel behind
// their sysfs, a distribution's kernel, Kata, and a containerd that does nothing but
// read our drop-in when it is restarted.
type machine struct {
	t      *testing.T
	root   string
	o      node.Options
	server *grpc.Server
}

const (
	kataShim   = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2"
	kataConfig = "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml"
	socket     = "/run/containerd/containerd.sock"
	dropIn     = "/etc/containerd/conf.d/60-kata-qat.toml"
)

// bare is a Debian with a kernel and GRUB, and nothing of what is to be
// provisioned.
func bare(t *testing.T, has qattest.Node) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kqm") // short, for there is a socket in it
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: filepath.Join(dir, "root")}
	t.Cleanup(func() {
		m.stop()
		os.RemoveAll(dir)
	})
	if err := has.Write(m.root); err != nil && !errors.Is(err, qattest.ErrMknod) {
		t.Fatal(err)
	}
	m.write("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1\n")
	m.write("/proc/sys/kernel/osrelease", kmodtest.Release+"\n")
	m.write("/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n")
	m.write("/etc/systemd/system/keep", "")
	m.write("/usr/local/bin/kata-qat", "")
	m.write("/var/lib/keep", "")
	m.write("/sys/module/keep/refcnt", "0\n")
	kmodtest.Tree(t, m.root, []string{"virtio_pci", "virtiofs", "ext4", "irqbypass", "virtio_net"},
		kmodtest.Module{File: "kernel/net/vsock.ko"},
		kmodtest.Module{File: "kernel/net/vmw_vsock_virtio_transport.ko", Depends: "vsock"},
		kmodtest.Module{File: "kernel/drivers/vfio.ko"},
		kmodtest.Module{File: "kernel/drivers/vfio-pci.ko", Depends: "vfio"},
		kmodtest.Module{File: "kernel/drivers/vfio_iommu_type1.ko", Depends: "vfio"})
	kernel := make([]byte, 4096) // the head of a bzImage
	copy(kernel[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(kernel[0x20e:], 0x400)
	copy(kernel[0x600:], kmodtest.Release+" (builder@host) #1 SMP")
	m.write("/boot/vmlinuz-"+kmodtest.Release, string(kernel))
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"update-grub": "",
		"modprobe": `n=$(echo $1 | tr - _)
mkdir -p $HOST_ROOT/sys/module/$n && echo 0 >$HOST_ROOT/sys/module/$n/refcnt`,
		"rmmod": "rm -r $HOST_ROOT/sys/module/$1",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh -e\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sim := simkernel.New(qattest.Tree{Root: m.root})
	for i, pf := range has.PFs {
		sim.NewGroups[pf.Address] = 100 * (i + 1)
	}
	m.o = node.Options{
		Root: m.root, Config: config.Default(),
		Host: host.Options{
			Write:  sim.Write,
			Runner: &host.Runner{Root: m.root, Path: []string{bin}, NoChroot: true, Env: []string{"PATH=" + bin + ":/usr/bin:/bin", "HOST_ROOT=" + m.root}},
		},
		Runtime: runtime.Options{Runner: m},
	}
	return m
}

// complete is a machine with all that provisioning relies on.
func complete(t *testing.T) *machine {
	t.Helper()
	m := bare(t, qattest.Node{PFs: []qattest.PF{{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: "up", Group: 3, NoDebugfs: true}}})
	m.write("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on iommu=pt\n")
	m.write("/lib/firmware/qat_4xxx.bin", "")
	m.write("/lib/firmware/qat_4xxx_mmp.bin", "")
	m.write("/opt/kata/share/kata-containers/kata-containers-initrd.img", m.initrd())
	m.write("/bin/busybox", busybox())
	for _, program := range []string{kataShim, "/usr/local/bin/containerd-shim-kata-qat-v2"} {
		m.write(program, "#!/bin/true\n")
		if err := os.Chmod(filepath.Join(m.root, program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write(kataConfig, "[hypervisor.qemu]\nimage = \"/opt/kata/share/kata-containers/kata-containers.img\"\nkernel_params = \"\"\n[agent.kata]\nkernel_modules = []\n[runtime]\nvfio_mode = \"guest-kernel\"\n")
	m.write("/etc/containerd/config.toml", "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n")
	m.write("/run/keep", "")
	if err := m.start(); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) write(name, content string) {
	m.t.Helper()
	p := filepath.Join(m.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) initrd() string {
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	w.Dir("lib")
	w.Dir("sbin")
	w.Bytes("init", 0o755, "agent")
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	return b.String()
}

// busybox is the head of a program without a linker, and names of applets.
func busybox() string {
	b := make([]byte, 64, 128)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], 2)  // an executable
	binary.LittleEndian.PutUint16(b[18:], 62) // for x86-64
	binary.LittleEndian.PutUint32(b[20:], 1)
	binary.LittleEndian.PutUint16(b[52:], 64)
	return string(append(b, "\x00modprobe\x00sh\x00"...))
}

// Run is what the programs do that provision runtime asks.
func (m *machine) Run(_ context.Context, _, name string, args ...string) (string, error) {
	switch line := strings.Join(append([]string{name}, args...), " "); line {
	case kataShim + " --version":
		return "Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1\n", nil
	case "containerd --version":
		if m.server == nil {
			return "", errors.New("no such program")
		}
		return "containerd github.com/containerd/containerd/v2 v2.4.2 1234\n", nil
	case "systemctl is-active containerd":
		return "active\n", nil
	case "systemctl restart containerd":
		m.stop()
		return "", m.start()
	default:
		return "", fmt.Errorf("run %s: no such program", line)
	}
}

func (m *machine) stop() {
	if m.server != nil {
		m.server.Stop()
		m.server = nil
	}
}

func (m *machine) start() error {
	handlers := []string{"runc"}
	if b, err := os.ReadFile(filepath.Join(m.root, dropIn)); err == nil && strings.Contains(string(b), "runtimes.kata-qat]") {
		handlers = append(handlers, "kata-qat")
	}
	file := filepath.Join(m.root, socket)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	l, err := net.Listen("unix", file)
	if err != nil {
		return err
	}
	m.server = grpc.NewServer()
	cri.RegisterRuntimeServiceServer(m.server, containerd{handlers: handlers})
	go m.server.Serve(l)
	return nil
}

type containerd struct {
	cri.UnimplementedRuntimeServiceServer
	handlers []string
}

func (c containerd) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	r := &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{{Type: cri.RuntimeReady, Status: true}}}}
	for _, h := range c.handlers {
		r.RuntimeHandlers = append(r.RuntimeHandlers, &cri.RuntimeHandler{Name: h})
	}
	return r, nil
}
