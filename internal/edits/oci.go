package edits

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// Apply writes the edits into an OCI spec, with the same rules as Adjustment.
// On an error the spec is unchanged.
func (e *Edits) Apply(s *specs.Spec) error {
	c, err := e.against(presentInSpec(s))
	if err != nil {
		return err
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	for _, d := range c.devices {
		applyDevice(s.Linux, d)
	}
	for _, m := range c.mounts {
		s.Mounts = append(s.Mounts, specs.Mount{Source: m.HostPath, Destination: m.ContainerPath, Type: m.Type, Options: m.Options})
	}
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	s.Process.Env = append(s.Process.Env, c.env...)
	if c.memlock != nil {
		setMemlock(s.Process, *c.memlock)
	}
	if s.Annotations == nil {
		s.Annotations = make(map[string]string, 1)
	}
	s.Annotations[RecordAnnotation] = c.record
	return nil
}

// applyDevice adds the node, or replaces the one of the same path, and lets the
// device cgroup through.
func applyDevice(l *specs.Linux, d *cdi.DeviceNode) {
	dev := specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: d.FileMode, UID: d.UID, GID: d.GID}
	for i := range l.Devices {
		if l.Devices[i].Path == d.Path {
			l.Devices[i] = dev
			return
		}
	}
	l.Devices = append(l.Devices, dev)
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	major, minor := d.Major, d.Minor
	l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Permissions})
}

func setMemlock(p *specs.Process, l Limit) {
	for i := range p.Rlimits {
		if p.Rlimits[i].Type == rlimitMemlock {
			p.Rlimits[i].Soft, p.Rlimits[i].Hard = l.Soft, l.Hard
			return
		}
	}
	p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: rlimitMemlock, Soft: l.Soft, Hard: l.Hard})
}

func presentInSpec(s *specs.Spec) present {
	var p present
	if s.Linux != nil {
		for _, d := range s.Linux.Devices {
			if d.Type != "c" {
				continue
			}
			have := presentDevice{path: d.Path, major: d.Major, minor: d.Minor}
			if d.FileMode != nil {
				have.mode = os.FileMode(*d.FileMode)
			}
			if d.UID != nil {
				have.uid = *d.UID
			}
			if d.GID != nil {
				have.gid = *d.GID
			}
			p.devices = append(p.devices, have)
		}
	}
	for _, m := range s.Mounts {
		p.mounts = append(p.mounts, m.Destination)
	}
	if s.Process == nil {
		return p
	}
	p.env = s.Process.Env
	for _, l := range s.Process.Rlimits {
		if l.Type == rlimitMemlock {
			p.memlock = &Limit{Soft: l.Soft, Hard: l.Hard}
		}
	}
	return p
}
