//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	dra "k8s.io/kubelet/pkg/apis/dra/v1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

const (
	draDriver = "qat.intel.com"
	draPool   = kube.NodeName
)

// intelDriver stands in for Intel's DRA driver: VFs are devices of a
// ResourceSlice, and a prepared claim names them to the runtime by CDI
// (intel-resource-drivers-for-kubernetes, pkg/qat).
type intelDriver struct {
	dra.UnimplementedDRAPluginServer
	registration.UnimplementedRegistrationServer
	api    kubernetes.Interface
	groups map[string]string // VFIO group by the device's name
	// registered is closed when kubelet has taken the driver. A pod that comes
	// before that waits for kubelet's next look at it, a minute later.
	registered chan struct{}

	mu         sync.Mutex
	unprepared int
}

func (d *intelDriver) endpoint() string {
	return filepath.Join("/var/lib/kubelet/plugins", draDriver, "dra.sock")
}

func (d *intelDriver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.DRAPlugin, Name: draDriver, Endpoint: d.endpoint(), SupportedVersions: []string{dra.DRAPluginService}}, nil
}

func (d *intelDriver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !s.PluginRegistered {
		return nil, fmt.Errorf("kubelet refuses the driver: %s", s.Error)
	}
	close(d.registered)
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *intelDriver) NodePrepareResources(ctx context.Context, r *dra.NodePrepareResourcesRequest) (*dra.NodePrepareResourcesResponse, error) {
	answer := &dra.NodePrepareResourcesResponse{Claims: map[string]*dra.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		claim, err := d.api.ResourceV1().ResourceClaims(c.Namespace).Get(ctx, c.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		prepared := &dra.NodePrepareResourceResponse{}
		for _, result := range claim.Status.Allocation.Devices.Results {
			prepared.Devices = append(prepared.Devices, &dra.Device{
				RequestNames: []string{result.Request}, PoolName: result.Pool, DeviceName: result.Device,
				CdiDeviceIds: []string{"intel.com/qat=" + result.Device, "intel.com/qat=qatvf-vfio"},
			})
		}
		answer.Claims[c.Uid] = prepared
	}
	return answer, nil
}

func (d *intelDriver) NodeUnprepareResources(_ context.Context, r *dra.NodeUnprepareResourcesRequest) (*dra.NodeUnprepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	answer := &dra.NodeUnprepareResourcesResponse{Claims: map[string]*dra.NodeUnprepareResourceResponse{}}
	for _, c := range r.Claims {
		d.unprepared++
		answer.Claims[c.Uid] = &dra.NodeUnprepareResourceResponse{}
	}
	return answer, nil
}

// writeCDI writes the specs of the devices. Without nodes the runtime is told no
// more than their names.
func (d *intelDriver) writeCDI(t *testing.T) {
	t.Helper()
	node := func(name string) map[string]any {
		return map[string]any{"deviceNodes": []any{map[string]any{"path": "/dev/vfio/" + name}}}
	}
	all := []any{map[string]any{"name": "qatvf-vfio", "containerEdits": node("vfio")}}
	for _, name := range slices.Sorted(maps.Keys(d.groups)) {
		all = append(all, map[string]any{"name": name, "containerEdits": node(d.groups[name])})
	}
	text, err := json.Marshal(map[string]any{"cdiVersion": "0.6.0", "kind": "intel.com/qat", "devices": all})
	if err != nil {
		t.Fatal(err)
	}
	file := "/var/run/cdi/intel.com-qat.json"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	})
}

// publish offers the devices to the scheduler.
func (d *intelDriver) publish(t *testing.T) {
	t.Helper()
	node := kube.NodeName
	slice := &resourcev1.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "bed-qat"},
		Spec: resourcev1.ResourceSliceSpec{
			Driver: draDriver, NodeName: &node,
			Pool: resourcev1.ResourcePool{Name: draPool, Generation: 1, ResourceSliceCount: 1},
		},
	}
	for _, name := range slices.Sorted(maps.Keys(d.groups)) {
		slice.Spec.Devices = append(slice.Spec.Devices, resourcev1.Device{Name: name})
	}
	class := &resourcev1.DeviceClass{
		ObjectMeta: metav1.ObjectMeta{Name: draDriver},
		Spec: resourcev1.DeviceClassSpec{Selectors: []resourcev1.DeviceSelector{
			{CEL: &resourcev1.CELDeviceSelector{Expression: fmt.Sprintf("device.driver == %q", draDriver)}},
		}},
	}
	if _, err := d.api.ResourceV1().ResourceSlices().Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.api.ResourceV1().DeviceClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A claim for two VFs and a pod that uses it.
const claimingPod = `
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: two, namespace: %[1]s}
spec:
  spec:
    devices:
      requests:
      - name: vfs
        exactly: {deviceClassName: qat.intel.com, count: 2}
`

// A ResourceClaim reaches the container and, through what kubelet says of a
// pod's dynamic resources, the sandbox.
func TestAPodWithAResourceClaimHasItsVFs(t *testing.T) {
	s := join(t)
	s.withoutOurPlugin()
	d := &intelDriver{api: s.Client, registered: make(chan struct{}), groups: map[string]string{"qatvf-0000-70-00-1": "300", "qatvf-0000-70-00-2": "301"}}
	d.writeCDI(t)
	serve(t, d.endpoint(), func(g *grpc.Server) { dra.RegisterDRAPluginServer(g, d) })
	serve(t, filepath.Join("/var/lib/kubelet/plugins_registry", draDriver+"-reg.sock"), func(g *grpc.Server) { registration.RegisterRegistrationServer(g, d) })
	d.publish(t)
	select {
	case <-d.registered:
	case <-s.within().Done():
		t.Fatal("kubelet did not register the driver")
	}
	if err := s.Apply(s.within(), fmt.Sprintf(claimingPod, s.namespace)); err != nil {
		t.Fatal(err)
	}

	template, class := "two", simcluster.Handler
	claiming := func(name string) *corev1.Pod {
		p := s.pod(name, nil)
		p.Spec.RuntimeClassName = &class
		p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "qat", ResourceClaimTemplateName: &template}}
		p.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "qat"}}
		return p
	}
	pod := s.run(claiming("claims"))
	s.hasAll(pod, "300", "301")
	if err := s.CreatePod(t.Context(), claiming("waits")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitPod(s.within(), s.namespace, "waits", unschedulable); err != nil {
		t.Error(err)
	}
	if err := s.Client.CoreV1().Pods(s.namespace).Delete(t.Context(), "claims", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	next, err := s.WaitPod(s.within(), s.namespace, "waits", kube.Running)
	if err != nil {
		t.Fatal(err)
	}
	s.hasAll(next, "300", "301")
	if err := s.RemovePods(s.within(), s.namespace); err != nil {
		t.Fatal(err)
	}
	for ctx := s.within(); ; time.Sleep(20 * time.Millisecond) {
		d.mu.Lock()
		n := d.unprepared
		d.mu.Unlock()
		if n == 2 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%d claims were given back, expected 2", n)
		}
	}
}
