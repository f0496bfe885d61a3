// Command containerd-shim-kata-v2 stands in for the Kata shim in the test beds
// of containerd 1.7, which refuses a shim that speaks version 3 of the API. It
// does what that of containerd 2 does, and keeps the same record.
package main

import (
	"context"
	"fmt"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/pkg/runtimeoptions/v1"
	"github.com/containerd/containerd/pkg/shutdown"
	"github.com/containerd/containerd/plugin"
	"github.com/containerd/containerd/runtime/v2/runc/manager"
	"github.com/containerd/containerd/runtime/v2/runc/task"
	"github.com/containerd/containerd/runtime/v2/shim"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kata-qat/kata-qat/test/tools/standin"
)

// service is runc's task service with a Create that understands Kata's options.
type service struct {
	taskapi.TaskService
}

func (s service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTaskService(server, s)
	return nil
}

func (s service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	var kata runtimeoptions_v1.Options
	if r.Options != nil && typeurl.Is(r.Options, &kata) {
		if err := typeurl.UnmarshalTo(r.Options, &kata); err != nil {
			return nil, fmt.Errorf("read the options of %s: %w", r.ID, err)
		}
	}
	if _, err := standin.Created(r.ID, r.Bundle, kata.ConfigPath); err != nil {
		return nil, err
	}
	options, err := typeurl.MarshalAny(&runcoptions.Options{BinaryName: standin.Runc(), Root: standin.RuncRoot()})
	if err != nil {
		return nil, err
	}
	r.Options = &anypb.Any{TypeUrl: options.GetTypeUrl(), Value: options.GetValue()}
	return s.TaskService.Create(ctx, r)
}

func newService(ic *plugin.InitContext) (any, error) {
	publisher, err := ic.GetByID(plugin.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	stop, err := ic.GetByID(plugin.InternalPlugin, "shutdown")
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
	plugin.Register(&plugin.Registration{
		Type:     plugin.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugin.EventPlugin, plugin.InternalPlugin},
		InitFn:   newService,
	})
	if err := standin.Invoked(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shim.RunManager(context.Background(), manager.NewShimManager(standin.RuntimeType))
}
