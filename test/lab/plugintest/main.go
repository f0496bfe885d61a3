// Command plugintest runs in a guest of the lab: on a real kernel with VFs bound
// to vfio-pci it starts the node daemon beside a stand-in for kubelet, changes
// the VFs in the ways that the kernel announces, and sees that kubelet is told.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/device-plugin/kubelettest"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

const (
	resource = "qat.intel.com/cy"
	config   = "/etc/kata-qat/config.toml"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	t := &guest{ctx: ctx}
	defer t.cleanup()
	run(t)
	fmt.Println("all was told")
}

func run(t *guest) {
	daemon := start(t)
	k := kubelettest.New("/var/lib/kubelet/device-plugins")
	k.Start(t)
	inv, err := qat.Discover("/")
	t.check(err)
	vfs := inv.PFs[0].VFs
	first, second := &vfs[0], &vfs[1]
	tell := func(what string, list string, change func() error) {
		start := time.Now()
		t.check(change())
		k.Expect(t, resource, list)
		fmt.Printf("%s: kubelet knows after %s\n", what, time.Since(start).Round(time.Millisecond))
	}
	tell("a kubelet", offer(vfs), func() error { return nil })

	b := vfio.Binder{Root: "/"}
	tell("a VF without a driver", offer(vfs[1:]), func() error { return b.Unbind(first.Address) })
	tell("a VF with one again", offer(vfs), func() error { return b.Bind(first.Address, "vfio-pci") })

	var fd int
	tell("a VF that the host uses", offer(vfs, second.Address), func() (err error) {
		fd, err = unix.Open(second.Group.Node(), unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	_, err = k.Allocate(t, resource, string(second.Address))
	fmt.Println("allocate:", err)
	tell("a VF that is free again", offer(vfs), func() error { return unix.Close(fd) })

	tell("another kubelet", offer(vfs), func() error {
		k.Kill()
		k.Start(t)
		return nil
	})
	tell("no VFs", "", func() error {
		return vfio.WriteAttribute(filepath.Join("/sys/bus/pci/devices", string(inv.PFs[0].Address), "sriov_numvfs"), "0")
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", daemon.Pid))
	t.check(err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") {
			fmt.Print("the daemon: ", line)
		}
	}
}

// offer is what kubelet is to know of VFs, some of which cannot be used.
func offer(vfs []qat.VF, unhealthy ...qat.Address) string {
	var all []string
	for _, vf := range vfs {
		s := string(vf.Address) + "@-"
		for _, a := range unhealthy {
			if a == vf.Address {
				s += "!"
			}
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

// start starts the daemon, for which there is no container runtime, and a
// PodResources service that knows no pod.
func start(t *guest) *os.Process {
	const socket = "/var/lib/kubelet/pod-resources/kubelet.sock"
	t.check(os.MkdirAll(filepath.Dir(socket), 0o755))
	t.check(os.MkdirAll(filepath.Dir(config), 0o755))
	l, err := net.Listen("unix", socket)
	t.check(err)
	s := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(s, noPods{})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	t.check(os.WriteFile(config, []byte("[device_plugin]\nenable = true\n"), 0o644))
	daemon := exec.CommandContext(t.ctx, "kata-qat", "nri-plugin")
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	t.check(daemon.Start())
	t.Cleanup(func() {
		_ = daemon.Process.Signal(os.Interrupt)
		_ = daemon.Wait()
	})
	return daemon.Process
}

type noPods struct {
	podresources.UnimplementedPodResourcesListerServer
}

func (noPods) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	return &podresources.ListPodResourcesResponse{}, nil
}

// guest is what the stand-in needs of a test.
type guest struct {
	ctx      context.Context
	cleanups []func()
}

func (t *guest) Helper()                  {}
func (t *guest) Context() context.Context { return t.ctx }
func (t *guest) Cleanup(f func())         { t.cleanups = append(t.cleanups, f) }
func (t *guest) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, append([]any{"plugintest:"}, args...)...)
	t.cleanup()
	os.Exit(1)
}
func (t *guest) Fatalf(format string, args ...any) { t.Fatal(fmt.Sprintf(format, args...)) }

func (t *guest) check(err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func (t *guest) cleanup() {
	for _, f := range t.cleanups {
		f()
	}
	t.cleanups = nil
}
