//go:build bed

package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// kubelet serves the PodResources API, and nothing else of a kubelet.
type kubelet struct {
	podresources.UnimplementedPodResourcesListerServer

	mu   sync.Mutex
	pods map[[2]string]*podresources.PodResources
}

func kubeletSocket(n *simnode.Node) string {
	return filepath.Join(n.Tree.Root, "var/lib/kubelet/pod-resources/kubelet.sock")
}

// startKubelet gives the node a kubelet, and its daemons a configuration for it.
func startKubelet(t *testing.T, n *simnode.Node) *kubelet {
	t.Helper()
	if err := n.Configure(map[string]any{"standalone": false}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(kubeletSocket(n)), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", kubeletSocket(n))
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{pods: make(map[[2]string]*podresources.PodResources)}
	s := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(s, k)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return k
}

// give allocates devices to a container.
func (k *kubelet) give(namespace, pod, container, resource string, ids ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := [2]string{namespace, pod}
	if k.pods[key] == nil {
		k.pods[key] = &podresources.PodResources{Namespace: namespace, Name: pod}
	}
	k.pods[key].Containers = append(k.pods[key].Containers, &podresources.ContainerResources{
		Name: container, Devices: []*podresources.ContainerDevices{{ResourceName: resource, DeviceIds: ids}},
	})
}

func (k *kubelet) Get(_ context.Context, r *podresources.GetPodResourcesRequest) (*podresources.GetPodResourcesResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pods[[2]string{r.GetPodNamespace(), r.GetPodName()}]
	if p == nil {
		return nil, status.Errorf(codes.NotFound, "pod %s/%s not found", r.GetPodNamespace(), r.GetPodName())
	}
	return &podresources.GetPodResourcesResponse{PodResources: p}, nil
}

// A device plugin that names its devices and gives no nodes leaves it to
// kubelet's PodResources to say who holds them.
func TestVFsThatKubeletNamesAreInjected(t *testing.T) {
	n := startNode(t)
	k := startKubelet(t, n)
	startDaemon(t, n)
	k.give("default", "two", "main", "qat.intel.com/cy", "0000:6b:00.3", "0000:6b:00.1")
	k.give("default", "two", "side", "nvidia.com/gpu", "GPU-1")

	pod := runPod(t, n, bed.PodSpec{Name: "two"})
	main := runContainer(t, pod, bed.ContainerSpec{})
	if diff := cmp.Diff([]string{"/dev/vfio/100", "/dev/vfio/102", "/dev/vfio/vfio"}, nodes(ociSpec(t, main))); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if got := nodes(ociSpec(t, runContainer(t, pod, bed.ContainerSpec{Name: "side"}))); got != nil {
		t.Errorf("the container that holds a GPU got %v", got)
	}
	remove(t, pod)
}

// Where a kubelet is, an annotation gets nobody a device.
func TestAnAnnotationGetsNothingBesideAKubelet(t *testing.T) {
	n := startNode(t)
	k := startKubelet(t, n)
	startDaemon(t, n)
	spec := asking("cy=2")
	spec.Name = "greedy"
	k.give("default", "greedy", "main", "example.com/other", "x")
	pod := runPod(t, n, spec)
	if got := nodes(ociSpec(t, runContainer(t, pod, bed.ContainerSpec{}))); got != nil {
		t.Errorf("the annotation got the container %v", got)
	}
	remove(t, pod)
}

func TestAnUnknownDeviceOfKubeletIsRefused(t *testing.T) {
	n := startNode(t)
	k := startKubelet(t, n)
	startDaemon(t, n)
	k.give("default", "lost", "main", "qat.intel.com/cy", "0000:ff:00.1")
	pod := runPod(t, n, bed.PodSpec{Name: "lost"})
	mustContain(t, "error", refused(t, pod, bed.ContainerSpec{}), "default/lost", "0000:ff:00.1")
	remove(t, pod)
}
