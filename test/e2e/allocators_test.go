//go:build bed

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/device-plugin/kubelettest"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

const offered = "0000:6b:00.1@0 0000:6b:00.2@0 0000:6b:00.3@0 0000:6b:00.4@0 0000:6b:00.5@0 0000:6b:00.6@0 0000:6b:00.7@0 " +
	"0000:6b:01.0@0 0000:6b:01.1@0 0000:6b:01.2@0 0000:6b:01.3@0 0000:6b:01.4@0 0000:6b:01.5@0 0000:6b:01.6@0 0000:6b:01.7@0 0000:6b:02.0@0"

// onHost is a node of the machine, which on this one lies below a directory.
func onHost(n *simnode.Node, node string) bed.Device {
	return bed.Device{Host: filepath.Join(n.Tree.Root, node), Container: node, Permissions: "rw"}
}

// cdiSpec writes a CDI spec where containerd looks for it, with the nodes where
// they are on this machine.
func cdiSpec(t *testing.T, n *simnode.Node, name string, content []byte) {
	t.Helper()
	var spec map[string]any
	if err := json.Unmarshal(content, &spec); err != nil {
		t.Fatal(err)
	}
	place := func(edits any) {
		nodes, _ := edits.(map[string]any)["deviceNodes"].([]any)
		for _, d := range nodes {
			node := d.(map[string]any)
			node["hostPath"] = filepath.Join(n.Tree.Root, node["path"].(string))
		}
	}
	if edits := spec["containerEdits"]; edits != nil {
		place(edits)
	}
	for _, d := range spec["devices"].([]any) {
		place(d.(map[string]any)["containerEdits"])
	}
	content, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.CDIDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.CDIDir(), name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// complete expects a container to have what belongs to the crypto VFs .1 and .2,
// each thing once, whoever allocated them.
func complete(t *testing.T, n *simnode.Node, ctr *bed.Container, pod string) {
	t.Helper()
	s := ociSpec(t, ctr)
	if diff := cmp.Diff([]string{"/dev/vfio/100", "/dev/vfio/101", "/dev/vfio/vfio"}, nodes(s)); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	var named []string
	for _, kv := range s.Process.Env {
		if strings.HasPrefix(kv, "PCIDEVICE_") {
			named = append(named, kv)
		}
	}
	if want := []string{"PCIDEVICE_QAT_INTEL_COM_CY=0000:6b:00.1,0000:6b:00.2"}; !slices.Equal(named, want) {
		t.Errorf("environment %v, expected %v", named, want)
	}
	mustContain(t, "inside", inside(t, ctr, "ls /dev/vfio /etc/4xxxvf_dev*.conf"), "100", "101", "vfio", "4xxxvf_dev0.conf", "4xxxvf_dev1.conf")
	if got := held(t, n)[pod]; !slices.Equal(got, []string{"0000:6b:00.1", "0000:6b:00.2"}) {
		t.Errorf("%s holds %v", pod, got)
	}
}

// Our own device plugin: what it answers goes to containerd as kubelet would
// hand it on, nodes and CDI devices both.
func TestPodsOfOurDevicePluginGetTheirVFs(t *testing.T) {
	n := startNode(t)
	startKubelet(t, n)
	if err := n.Configure(map[string]any{"standalone": false, "device_plugin": map[string]any{"enable": true}}); err != nil {
		t.Fatal(err)
	}
	k := kubelettest.New(filepath.Join(n.Tree.Root, "var/lib/kubelet/device-plugins"))
	k.Start(t)
	startDaemon(t, n)
	k.Expect(t, "qat.intel.com/cy", offered)
	given, err := k.Allocate(t, "qat.intel.com/cy", "0000:6b:00.2", "0000:6b:00.1")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(filepath.Join(n.Tree.Root, "var/run/cdi/qat.intel.com-cy.json"))
	if err != nil {
		t.Fatal(err)
	}
	cdiSpec(t, n, "cy.json", ours)

	spec := bed.ContainerSpec{Annotations: given.Annotations}
	for _, d := range given.Devices {
		spec.Devices = append(spec.Devices, onHost(n, d.HostPath))
	}
	for _, d := range given.CdiDevices {
		spec.CDIDevices = append(spec.CDIDevices, d.Name)
	}
	if len(spec.CDIDevices) != 2 {
		t.Errorf("CDI devices %v, expected two", spec.CDIDevices)
	}
	pod := runPod(t, n, bed.PodSpec{Name: "ours"})
	ctr := runContainer(t, pod, spec)
	complete(t, n, ctr, "default/ours")
	status, err := ctr.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := status.GetAnnotations()["kata-qat.io/allocated.cy"]; got != "0000:6b:00.1,0000:6b:00.2" {
		t.Errorf("the CRI says that it was given %q", got)
	}
	remove(t, pod)

}

// Intel's device plugin gives nodes and variables QAT0, QAT1, …, and calls
// devices by their addresses (intel-device-plugins-for-kubernetes,
// cmd/qat_plugin/dpdkdrv).
func TestPodsOfIntelsDevicePluginGetTheirVFs(t *testing.T) {
	n := startNode(t)
	k := startKubelet(t, n)
	startDaemon(t, n)
	k.give("default", "intel", "main", "qat.intel.com/cy", "0000:6b:00.1", "0000:6b:00.2")
	pod := runPod(t, n, bed.PodSpec{Name: "intel"})
	ctr := runContainer(t, pod, bed.ContainerSpec{
		Devices: []bed.Device{onHost(n, "/dev/vfio/100"), onHost(n, "/dev/vfio/vfio"), onHost(n, "/dev/vfio/101")},
		Env:     []string{"QAT0=0000:6b:00.1", "QAT1=0000:6b:00.2"},
	})
	complete(t, n, ctr, "default/intel")
	remove(t, pod)
}

// Intel's DRA driver names CDI devices of the kind intel.com/qat, one for each VF
// and one for the control node (intel-resource-drivers-for-kubernetes,
// pkg/qat/device), which kubelet hands on and lists in PodResources.
func TestPodsOfIntelsDRADriverGetTheirVFs(t *testing.T) {
	n := startNode(t)
	k := startKubelet(t, n)
	startDaemon(t, n)
	cdiSpec(t, n, "intel.com-qat.json", []byte(`{"cdiVersion": "0.6.0", "kind": "intel.com/qat", "devices": [
		{"name": "qatvf-0000-6b-00-1", "containerEdits": {"deviceNodes": [{"path": "/dev/vfio/100", "type": "c"}]}},
		{"name": "qatvf-0000-6b-00-2", "containerEdits": {"deviceNodes": [{"path": "/dev/vfio/101", "type": "c"}]}},
		{"name": "qatvf-vfio", "containerEdits": {"deviceNodes": [{"path": "/dev/vfio/vfio", "type": "c"}]}}]}`))
	names := []string{"intel.com/qat=qatvf-0000-6b-00-1", "intel.com/qat=qatvf-0000-6b-00-2", "intel.com/qat=qatvf-vfio"}
	k.claim("default", "dra", "main", "qat.intel.com", names...)
	for name, spec := range map[string]bed.ContainerSpec{
		"the runtime resolves CDI": {CDIDevices: names},
		"only kubelet tells":       {},
	} {
		t.Run(name, func(t *testing.T) {
			pod := runPod(t, n, bed.PodSpec{Name: "dra"})
			ctr := runContainer(t, pod, spec)
			complete(t, n, ctr, "default/dra")
			remove(t, pod)
		})
	}
}

// claim gives a container the devices of a DRA claim.
func (k *kubelet) claim(namespace, pod, container, driver string, cdi ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := &podresources.ClaimResource{DriverName: driver, PoolName: "node", DeviceName: strings.TrimPrefix(cdi[0], "intel.com/qat=")}
	for _, name := range cdi {
		r.CdiDevices = append(r.CdiDevices, &podresources.CDIDevice{Name: name})
	}
	k.pods[[2]string{namespace, pod}] = &podresources.PodResources{Namespace: namespace, Name: pod, Containers: []*podresources.ContainerResources{{
		Name: container, DynamicResources: []*podresources.DynamicResource{{ClaimName: "qat", ClaimNamespace: namespace, ClaimResources: []*podresources.ClaimResource{r}}},
	}}}
}
