// Command containerd-shim-kata-v2 stands in for the Kata shim in the test beds
// of containerd 2: runc behind Kata's name. It takes a runtime entry as Kata's
// is written, with options.ConfigPath, which runc's own shim refuses, and it
// records what it was given, so that a test can tell what a real Kata would
// have built a VM from. Package standin says what its environment tells it.
package main

import (
	"context"
	"fmt"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"

	"github.com/kata-qat/kata-qat/test/tools/standin"
)

// service is runc's task service with a Create that understands Kata's options.
type service struct {
	taskapi.TTRPCTaskService
}

func (s service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

func (s service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	var kata runtimeoptions.Options
	if r.Options != nil && typeurl.Is(r.Options, &kata) {
		if err := typeurl.UnmarshalTo(r.Options, &kata); err != nil {
			return nil, fmt.Errorf("read the options of %s: %w", r.ID, err)
		}
	}
	if err := standin.Created(r.ID, r.Bundle, kata.ConfigPath); err != nil {
		return nil, err
	}
	options, err := typeurl.MarshalAnyToProto(&runcoptions.Options{BinaryName: standin.Runc(), Root: standin.RuncRoot()})
	if err != nil {
		return nil, err
	}
	r.Options = options
	return s.TTRPCTaskService.Create(ctx, r)
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
	return service{runc}, nil
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
