package deviceplugin

import (
	"fmt"
	"maps"
	"slices"

	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// snapshot is what is offered to kubelet at one moment, by the short name of the
// resource. It never changes.
type snapshot struct {
	control   vfio.Node
	resources map[string]*resource
}

// resource is what is offered of one extended resource.
type resource struct {
	kind    string // its full name, which is the kind of its CDI devices, too
	cdi     bool   // its CDI devices can be named
	devices map[string]*device
	ready   map[string]int // how many VFs of each PF can be used
	list    *api.ListAndWatchResponse
}

// device is one VF that is offered.
type device struct {
	*vfio.Device
	err error // why it cannot be used now; nil for one that can
}

// offer makes the snapshot of a table. A VF that no vfio driver has is not meant
// for pods and not offered; one that has a vfio driver and cannot be used is
// offered as unhealthy. Of an IOMMU group with several VFs the first one is
// offered and stands for all: they can only go to one pod, and go there together.
func offer(t *vfio.Table, domain string, users map[qat.Address]vfio.User, cdi func(kind string) bool) *snapshot {
	s := &snapshot{resources: make(map[string]*resource)}
	if t == nil {
		return s
	}
	s.control = t.Control
	offered := make(map[*qat.Group]bool)
	for _, d := range t.Devices() {
		vf := d.VF
		if vf.Group == nil || !vfio.Bound(vf) || offered[vf.Group] {
			continue
		}
		offered[vf.Group] = true
		name := vf.Services.ResourceName()
		r := s.resources[name]
		if r == nil {
			r = &resource{kind: domain + "/" + name, devices: make(map[string]*device), ready: make(map[string]int), list: &api.ListAndWatchResponse{}}
			r.cdi = cdi != nil && cdi(r.kind)
			s.resources[name] = r
		}
		r.add(d, users)
	}
	return s
}

func (r *resource) add(d *vfio.Device, users map[qat.Address]vfio.User) {
	o := &device{Device: d, err: d.Err}
	if u, used := users[d.VF.Address]; used && o.err == nil {
		o.err = fmt.Errorf("%s is in use on the host, by no pod: %s has %s open: stop it first", d.VF.Address, u, u.Node)
	}
	r.devices[string(d.VF.Address)] = o
	health := api.Healthy
	if o.err != nil {
		health = api.Unhealthy
	} else {
		r.ready[string(d.VF.PF)]++
	}
	listed := &api.Device{ID: string(d.VF.Address), Health: health}
	if d.VF.NUMANode >= 0 {
		listed.Topology = &api.TopologyInfo{Nodes: []*api.NUMANode{{ID: int64(d.VF.NUMANode)}}}
	}
	r.list.Devices = append(r.list.Devices, listed)
}

// names are the short names of the resources, sorted.
func (s *snapshot) names() []string { return slices.Sorted(maps.Keys(s.resources)) }

// usable counts the devices that are healthy.
func (r *resource) usable() int {
	n := 0
	for _, ready := range r.ready {
		n += ready
	}
	return n
}

// problem is what the first device has that is not healthy.
func (r *resource) problem() error {
	for _, d := range r.list.Devices {
		if err := r.devices[d.ID].err; err != nil {
			return err
		}
	}
	return nil
}
