package edits

import (
	"os"
	"strings"

	"github.com/containerd/nri/pkg/api"
)

// Adjustment turns the edits into an NRI adjustment of the container, which is
// as the runtime sent it: only what it lacks is in the adjustment.
func (e *Edits) Adjustment(ctr *api.Container) (*api.ContainerAdjustment, error) {
	c, err := e.against(presentInNRI(ctr))
	if err != nil {
		return nil, err
	}
	a := &api.ContainerAdjustment{}
	if len(c.devices) > 0 {
		// They are all of one owner and mode. api.FileMode takes an os.FileMode
		// or nothing: an untyped number is dropped silently and the node comes
		// out as 0666.
		d := c.devices[0]
		mode, uid, gid := api.FileMode(*d.FileMode), api.UInt32(*d.UID), api.UInt32(*d.GID)
		a.Linux = &api.LinuxContainerAdjustment{Devices: make([]*api.LinuxDevice, 0, len(c.devices))}
		for _, d := range c.devices {
			a.AddDevice(&api.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: mode, Uid: uid, Gid: gid})
		}
	}
	for _, m := range c.mounts {
		a.AddMount(&api.Mount{Source: m.HostPath, Destination: m.ContainerPath, Type: m.Type, Options: m.Options})
	}
	for _, kv := range c.env {
		name, value, _ := strings.Cut(kv, "=")
		a.AddEnv(name, value)
	}
	if c.memlock != nil {
		a.AddRlimit(rlimitMemlock, c.memlock.Hard, c.memlock.Soft)
	}
	a.AddAnnotation(RecordAnnotation, c.record)
	return a, nil
}

func presentInNRI(ctr *api.Container) present {
	p := present{env: ctr.GetEnv()}
	if ds := ctr.GetLinux().GetDevices(); len(ds) > 0 {
		p.devices = make([]presentDevice, 0, len(ds))
		for _, d := range ds {
			if d.GetType() != "c" {
				continue
			}
			p.devices = append(p.devices, presentDevice{
				path: d.GetPath(), major: d.GetMajor(), minor: d.GetMinor(),
				mode: os.FileMode(d.GetFileMode().GetValue()), uid: d.GetUid().GetValue(), gid: d.GetGid().GetValue(),
			})
		}
	}
	if ms := ctr.GetMounts(); len(ms) > 0 {
		p.mounts = make([]string, len(ms))
		for i, m := range ms {
			p.mounts[i] = m.GetDestination()
		}
	}
	for _, l := range ctr.GetRlimits() {
		if l.GetType() == rlimitMemlock {
			p.memlock = &Limit{Soft: l.GetSoft(), Hard: l.GetHard()}
		}
	}
	return p
}

// Missing compares the adjustment that a container is about to be created
// with, by all plugins together, with the edits, and returns what the container
// would lack: paths of nodes, destinations of mounts, the limit. It is empty
// when nothing is missing.
func (e *Edits) Missing(ctr *api.Container, a *api.ContainerAdjustment) []string {
	p := presentInNRI(ctr)
	var missing []string
	for _, d := range e.CDI.DeviceNodes {
		have, err := p.find(d)
		if err != nil {
			have = nil
		}
		if state := adjusted(a.GetLinux().GetDevices(), d.Path, d.Major, d.Minor); state == removed || (state == untouched && have == nil) {
			missing = append(missing, d.Path)
		}
	}
	for _, m := range e.CDI.Mounts {
		if !hasMount(p.mounts, a.GetMounts(), m.ContainerPath) {
			missing = append(missing, m.ContainerPath)
		}
	}
	limit := p.memlock
	for _, l := range a.GetRlimits() {
		if l.GetType() == rlimitMemlock {
			limit = &Limit{Soft: l.GetSoft(), Hard: l.GetHard()}
		}
	}
	if _, low := raised(limit, e.Memlock); low {
		missing = append(missing, rlimitMemlock)
	}
	return missing
}

type deviceState int

const (
	untouched deviceState = iota
	added
	removed
)

// adjusted tells what an adjustment does to a node.
func adjusted(ds []*api.LinuxDevice, path string, major, minor int64) deviceState {
	state := untouched
	for _, d := range ds {
		name, marked := d.IsMarkedForRemoval()
		switch {
		case marked && name == path && state == untouched:
			state = removed
		case !marked && d.GetMajor() == major && d.GetMinor() == minor:
			state = added
		case !marked && d.GetPath() == path:
			state = removed // replaced by another device
		}
	}
	return state
}

func hasMount(have []string, adjust []*api.Mount, destination string) bool {
	found := false
	for _, d := range have {
		found = found || d == destination
	}
	for _, m := range adjust {
		name, marked := m.IsMarkedForRemoval()
		switch {
		case marked && name == destination:
			found = false
		case !marked && m.GetDestination() == destination:
			return true
		}
	}
	return found
}
