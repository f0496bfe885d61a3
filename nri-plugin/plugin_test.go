package nriplugin

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

func newPlugin(tb testing.TB, machine qattest.Node) *Plugin {
	tb.Helper()
	tree := qattest.New(tb, machine)
	tree.RequireNodes(tb)
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	log := logrus.NewEntry(logger)
	monitor, err := devices.NewMonitor(devices.Options{Root: tree.Root, ConfDir: tb.TempDir() + "/conf", Conf: devconf.DefaultOptions(), Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	alloc, err := allocation.NewResolver(allocation.Options{Standalone: true})
	if err != nil {
		tb.Fatal(err)
	}
	monitor.OnChange(func(v *devices.View) { alloc.SetTable(v.Table) })
	c := config.Default()
	return New(Options{Profile: c.ProfileOf, MemlockAllowance: 64 << 20, Devices: monitor, Allocation: alloc, Log: log})
}

func sandbox(n int, request string) *api.PodSandbox {
	pod := &api.PodSandbox{
		Id: fmt.Sprintf("sandbox-%d", n), Uid: fmt.Sprintf("uid-%d", n), Namespace: "default", Name: fmt.Sprintf("pod-%d", n), RuntimeHandler: "kata-qat",
	}
	if request != "" {
		pod.Annotations = map[string]string{allocation.RequestAnnotation + "main": request}
	}
	return pod
}

// container is as containerd describes one to a plugin: some thirty variables,
// mounts and a few devices.
func container(pod *api.PodSandbox, id string) *api.Container {
	c := &api.Container{Id: id, PodSandboxId: pod.GetId(), Name: "main", User: &api.User{Uid: 1000, Gid: 1000}, Linux: &api.LinuxContainer{}}
	for i := range 30 {
		c.Env = append(c.Env, fmt.Sprintf("VARIABLE_%d=value", i))
	}
	for i := range 15 {
		c.Mounts = append(c.Mounts, &api.Mount{Source: "/a", Destination: fmt.Sprintf("/mnt/%d", i)})
	}
	for i, path := range []string{"/dev/null", "/dev/zero", "/dev/random"} {
		c.Linux.Devices = append(c.Linux.Devices, &api.LinuxDevice{Path: path, Type: "c", Major: 1, Minor: int64(3 + i)})
	}
	return c
}

// withNodes puts the group nodes of the VFs there, as kubelet does.
func withNodes(p *Plugin, c *api.Container, vfs int) *api.Container {
	for _, d := range p.o.Devices.Current().Table.Devices()[:vfs] {
		c.Linux.Devices = append(c.Linux.Devices, &api.LinuxDevice{Path: d.Node.Path, Type: "c", Major: int64(d.Node.Major), Minor: int64(d.Node.Minor)})
	}
	return c
}

func TestValidationRejectsWhatWasNotAdjusted(t *testing.T) {
	p := newPlugin(t, qattest.Many(1))
	pod := sandbox(1, "cy=2")
	ctr := container(pod, "c1")
	a, _, err := p.CreateContainer(t.Context(), pod, ctr)
	if err != nil {
		t.Fatal(err)
	}
	validate := func(a *api.ContainerAdjustment) error {
		return p.ValidateContainerAdjustment(t.Context(), &api.ValidateContainerAdjustmentRequest{Pod: pod, Container: ctr, Adjust: a})
	}
	if err := validate(a); err != nil {
		t.Errorf("our own adjustment is rejected: %v", err)
	}
	if err := validate(nil); err == nil || !strings.Contains(err.Error(), "/dev/vfio/") || !strings.Contains(err.Error(), "default/pod-1") {
		t.Errorf("without an adjustment: error %v, expected one that names the pod and what is missing", err)
	}
	plain := sandbox(2, "")
	if err := p.ValidateContainerAdjustment(t.Context(), &api.ValidateContainerAdjustmentRequest{Pod: plain, Container: container(plain, "c2")}); err != nil {
		t.Errorf("a container without VFs is rejected: %v", err)
	}
}

func TestHandlersThatAreNotOursGetNothing(t *testing.T) {
	p := newPlugin(t, qattest.Many(1))
	pod := sandbox(1, "cy=2")
	for handler, ours := range map[string]bool{"kata": true, "kata-qat": true, "katana": false, "runc": false, "": false} {
		pod.RuntimeHandler = handler
		a, updates, err := p.CreateContainer(t.Context(), pod, container(pod, "c1"))
		if err != nil || updates != nil || (a != nil) != ours {
			t.Errorf("handler %q: adjustment %v, updates %v, error %v", handler, a != nil, updates, err)
		}
	}
}

// A device that comes after the view was made is found by the pod that needs it.
func TestADeviceThatCameLaterIsFound(t *testing.T) {
	machine := qattest.Many(1)
	machine.PFs[0].VFDriver = ""
	p := newPlugin(t, machine)
	pod := sandbox(1, "cy=1")
	if _, _, err := p.CreateContainer(t.Context(), pod, container(pod, "c1")); err == nil {
		t.Fatal("a VF without a driver was given")
	}
	root := p.o.Devices.Root()
	vf := p.o.Devices.Current().Table.Devices()[0].VF.Address
	if err := (qattest.Tree{Root: root}).Rebind(vf, "vfio-pci"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, _, err := p.CreateContainer(t.Context(), pod, container(pod, "c1"))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still refused: %v", err)
		}
	}
}

func TestNothingOfAPodThatIsGoneIsKept(t *testing.T) {
	p := newPlugin(t, qattest.Many(1))
	for i := range 40 { // more than there are VFs
		pod := sandbox(i, "cy=8")
		if err := p.RunPodSandbox(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.CreateContainer(t.Context(), pod, container(pod, "c")); err != nil {
			t.Fatalf("pod %d: %v", i, err)
		}
		if err := p.RemoveContainer(t.Context(), pod, container(pod, "c")); err != nil {
			t.Fatal(err)
		}
		if err := p.StopPodSandbox(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	p.made.Range(func(id, _ any) bool {
		t.Errorf("edits of container %v are kept", id)
		return true
	})
	if as := p.o.Allocation.Assignments(); len(as) != 0 {
		t.Errorf("left behind: %v", as)
	}
}

func BenchmarkCreateContainer16VFs(b *testing.B) {
	p := newPlugin(b, qattest.Many(64))
	pod := sandbox(1, "")
	ctr := withNodes(p, container(pod, "c"), 16)
	took := make([]time.Duration, 0, 1<<20)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		a, _, err := p.CreateContainer(context.Background(), pod, ctr)
		if err != nil || len(a.Mounts) != 16 {
			b.Fatalf("%v %v", a, err)
		}
		took = append(took, time.Since(start))
	}
	percentiles(b, took)
}

func BenchmarkCreateContainerOfNoInterest(b *testing.B) {
	p := newPlugin(b, qattest.Many(64))
	pod := sandbox(1, "")
	for _, handler := range []string{"runc", "kata-qat"} {
		pod.RuntimeHandler = handler
		ctr := container(pod, "c")
		b.Run("handler="+handler, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if a, _, err := p.CreateContainer(context.Background(), pod, ctr); a != nil || err != nil {
					b.Fatal(a, err)
				}
			}
		})
	}
}

func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Nanoseconds()) / 1e3 }
	b.ReportMetric(at(0.5), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
}
