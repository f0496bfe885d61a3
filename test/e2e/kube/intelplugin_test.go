//go:build kube

package kube

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	devices "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

// intelPlugin stands in for Intel's device plugin, which serves one resource on
// one socket (intel-device-plugins-for-kubernetes, cmd/qat_plugin/dpdkdrv).
type intelPlugin struct {
	devices.UnimplementedDevicePluginServer
	groups map[string]string // VFIO group by the VF's address
	nodes  bool              // false for a plugin that names its devices and gives no nodes
}

func (p *intelPlugin) GetDevicePluginOptions(context.Context, *devices.Empty) (*devices.DevicePluginOptions, error) {
	return &devices.DevicePluginOptions{}, nil
}

func (p *intelPlugin) ListAndWatch(_ *devices.Empty, stream devices.DevicePlugin_ListAndWatchServer) error {
	list := &devices.ListAndWatchResponse{}
	for address := range p.groups {
		list.Devices = append(list.Devices, &devices.Device{ID: address, Health: devices.Healthy})
	}
	if err := stream.Send(list); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *intelPlugin) Allocate(_ context.Context, r *devices.AllocateRequest) (*devices.AllocateResponse, error) {
	answer := &devices.AllocateResponse{}
	for _, c := range r.ContainerRequests {
		a := &devices.ContainerAllocateResponse{}
		if p.nodes {
			for _, path := range append([]string{"vfio"}, p.of(c.DevicesIds)...) {
				path = "/dev/vfio/" + path
				a.Devices = append(a.Devices, &devices.DeviceSpec{HostPath: path, ContainerPath: path, Permissions: "mrw"})
			}
		}
		answer.ContainerResponses = append(answer.ContainerResponses, a)
	}
	return answer, nil
}

func (p *intelPlugin) of(addresses []string) (groups []string) {
	for _, a := range addresses {
		groups = append(groups, p.groups[a])
	}
	return groups
}

// serve serves a gRPC server on a socket until the test ends.
func serve(t *testing.T, socket string, register func(*grpc.Server)) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
}

func (p *intelPlugin) start(t *testing.T, resource string) {
	t.Helper()
	name := strings.ReplaceAll(resource, "/", "-") + ".sock"
	serve(t, filepath.Join(devices.DevicePluginPath, name), func(s *grpc.Server) { devices.RegisterDevicePluginServer(s, p) })
	conn, err := grpc.NewClient("unix://"+devices.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = devices.NewRegistrationClient(conn).Register(t.Context(), &devices.RegisterRequest{Version: devices.Version, Endpoint: name, ResourceName: resource})
	if err != nil {
		t.Fatal(err)
	}
}

// withoutOurPlugin switches our device plugin off for the time of the test.
func (s *suite) withoutOurPlugin() {
	s.t.Helper()
	if err := s.Reconfigure(s.within(), map[string]any{"device_plugin": map[string]any{"enable": false}}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := s.Reconfigure(context.WithoutCancel(s.t.Context()), nil); err != nil {
			s.t.Error(err)
		}
	})
}

// Where Intel's plugin hands out the VFs a pod gets all the same, whether the
// plugin gives nodes or only names.
func TestAPodOfIntelsPluginHasItsVFs(t *testing.T) {
	s := join(t)
	s.withoutOurPlugin()
	s.allocatable(sym, 0)
	p := &intelPlugin{groups: map[string]string{"0000:70:00.1": "300", "0000:70:00.2": "301"}}
	p.start(t, sym)
	s.allocatable(sym, 2)
	for _, tt := range []struct {
		name  string
		nodes bool
	}{{"nodes", true}, {"names", false}} {
		p.nodes = tt.nodes
		pod := s.run(s.pod(tt.name, map[corev1.ResourceName]int{sym: 2}))
		s.hasAll(pod, "300", "301")
		if err := s.RemovePods(s.within(), s.namespace); err != nil {
			t.Fatal(err)
		}
	}
}

// hasAll checks a pod whose one container has exactly these groups.
func (s *suite) hasAll(p *corev1.Pod, want ...string) {
	s.t.Helper()
	spec := s.spec(p, "main")
	if diff := cmp.Diff(want, simcluster.Groups(spec.Linux.Devices)); diff != "" {
		s.t.Errorf("pod %s: groups of the container (-want +got):\n%s", p.Name, diff)
	}
	if diff := cmp.Diff(want, s.created()[p.Name+"/sandbox "+kube.SandboxOf(spec)]); diff != "" {
		s.t.Errorf("pod %s: groups of the sandbox (-want +got):\n%s", p.Name, diff)
	}
	files := len(want)
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/etc/4xxxvf_dev") {
			files--
		}
	}
	if files != 0 {
		s.t.Errorf("pod %s: the container has %d configuration files too few: %v", p.Name, files, spec.Mounts)
	}
}
