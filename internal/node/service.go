package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/metrics"
	"github.com/kata-qat/kata-qat/internal/refusal"
)

// service answers the shim and the CLI.
type service struct {
	profile   func(handler string) (edits.Profile, bool)
	devices   *devices.Monitor
	alloc     *allocation.Resolver
	connected atomic.Bool // to the container runtime
	observers *observers
	later     later
	log       *logrus.Entry
}

// PrepareSandbox says what a sandbox is to get before its VM boots, and keeps
// the VFs for the pod.
func (s *service) PrepareSandbox(ctx context.Context, r *nodev1.PrepareSandboxRequest) (*nodev1.PrepareSandboxResponse, error) {
	start := time.Now()
	pod := allocation.Pod{ID: r.GetSandboxId(), UID: r.GetUid(), Namespace: r.GetNamespace(), Name: r.GetName(), Annotations: r.GetAnnotations()}
	if pod.ID == "" || pod.Namespace == "" || pod.Name == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no pod: expected sandbox id, namespace and name")
	}
	log := s.log.WithFields(logrus.Fields{"namespace": pod.Namespace, "pod": pod.Name, "sandbox": pod.ID, "handler": r.GetRuntimeHandler()})
	e, err := s.sandbox(ctx, pod, r.GetRuntimeHandler())
	if err != nil {
		log.WithField("reason", string(refusal.Of(err))).WithError(err).Error("sandbox refused")
		s.observers.refused(metrics.Sandbox, pod, "", err)
		return nil, status.Error(code(ctx, err), err.Error())
	}
	answer := &nodev1.PrepareSandboxResponse{Daemon: api.Daemon()}
	if e == nil {
		return answer, nil
	}
	for _, d := range e.CDI.DeviceNodes {
		answer.Devices = append(answer.Devices, &nodev1.DeviceNode{
			Path: d.Path, Major: d.Major, Minor: d.Minor, Mode: uint32(d.FileMode.Perm()), Uid: *d.UID, Gid: *d.GID,
		})
	}
	answer.Annotations = e.Annotations
	took := time.Since(start)
	s.observers.injected(metrics.Sandbox, metrics.PrepareSandbox, e.NumVFs, took)
	s.later.do(func() {
		log.WithTime(start).WithFields(logrus.Fields{"devices": e.Annotations[edits.DevicesAnnotation], "took": took.String()}).Info("sandbox prepared")
	})
	return answer, nil
}

// sandbox returns the edits of a pod's sandbox; nil when it gets none.
func (s *service) sandbox(ctx context.Context, pod allocation.Pod, handler string) (*edits.SandboxEdits, error) {
	profile, ok := s.profile(handler)
	if !ok {
		return nil, refusal.Because(refusal.Configuration,
			fmt.Errorf("runtime handler %s has the shim kata-qat and is none of the configuration's handlers: add it to handlers in config.toml, or name Kata's own shim for it in containerd's configuration", handler))
	}
	assignments, err := s.alloc.ForPod(ctx, pod)
	if err != nil && ctx.Err() == nil && s.devices.RefreshOlder(time.Second) {
		assignments, err = s.alloc.ForPod(ctx, pod)
	}
	if err != nil {
		return nil, err
	}
	var vfs []edits.VF
	seen := make(map[string]bool)
	for _, a := range assignments {
		for _, h := range a.VFs {
			// Containers of a pod may share a VF.
			if vf := h.Device.VF; !seen[string(vf.Address)] {
				seen[string(vf.Address)] = true
				vfs = append(vfs, edits.VF{Address: vf.Address, Resource: h.Resource, Group: h.Device.Node, Module: vf.Family.VFModule})
			}
		}
	}
	return edits.Sandbox(vfs, profile, pod.Annotations), nil
}

func code(ctx context.Context, err error) codes.Code {
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return codes.DeadlineExceeded
	}
	return codes.FailedPrecondition
}

// Devices lists the VFs of the current view.
func (s *service) Devices(context.Context, *nodev1.DevicesRequest) (*nodev1.DevicesResponse, error) {
	answer := &nodev1.DevicesResponse{Daemon: api.Daemon()}
	for _, d := range s.devices.Current().Table.Devices() {
		device := &nodev1.Device{
			Address: string(d.VF.Address), Pf: string(d.VF.PF), Family: d.VF.Family.Name, Resource: d.VF.Resource(),
			Driver: d.VF.Driver, NumaNode: int32(d.VF.NUMANode), Node: d.Node.Path,
		}
		if d.Err != nil {
			device.Problem = d.Err.Error()
		}
		answer.Devices = append(answer.Devices, device)
	}
	return answer, nil
}

// Assignments lists who holds what.
func (s *service) Assignments(context.Context, *nodev1.AssignmentsRequest) (*nodev1.AssignmentsResponse, error) {
	answer := &nodev1.AssignmentsResponse{Daemon: api.Daemon()}
	for _, a := range s.alloc.Assignments() {
		assignment := &nodev1.Assignment{
			SandboxId: a.Pod.ID, Namespace: a.Pod.Namespace, Pod: a.Pod.Name, Uid: a.Pod.UID,
			Container: a.Container, ContainerId: a.ContainerID, Source: string(a.Source),
		}
		for _, h := range a.VFs {
			assignment.Devices = append(assignment.Devices, &nodev1.HeldDevice{Address: string(h.Device.VF.Address), Resource: h.Resource, Index: uint32(max(h.Index, 0))})
		}
		answer.Assignments = append(answer.Assignments, assignment)
	}
	return answer, nil
}

// Health says whether pods are served.
func (s *service) Health(context.Context, *nodev1.HealthRequest) (*nodev1.HealthResponse, error) {
	wrong := s.unready()
	return &nodev1.HealthResponse{
		Daemon: api.Daemon(), Ready: len(wrong) == 0, Reason: strings.Join(wrong, "; "), RuntimeConnected: s.connected.Load(),
	}, nil
}

// unready tells what keeps the node from serving pods.
func (s *service) unready() []string {
	var wrong []string
	if !s.connected.Load() {
		wrong = append(wrong, "not connected to the container runtime")
	}
	if err := s.devices.Err(); err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong
}
