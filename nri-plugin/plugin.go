// Package nriplugin is the NRI plugin: when a container of a Kata pod is
// created it finds the QAT virtual functions that the container holds and has
// the runtime put them, and what belongs to them, into the container's spec. It
// also validates what every plugin together makes of a container, so that none
// that holds VFs is ever created without them. It cannot touch a sandbox's
// spec: NRI gives no plugin that, and package shim does it.
package nriplugin

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/refusal"
)

// Name is the plugin's name, as containerd's required_plugins wants it.
const Name = "kata-qat"

// Options are what the plugin works with.
type Options struct {
	// Profile tells a runtime handler's profile; false for a handler that is
	// none of ours.
	Profile func(handler string) (edits.Profile, bool)
	// MemlockAllowance is what an application may lock beside its VFs, in bytes.
	MemlockAllowance uint64
	Devices          *devices.Monitor
	Allocation       *allocation.Resolver
	// SandboxDevices reads the devices in the spec of a sandbox that lives;
	// nil where no sandbox has any.
	SandboxDevices func(sandboxID string) []allocation.SpecDevice
	Observer       Observer
	Log            *logrus.Entry
	// Later is given what need not be done while a pod waits; nil: it is done
	// at once.
	Later func(func())
}

// Observer is told what the plugin has done. Its functions must not wait: a pod
// does. One that is nil is not called.
type Observer struct {
	// Injected is told of a container that gets VFs.
	Injected func(vfs int, took time.Duration)
	// Refused is told of a container that is not created.
	Refused func(pod allocation.Pod, container string, err error)
	// Validated is told of a container that holds VFs and has all of them.
	Validated func(took time.Duration)
}

// Plugin has the handlers of the NRI events. Its methods are safe for
// concurrent use, answer from memory, and hold no lock while they wait.
type Plugin struct {
	o Options
	// made has a made for every container between CreateContainer and its
	// validation, by id. What is never validated goes with its pod.
	made sync.Map
}

// made are edits that CreateContainer has found.
type made struct {
	sandbox string
	edits   *edits.Edits
}

// New returns a plugin.
func New(o Options) *Plugin {
	if o.Later == nil {
		o.Later = func(f func()) { f() }
	}
	return &Plugin{o: o}
}

// Synchronize is told which pods and containers live: what we thought to know
// before is forgotten.
func (p *Plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, ctrs []*api.Container) ([]*api.ContainerUpdate, error) {
	running := make(map[string]bool, len(ctrs))
	for _, c := range ctrs {
		running[c.GetPodSandboxId()] = true
	}
	live := make([]allocation.Pod, 0, len(pods))
	for _, pod := range pods {
		// containerd lists stopped sandboxes too, which have no process
		// (2.4, internal/cri/nri: every state but unknown).
		if pod.GetPid() != 0 || running[pod.GetId()] {
			live = append(live, toPod(pod))
		}
	}
	slices.SortStableFunc(ctrs, func(a, b *api.Container) int { return cmp.Compare(a.GetCreatedAt(), b.GetCreatedAt()) })
	held := make([]allocation.PodContainer, 0, len(live)+len(ctrs))
	if p.o.SandboxDevices != nil {
		// First, because the order of a pod's VFs is that of its VM.
		for _, pod := range live {
			if ds := p.o.SandboxDevices(pod.ID); len(ds) > 0 {
				held = append(held, allocation.PodContainer{PodID: pod.ID, Container: allocation.Container{ID: pod.ID, Devices: ds}})
			}
		}
	}
	for _, c := range ctrs {
		held = append(held, allocation.PodContainer{PodID: c.GetPodSandboxId(), Container: toContainer(c)})
	}
	p.made.Clear()
	log := p.o.Log.WithFields(logrus.Fields{"pods": len(live), "containers": len(ctrs)})
	if err := p.o.Allocation.Restore(live, held); err != nil {
		log.WithError(err).Error("the containers that live do not fit together")
	}
	log.Info("synchronized with the runtime")
	return nil, nil
}

// RunPodSandbox starts to find out what the pod holds, so that CreateContainer
// need not wait for it.
func (p *Plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	if _, ok := p.o.Profile(pod.GetRuntimeHandler()); ok {
		p.o.Allocation.Warm(toPod(pod))
	}
	return nil
}

// CreateContainer gives the container its VFs.
func (p *Plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	profile, ok := p.o.Profile(pod.GetRuntimeHandler())
	if !ok {
		return nil, nil, nil
	}
	start := time.Now()
	e, err := p.edits(ctx, profile, pod, ctr)
	if e == nil && err == nil {
		return nil, nil, nil
	}
	var a *api.ContainerAdjustment
	if err == nil {
		if a, err = e.Adjustment(ctr); err != nil {
			err = named(pod, ctr, refusal.DeviceGone, err)
		}
	}
	if err != nil {
		p.refused(pod, ctr, err)
		return nil, nil, err
	}
	p.made.Store(ctr.GetId(), made{sandbox: pod.GetId(), edits: e})
	took := time.Since(start)
	if f := p.o.Observer.Injected; f != nil {
		f(e.NumVFs(), took)
	}
	p.o.Later(func() {
		p.log(pod, ctr).WithTime(start).WithFields(logrus.Fields{
			"devices": e.Summary(), "profile": string(profile), "source": e.Source(), "took": took.String(),
		}).Info("devices injected")
	})
	return a, nil, nil
}

// ValidateContainerAdjustment rejects a container that holds VFs and would be
// created without them: because this plugin died or was too slow while it was
// asked, or because another plugin undid what it had asked for. The runtime
// would otherwise go on without us (containerd up to NRI 0.12.3).
func (p *Plugin) ValidateContainerAdjustment(ctx context.Context, req *api.ValidateContainerAdjustmentRequest) error {
	pod, ctr := req.GetPod(), req.GetContainer()
	profile, ok := p.o.Profile(pod.GetRuntimeHandler())
	if !ok {
		return nil
	}
	start := time.Now()
	// What CreateContainer has found a moment ago need not be found again. It
	// is the container's only as long as it is being created.
	var e *edits.Edits
	if m, ok := p.made.LoadAndDelete(ctr.GetId()); ok {
		e = m.(made).edits
	} else {
		var err error
		if e, err = p.edits(ctx, profile, pod, ctr); err != nil {
			p.refused(pod, ctr, err)
			return err
		}
		if e == nil {
			return nil
		}
	}
	if missing := e.Missing(ctr, req.GetAdjust()); len(missing) > 0 {
		err := named(pod, ctr, refusal.Undone, fmt.Errorf("it holds %s and would be created without %s: the plugin was not heard or another NRI plugin undid its changes; see the log of kata-qat nri-plugin",
			e.Summary(), strings.Join(missing, ", ")))
		p.refused(pod, ctr, err)
		return err
	}
	if f := p.o.Observer.Validated; f != nil {
		f(time.Since(start))
	}
	return nil
}

// refused tells that a container is not created.
func (p *Plugin) refused(pod *api.PodSandbox, ctr *api.Container, err error) {
	p.log(pod, ctr).WithField("reason", string(refusal.Of(err))).WithError(err).Error("container refused")
	if f := p.o.Observer.Refused; f != nil {
		f(toPod(pod), ctr.GetName(), err)
	}
}

// RemoveContainer forgets the container; its pod keeps the VFs.
func (p *Plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, ctr *api.Container) error {
	p.made.Delete(ctr.GetId())
	p.o.Allocation.ReleaseContainer(ctr.GetId())
	return nil
}

// StopPodSandbox gives the pod's VFs back: its VM is gone.
func (p *Plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.release(pod)
	return nil
}

// RemovePodSandbox does it for a pod that was never stopped.
func (p *Plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.release(pod)
	return nil
}

func (p *Plugin) release(pod *api.PodSandbox) {
	p.made.Range(func(id, m any) bool {
		if m.(made).sandbox == pod.GetId() {
			p.made.Delete(id)
		}
		return true
	})
	p.o.Allocation.ReleasePod(pod.GetId())
}

// edits returns what the container's spec must get; nil when it holds nothing.
func (p *Plugin) edits(ctx context.Context, profile edits.Profile, pod *api.PodSandbox, ctr *api.Container) (*edits.Edits, error) {
	e, err := p.resolve(ctx, profile, pod, ctr)
	// A device may have come or been mended since the view was made and the
	// kernel not have told us. Only who would be refused pays for a look.
	if err != nil && ctx.Err() == nil && p.o.Devices.RefreshOlder(refreshAge) {
		e, err = p.resolve(ctx, profile, pod, ctr)
	}
	return e, err
}

// refreshAge bounds how often refused containers can have the devices read.
const refreshAge = time.Second

func (p *Plugin) resolve(ctx context.Context, profile edits.Profile, pod *api.PodSandbox, ctr *api.Container) (*edits.Edits, error) {
	asg, err := p.o.Allocation.Assign(ctx, toPod(pod), toContainer(ctr))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Name, err) // it names pod and container
	}
	if len(asg.VFs) == 0 {
		return nil, nil
	}
	view := p.o.Devices.Current()
	vfs := make([]edits.VF, len(asg.VFs))
	for i, h := range asg.VFs {
		conf, err := view.Conf(h.Device.VF)
		if err != nil {
			return nil, named(pod, ctr, refusal.Configuration, fmt.Errorf("configuration of %s: %w", h.Device.VF.Address, err))
		}
		vfs[i] = edits.VF{Address: h.Device.VF.Address, Resource: h.Resource, Group: h.Device.Node, ConfSource: conf}
		if conf != "" {
			vfs[i].ConfPath = devconf.GuestPath(h.Device.VF.Family, h.Index)
		}
	}
	return edits.Container(vfs, edits.Options{
		Profile: profile, Source: string(asg.Source), Control: view.Table.Control,
		MemlockAllowance: p.o.MemlockAllowance, UID: ctr.GetUser().GetUid(), GID: ctr.GetUser().GetGid(),
	}), nil
}

// named is an error with its reason, and the names of pod and container.
func named(pod *api.PodSandbox, ctr *api.Container, r refusal.Reason, err error) error {
	return fmt.Errorf("%s: pod %s/%s: container %s: %w", Name, pod.GetNamespace(), pod.GetName(), ctr.GetName(), refusal.Because(r, err))
}

func (p *Plugin) log(pod *api.PodSandbox, ctr *api.Container) *logrus.Entry {
	return p.o.Log.WithFields(logrus.Fields{
		"namespace": pod.GetNamespace(), "pod": pod.GetName(), "sandbox": pod.GetId(),
		"container": ctr.GetName(), "id": ctr.GetId(), "handler": pod.GetRuntimeHandler(),
	})
}

func toPod(pod *api.PodSandbox) allocation.Pod {
	return allocation.Pod{ID: pod.GetId(), UID: pod.GetUid(), Namespace: pod.GetNamespace(), Name: pod.GetName(), Annotations: pod.GetAnnotations()}
}

func toContainer(c *api.Container) allocation.Container {
	out := allocation.Container{ID: c.GetId(), Name: c.GetName()}
	ds := c.GetLinux().GetDevices()
	if len(ds) == 0 {
		return out
	}
	out.Devices = make([]allocation.SpecDevice, 0, len(ds))
	for _, d := range ds {
		if d.GetType() == "c" {
			out.Devices = append(out.Devices, allocation.SpecDevice{Path: d.GetPath(), Major: d.GetMajor(), Minor: d.GetMinor()})
		}
	}
	return out
}
