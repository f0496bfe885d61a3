package deviceplugin

import (
	"fmt"
	"slices"
	"strings"

	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/kata-qat/kata-qat/internal/placement"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// AllocatedAnnotation is the prefix of the annotation of a container, in the CRI,
// that says what kubelet gave it: kata-qat.io/allocated.<resource>:
// "0000:6b:00.1,0000:6b:00.2". It is for people; nothing is decided by it. The
// resource is in its name because kubelet keeps only one of two values
// (Kubernetes, pkg/kubelet/cm/devicemanager, deviceRunContainerOptions).
const AllocatedAnnotation = "kata-qat.io/allocated."

// allocate answers for one container, or says which device it cannot have and
// why.
func (s *snapshot) allocate(name string, ids []string) (*api.ContainerAllocateResponse, error) {
	r := s.resources[name]
	if r == nil {
		return nil, fmt.Errorf("allocate %s: this node has no VF of resource %s any more: see kata-qat devices", strings.Join(ids, ","), name)
	}
	// kubelet's order is that of its maps.
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b string) int { return qat.Address(a).Compare(qat.Address(b)) })
	answer := &api.ContainerAllocateResponse{Devices: make([]*api.DeviceSpec, 0, len(ids)+1)}
	if len(ids) > 0 {
		answer.Devices = append(answer.Devices, spec(s.control))
		answer.Annotations = map[string]string{AllocatedAnnotation + name: strings.Join(ids, ",")}
	}
	for _, id := range ids {
		d := r.devices[id]
		switch {
		case d == nil:
			return nil, fmt.Errorf("allocate %s: %s is no VF of this node that can be given to pods: see kata-qat devices", r.kind, id)
		case d.err != nil:
			return nil, fmt.Errorf("allocate %s: %w", r.kind, d.err)
		}
		answer.Devices = append(answer.Devices, spec(d.Node))
		// The runtime needs no CDI to make the nodes, and puts a node that CDI
		// has, too, in the place of the other (container-device-interface,
		// pkg/cdi, ContainerEdits.Apply): there is one of it in the spec.
		if r.cdi {
			answer.CdiDevices = append(answer.CdiDevices, &api.CDIDevice{Name: r.kind + "=" + id})
		}
	}
	return answer, nil
}

// spec is a node of the host, which the container gets by the same name.
func spec(n vfio.Node) *api.DeviceSpec {
	return &api.DeviceSpec{HostPath: n.Path, ContainerPath: n.Path, Permissions: "rw"}
}

// prefer chooses size of the available devices, must among them. VFs that a pod
// still holds whose sandbox is being stopped are chosen last: kubelet has them
// back before the VM is gone. Devices that cannot be used now are not chosen at
// all; kubelet then takes what it likes.
func (s *snapshot) prefer(policy placement.Policy, name string, available, must []string, size int, held func(qat.Address) bool) ([]string, error) {
	if size < len(must) {
		return nil, fmt.Errorf("prefer %d devices of resource %s: %d devices must be among them", size, name, len(must))
	}
	r := s.resources[name]
	if r == nil {
		return must, nil
	}
	used := make(map[string]int, len(r.ready))
	for pf, n := range r.ready {
		used[pf] = n
	}
	wanted := make(map[string]bool, len(must))
	fixed := make([]placement.Candidate, 0, len(must))
	for _, id := range must {
		wanted[id] = true
		c := placement.Candidate{ID: id, NUMA: -1}
		if d := r.devices[id]; d != nil {
			c = candidate(d)
			used[c.PF]--
		}
		fixed = append(fixed, c)
	}
	free := make([]placement.Candidate, 0, len(available))
	for _, id := range available {
		d := r.devices[id]
		if d == nil || d.err != nil || wanted[id] {
			continue
		}
		c := candidate(d)
		used[c.PF]--
		c.Last = held != nil && held(d.VF.Address)
		free = append(free, c)
	}
	chosen := policy.Choose(size, fixed, free, used)
	ids := make([]string, len(chosen))
	for i, c := range chosen {
		ids[i] = c.ID
	}
	return ids, nil
}

func candidate(d *device) placement.Candidate {
	return placement.Candidate{ID: string(d.VF.Address), PF: string(d.VF.PF), NUMA: d.VF.NUMANode}
}
