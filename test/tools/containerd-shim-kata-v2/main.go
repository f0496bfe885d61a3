// Command containerd-shim-kata-v2 stands in for the Kata shim in the test beds
// of containerd 2: runc behind Kata's name. It takes a runtime entry as Kata's
// is written, with options.ConfigPath, which runc's own shim refuses, and it
// records what it was given, so that a test can tell what a real Kata would
// have built a VM from. If it is told of a program for that, a sandbox has a VM
// beside its runc container. Package standin says what its environment tells it.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"

	"github.com/kata-qat/kata-qat/test/tools/standin"
)

// service is runc's task service with a Create that understands Kata's options,
// and with VMs.
type service struct {
	taskapi.TTRPCTaskService

	mu  sync.Mutex
	vms map[string]string // the bundles of sandboxes that have one, by id
}

func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	var kata runtimeoptions.Options
	if r.Options != nil && typeurl.Is(r.Options, &kata) {
		if err := typeurl.UnmarshalTo(r.Options, &kata); err != nil {
			return nil, fmt.Errorf("read the options of %s: %w", r.ID, err)
		}
	}
	kind, err := standin.Created(r.ID, r.Bundle, kata.ConfigPath)
	if err != nil {
		return nil, err
	}
	options, err := typeurl.MarshalAnyToProto(&runcoptions.Options{BinaryName: standin.Runc(), Root: standin.RuncRoot()})
	if err != nil {
		return nil, err
	}
	r.Options = options
	if kind == "sandbox" {
		if err := runVM("start", r.Bundle); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.vms[r.ID] = r.Bundle
		s.mu.Unlock()
	}
	created, err := s.TTRPCTaskService.Create(ctx, r)
	if err != nil {
		err = errors.Join(err, s.stopVM(r.ID))
	}
	return created, err
}

// Delete of a sandbox ends its VM: the pod holds its devices until then.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	deleted, err := s.TTRPCTaskService.Delete(ctx, r)
	if err == nil && r.ExecID == "" {
		err = s.stopVM(r.ID)
	}
	return deleted, err
}

// stopVM does nothing if the container has none, or none any more.
func (s *service) stopVM(id string) error {
	s.mu.Lock()
	bundle, ok := s.vms[id]
	delete(s.vms, id)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	return runVM("stop", bundle)
}

// runVM waits for the program through the reaper, which takes every child that
// ends away from os/exec.
func runVM(verb, bundle string) error {
	cmd := standin.VM(verb, bundle)
	if cmd == nil {
		return nil
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	exits, err := reaper.Default.Start(cmd)
	if err != nil {
		return fmt.Errorf("%s the VM of bundle %s: %w", verb, bundle, err)
	}
	status, err := reaper.Default.Wait(cmd, exits)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d: %s", status, bytes.TrimSpace(said.Bytes()))
	}
	if err != nil {
		return fmt.Errorf("%s the VM of bundle %s: %w", verb, bundle, err)
	}
	return nil
}

func newService(ic *plugin.InitContext) (any, error) {
	publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	stop, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	runc, err := task.NewTaskService(ic.Context, publisher.(shim.Publisher), stop.(shutdown.Service))
	if err != nil {
		return nil, err
	}
	return &service{TTRPCTaskService: runc, vms: map[string]string{}}, nil
}

func main() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   newService,
	})
	if err := standin.Invoked(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shim.RunShim(context.Background(), manager.NewShimManager(standin.RuntimeType))
}
