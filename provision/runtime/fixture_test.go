package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// node is a machine below a directory, with a containerd that does nothing but
// read its configuration when it is restarted, and say what it found.
type node struct {
	t       *testing.T
	root    string
	cfg     *config.Config
	version string            // of containerd
	shims   map[string]string // what each of Kata's prints for --version
	flavour flavour
	refuses string // what containerd dies of when it is in its configuration

	restarts int
	server   *grpc.Server
}

const (
	rustShim = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2"
	goShim   = "/opt/kata/bin/containerd-shim-kata-v2"
	rustBase = "/opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml"
	goBase   = "/opt/kata/share/defaults/kata-containers/configuration-qemu.toml"

	rust41 = `Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1`
	go41   = `Kata Containers containerd shim (Golang): id: "io.containerd.kata.v2", version: 4.1.0, commit: 1`

	kataBase = `[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
image = "/opt/kata/share/kata-containers/kata-containers.img"
kernel_params = "quiet"
kernel_verity_params = "root_hash=1"
[agent.kata]
kernel_modules = ["tun", "vfio x=1"]
[runtime]
pod_resource_api_sock = "/k.sock"
`
)

// newNode has both runtimes of Kata 4.1 as a release has them, a guest for each
// profile, our shim, and containerd 2.4 with a configuration of schema 3.
func newNode(t *testing.T) *node {
	t.Helper()
	// Short, for there are sockets in it, and in memory where that is possible.
	root, err := os.MkdirTemp("/dev/shm", "kqr")
	if err != nil {
		root, err = os.MkdirTemp("/tmp", "kqr")
	}
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, root: root, cfg: config.Default(), version: "2.4.2", shims: map[string]string{rustShim: rust41, goShim: go41}}
	n.flavour = (&machine{paths: DefaultPaths()}).flavours()[2]
	t.Cleanup(func() {
		n.stop()
		os.RemoveAll(root)
	})
	for shim := range n.shims {
		n.program(shim)
	}
	n.program("/usr/local/bin/containerd-shim-kata-qat-v2")
	n.write(rustBase, kataBase)
	n.write(goBase, kataBase)
	n.guest("vfio", guest.InitrdFile)
	n.guest("guest-kernel", guest.ImageFile)
	n.write("/etc/containerd/config.toml", "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n")
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.root, name) }

func (n *node) write(name, content string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.path(name)), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(n.path(name), []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(names ...string) {
	n.t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(n.path(name)); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *node) program(name string) {
	n.t.Helper()
	n.write(name, "#!/bin/true\n")
	if err := os.Chmod(n.path(name), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) link(name, target string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.path(name)), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(target, n.path(name)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(name string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.path(name))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// guest makes the files of a guest that has an initrd, an image, or one that is
// "measured".
func (n *node) guest(profile, root string) {
	verity := ""
	if root == "measured" {
		root, verity = guest.ImageFile, measured
	}
	dir := filepath.Join(guest.DefaultOut, profile, "0123456789abcdef")
	n.write(filepath.Join(dir, "manifest.json"), fmt.Sprintf(`{"version": 1, "profile": %q, "kernel": {"file": "vmlinuz"}, "root": {"file": %q, "verity": %q},
		"kernelParams": ["rdinit=/kata-qat-init"], "agentModules": ["vfio", "vfio-pci disable_denylist=1"]}`, profile, root, verity))
	n.write(filepath.Join(dir, "vmlinuz"), "")
	n.write(filepath.Join(dir, root), "")
	n.link(filepath.Join(guest.DefaultOut, profile, guest.Current), "0123456789abcdef")
}

// on has another kind of containerd on the machine.
func (n *node) on(name, version, configuration string) *node {
	n.version = version
	for _, f := range (&machine{paths: DefaultPaths()}).flavours() {
		if f.name == name {
			n.flavour = f
		}
	}
	n.remove("/etc/containerd")
	if configuration != "" {
		n.write(filepath.Join(n.flavour.dir, "config.toml"), configuration)
	}
	return n
}

func (n *node) options(change ...func(*Options)) Options {
	o := Options{Root: n.root, Config: n.cfg, Runner: n, HealthTimeout: 300 * time.Millisecond}
	for _, f := range change {
		f(&o)
	}
	return o
}

func (n *node) engine(o Options) *plan.Engine {
	n.t.Helper()
	steps, err := Steps(o)
	if err != nil {
		n.t.Fatal(err)
	}
	return &plan.Engine{Root: n.root, Steps: steps}
}

// apply starts containerd if it is not running, and provisions.
func (n *node) apply(change ...func(*Options)) (*plan.Outcome, error) {
	n.t.Helper()
	if n.server == nil {
		if err := n.start(); err != nil {
			n.t.Fatal(err)
		}
	}
	return n.engine(n.options(change...)).Apply(n.t.Context())
}

func (n *node) mustApply(change ...func(*Options)) *plan.Outcome {
	n.t.Helper()
	out, err := n.apply(change...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *node) undo(change ...func(*Options)) {
	n.t.Helper()
	if _, err := n.engine(n.options(change...)).Undo(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// tree is all that is on the machine: each file's content, each link's target.
func (n *node) tree() map[string]string {
	n.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(n.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, n.root)
		switch {
		case d.IsDir():
			all[name] = "directory"
		case d.Type()&fs.ModeSymlink != 0:
			all[name], err = os.Readlink(p)
		case d.Type().IsRegular():
			var b []byte
			b, err = os.ReadFile(p)
			all[name] = string(b)
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	delete(all, filepath.Dir(n.flavour.socket)) // containerd's own
	for dir := n.flavour.socket; dir != "/"; dir = filepath.Dir(dir) {
		delete(all, dir)
	}
	if n.flavour.rendered { // at each start
		delete(all, filepath.Join(n.flavour.dir, "config.toml"))
	}
	return all
}

// Run is what the machine's programs do.
func (n *node) Run(_ context.Context, _, name string, args ...string) (string, error) {
	switch line := strings.Join(append([]string{name}, args...), " "); {
	case line == n.flavour.binary+" --version" && n.version != "":
		return "containerd github.com/containerd/containerd/v2 v" + n.version + " 1234\n", nil
	case strings.HasSuffix(line, " --version") && n.shims[name] != "":
		return n.shims[name] + "\n", nil
	case strings.HasPrefix(line, "systemctl is-active "):
		if args[1] == n.flavour.units[len(n.flavour.units)-1] {
			return "active\n", nil
		}
		return "inactive\n", errors.New("exit status 3")
	case line == "systemctl restart "+n.flavour.units[len(n.flavour.units)-1]:
		n.restarts++
		n.stop()
		return "", n.start()
	default:
		return "", fmt.Errorf("run %s: no such program", line)
	}
}

func (n *node) stop() {
	if n.server != nil {
		n.server.Stop()
		n.server = nil
	}
}

// start reads the configuration, which k3s renders first, and serves CRI.
func (n *node) start() error {
	main := filepath.Join(n.flavour.dir, "config.toml")
	if b, err := os.ReadFile(n.path(main)); err == nil && n.flavour.rendered {
		rendered := withoutBlock(string(b))
		n.write(main, rendered)
		for _, tmpl := range []string{"config-v3.toml.tmpl", "config.toml.tmpl"} {
			b, err := os.ReadFile(n.path(filepath.Join(n.flavour.dir, tmpl)))
			if err != nil {
				continue
			}
			n.write(main, strings.Replace(string(b), base, rendered, 1))
			break
		}
	}
	m := &machine{Options: Options{Root: n.root}}
	c := &setup{config: main, flavour: n.flavour}
	if err := m.readConfig(c); err != nil {
		return errors.New("exit status 1")
	}
	handlers := []string{"runc"}
	for _, d := range c.files {
		if n.refuses != "" && strings.Contains(string(d.Bytes()), n.refuses) {
			return errors.New("exit status 1")
		}
		for _, plugin := range []string{containerdconfig.CRIv1, containerdconfig.CRIv2} {
			v, _ := d.Get("plugins", plugin, "containerd", "runtimes")
			runtimes, _ := v.(map[string]any)
			for name := range runtimes {
				handlers = append(handlers, name)
			}
		}
	}
	socket := n.path(n.flavour.socket)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	n.server = grpc.NewServer()
	cri.RegisterRuntimeServiceServer(n.server, criServer{version: n.version, handlers: handlers})
	go n.server.Serve(l)
	return nil
}

type criServer struct {
	cri.UnimplementedRuntimeServiceServer
	version  string
	handlers []string
}

func (s criServer) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeVersion: "v" + s.version}, nil
}

func (s criServer) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	r := &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{{Type: cri.RuntimeReady, Status: true}}}}
	for _, h := range s.handlers {
		r.RuntimeHandlers = append(r.RuntimeHandlers, &cri.RuntimeHandler{Name: h})
	}
	return r, nil
}

// get is a value of a file of the machine.
func (n *node) get(name string, path ...string) any {
	n.t.Helper()
	d, err := tomledit.Parse(name, []byte(n.read(name)))
	if err != nil {
		n.t.Fatal(err)
	}
	v, _ := d.Get(path...)
	return v
}
