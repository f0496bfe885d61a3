package edits

import (
	"cmp"
	"slices"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/kata-qat/kata-qat/internal/vfio"
)

// CDISpecs returns a CDI spec for every resource of the VFs: its kind is the
// resource's name and its devices are called by the VFs' addresses, because that
// is the name, <resource>=<device id>, that Kata asks for when it has learnt
// from kubelet's PodResources what a pod holds (Kata 4.1,
// pod_resource_api_sock). The specs are sorted by kind, and of the oldest CDI
// version that allows what is in them.
func CDISpecs(vfs []VF, control vfio.Node) []*cdi.Spec {
	byKind := map[string]*cdi.Spec{}
	for _, v := range vfs {
		s := byKind[v.Resource]
		if s == nil {
			s = &cdi.Spec{Kind: v.Resource, ContainerEdits: cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{shared(control)}}}
			byKind[v.Resource] = s
		}
		s.Devices = append(s.Devices, cdi.Device{Name: string(v.Address), ContainerEdits: cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{shared(v.Group)}}})
	}
	specs := make([]*cdi.Spec, 0, len(byKind))
	for _, s := range byKind {
		slices.SortFunc(s.Devices, func(a, b cdi.Device) int { return strings.Compare(a.Name, b.Name) })
		s.Version = oldestVersion(s)
		specs = append(specs, s)
	}
	slices.SortFunc(specs, func(a, b *cdi.Spec) int { return cmp.Compare(a.Kind, b.Kind) })
	return specs
}

// shared is a node in a spec that any container may be given: the runtime takes
// numbers and owner from the host's node.
func shared(n vfio.Node) *cdi.DeviceNode {
	return &cdi.DeviceNode{Path: n.Path, Type: "c", Permissions: "rw"}
}

func oldestVersion(s *cdi.Spec) string {
	v, err := cdi.MinimumRequiredVersion(s)
	if err != nil { // it knows every spec but one without a kind
		return cdi.CurrentVersion
	}
	return v
}
