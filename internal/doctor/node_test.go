package doctor_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	version "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/doctor"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// node is a node on which nothing is wrong, until somebody plants a fault.
type node struct {
	qattest.Tree
	t       *testing.T
	options doctor.Options
	daemon  *daemon
	version atomic.Value // containerd's
	offered atomic.Value // to kubelet: the VFs
	cancel  map[string]func()
}

const (
	gen4 qat.Address = "0000:6b:00.0"
	gen2 qat.Address = "0000:3d:00.0"
	// The first VF of each.
	gen4VF qat.Address = "0000:6b:00.1"
	gen2VF qat.Address = "0000:3d:01.0"
)

// machine has a device with services, and one that is on the deny-list.
func machine() qattest.Node {
	return qattest.Node{PFs: []qattest.PF{
		{Address: gen4, Family: "4xxx", Services: "sym;asym", State: qat.StateUp, Group: 20, VFs: 4, TotalVFs: 4, VFDriver: "vfio-pci", FirstGroup: 100},
		{Address: gen2, Family: "c62x", Group: 21, VFs: 2, TotalVFs: 2, VFDriver: "vfio-pci", FirstGroup: 200},
	}}
}

// healthy is a node that provision host has provisioned, with all that belongs
// to it.
func healthy(t *testing.T, m qattest.Node) *node {
	t.Helper()
	n := &node{t: t, Tree: qattest.Tree{Root: containerstest.Root(t)}, daemon: &daemon{connected: true}, cancel: make(map[string]func())}
	n.version.Store("v2.4.2")
	n.offered.Store(vfs(m))
	if err := m.Write(n.Root); err != nil {
		t.Skipf("%v: run as root", err)
	}
	n.options = doctor.Options{
		Root: n.Root, Config: config.Default(), ConfigFile: filepath.Join(n.Root, config.Path), Containerd: containerstest.NodeAt(n.Root),
	}
	n.writeHost()
	n.provision()
	n.writeRuntime()
	n.serve("/run/containerd/containerd.sock", func(s *grpc.Server) { version.RegisterVersionServer(s, containerd{n: n}) })
	n.serve("/var/lib/kubelet/pod-resources/kubelet.sock", func(s *grpc.Server) { podresources.RegisterPodResourcesListerServer(s, kubelet{n: n}) })
	n.startDaemon()
	n.writeCDI()
	return n
}

func (n *node) write(name, content string) {
	n.t.Helper()
	file := filepath.Join(n.Root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(name string) {
	n.t.Helper()
	if err := os.RemoveAll(filepath.Join(n.Root, name)); err != nil {
		n.t.Fatal(err)
	}
}

// glob are the paths below the root that match.
func (n *node) glob(pattern string) []string {
	n.t.Helper()
	names, err := filepath.Glob(n.Root + pattern)
	n.must(err)
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], n.Root)
	}
	return names
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// writeHost is what a machine has before anybody provisions it, with the modules
// loaded already.
func (n *node) writeHost() {
	for name, content := range map[string]string{
		"/proc/cmdline":                                     "root=/dev/sda1 intel_iommu=on iommu=pt quiet\n",
		"/proc/sys/kernel/osrelease":                        "6.12.0-test\n",
		"/lib/modules/6.12.0-test/modules.dep":              "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\nkernel/drivers/vfio/vfio.ko.xz:\nkernel/drivers/vfio/vfio_iommu_type1.ko.xz:\n",
		"/sys/firmware/acpi/tables/DMAR":                    "DMAR",
		"/sys/kernel/security/lockdown":                     "[none] integrity confidentiality\n",
		"/sys/module/vfio/refcnt":                           "1\n",
		"/sys/module/vfio_iommu_type1/refcnt":               "1\n",
		"/sys/module/vfio_pci/parameters/disable_denylist":  "Y\n",
		"/sys/module/qat_4xxx/refcnt":                       "1\n",
		"/sys/module/qat_c62x/refcnt":                       "1\n",
		"/lib/firmware/qat_4xxx.bin.xz":                     "x",
		"/lib/firmware/intel/qat/qat_4xxx_mmp.bin.zst":      "x",
		"/lib/firmware/qat_c62x.bin":                        "x",
		"/lib/firmware/qat_c62x_mmp.bin":                    "x",
		"/usr/local/bin/kata-qat":                           "#!/bin/sh\n",
		"/etc/systemd/system/multi-user.target.wants/.keep": "",
		"/etc/udev/rules.d/.keep":                           "",
	} {
		n.write(name, content)
	}
}

// provision runs what doctor is to agree with.
func (n *node) provision() {
	n.t.Helper()
	e := plan.Engine{Root: n.Root, Steps: host.Steps(host.Options{Root: n.Root, Config: n.options.Config.Provision})}
	if _, err := e.Apply(n.t.Context()); err != nil {
		n.t.Fatalf("provision the host: %v", err)
	}
}

const (
	base   = "/opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"
	dropIn = "/opt/kata/share/defaults/kata-containers/runtimes/qemu/config.d/60-kata-qat.toml"
)

// writeRuntime is what containerd, our shim and Kata read.
func (n *node) writeRuntime() {
	for name, content := range map[string]string{
		"/etc/containerd/config.toml": "version = 3\nimports = [\"conf.d/*.toml\"]\n",
		"/etc/containerd/conf.d/60-kata-qat.toml": `
[plugins.'io.containerd.nri.v1.nri'.default_validator]
enable = true
required_plugins = ["kata-qat"]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qat]
runtime_type = "io.containerd.kata-qat.v2"
runtime_path = "/usr/local/bin/containerd-shim-kata-qat-v2"
privileged_without_host_devices = true
pod_annotations = ["io.katacontainers.*"]
options.ConfigPath = "` + base + `"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`,
		"/var/run/nri/nri.sock":                      "",
		"/usr/local/bin/containerd-shim-kata-qat-v2": "#!/bin/sh\n",
		"/opt/kata/bin/containerd-shim-kata-v2":      "#!/bin/sh\n",
		"/etc/kata-qat/shim.toml":                    "[runtimes]\nkata-qat = \"/opt/kata/bin/containerd-shim-kata-v2\"\n",
		base:                                         "[hypervisor.qemu]\ncold_plug_vfio = \"no-port\"\nhot_plug_vfio = \"no-port\"\n[runtime]\nvfio_mode = \"guest-kernel\"\n",
		dropIn:                                       "[hypervisor.qemu]\ncold_plug_vfio = \"root-port\"\nenable_iommu = true\n[runtime]\nvfio_mode = \"vfio\"\n",
	} {
		n.write(name, content)
	}
}

// serve serves gRPC on a socket until the test ends, or stop.
func (n *node) serve(socket string, register func(*grpc.Server)) {
	n.t.Helper()
	file := filepath.Join(n.Root, socket)
	n.must(os.MkdirAll(filepath.Dir(file), 0o755))
	l, err := net.Listen("unix", file)
	n.must(err)
	s := grpc.NewServer()
	register(s)
	go func() { _ = s.Serve(l) }()
	n.t.Cleanup(s.Stop)
	n.cancel[socket] = s.Stop
}

func (n *node) stop(socket string) { n.cancel[socket]() }

// containerd answers with a version.
type containerd struct {
	version.UnimplementedVersionServer
	n *node
}

func (c containerd) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: c.n.version.Load().(string)}, nil
}

// kubelet answers that what is offered can be allocated.
type kubelet struct {
	podresources.UnimplementedPodResourcesListerServer
	n *node
}

func (k kubelet) GetAllocatableResources(context.Context, *podresources.AllocatableResourcesRequest) (*podresources.AllocatableResourcesResponse, error) {
	devices := &podresources.ContainerDevices{ResourceName: "qat.intel.com/any", DeviceIds: k.n.offered.Load().([]string)}
	return &podresources.AllocatableResourcesResponse{Devices: []*podresources.ContainerDevices{devices}}, nil
}

// vfs are the addresses of a machine's VFs.
func vfs(m qattest.Node) []string {
	all := []string{}
	for _, pf := range m.PFs {
		for i := range pf.VFs {
			all = append(all, string(qattest.VFAddress(pf.Address, qat.FamilyByName(pf.Family), i)))
		}
	}
	return all
}

// daemon answers for the node daemon. Its fields are set before doctor runs.
type daemon struct {
	nodev1.NodeService
	version   string // "" for that of this build
	connected bool
}

func (d *daemon) Health(context.Context, *nodev1.HealthRequest) (*nodev1.HealthResponse, error) {
	answer := &nodev1.HealthResponse{Daemon: api.Daemon(), Ready: d.connected, RuntimeConnected: d.connected}
	if d.version != "" {
		answer.Daemon.Version = d.version
	}
	return answer, nil
}

const nodeSocket = "/run/kata-qat/node.sock"

func (n *node) startDaemon() {
	n.t.Helper()
	s, err := api.Listen(filepath.Join(n.Root, nodeSocket), n.daemon)
	n.must(err)
	go func() { _ = s.Serve(context.Background()) }()
	n.cancel[nodeSocket] = func() { _ = s.Shutdown(context.Background()) } // twice, and with the socket gone, is no error here
	n.t.Cleanup(n.cancel[nodeSocket])
}

// writeCDI writes what the daemon writes.
func (n *node) writeCDI() {
	n.t.Helper()
	inv, err := qat.Discover(n.Root)
	n.must(err)
	table := vfio.Load(n.Root, inv, vfio.Options{})
	var vfs []edits.VF
	for _, d := range table.Devices() {
		vfs = append(vfs, edits.VF{Address: d.VF.Address, Resource: d.VF.Resource(), Group: d.Node})
	}
	for _, s := range edits.CDISpecs(vfs, table.Control) {
		b, err := json.Marshal(s)
		n.must(err)
		n.write("/var/run/cdi/"+filepath.Base(filepath.Dir(s.Kind))+"-"+filepath.Base(s.Kind)+".json", string(b))
	}
}

func (n *node) examine() *doctor.Report {
	n.t.Helper()
	return doctor.Run(n.t.Context(), n.options)
}

// snapshot is everything below the root, by path: what kind of file it is and
// what is in it.
func (n *node) snapshot() map[string]string {
	n.t.Helper()
	all := make(map[string]string)
	n.must(filepath.WalkDir(n.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String() + " " + info.ModTime().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += " " + string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " " + target
		}
		all[strings.TrimPrefix(path, n.Root)] = what
		return nil
	}))
	return all
}
