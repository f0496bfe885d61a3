// Command containerd-shim-kata-v2 stands in for the Kata shim in the test beds:
// runc behind Kata's name. It takes a runtime entry as Kata's is written, with
// options.ConfigPath, which runc's own shim refuses, and it records what it was
// given, so that a test can tell what a real Kata would have built a VM from.
//
// It is told by its environment, which it has from containerd:
//
//	KATA_STANDIN_RECORD     file to which the record is appended, one JSON object a line
//	KATA_STANDIN_RUNC       the runc binary
//	KATA_STANDIN_RUNC_ROOT  runc's state directory
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

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
	"github.com/opencontainers/runtime-spec/specs-go"
)

// event is one line of the record; package bed of the main module reads it.
type event struct {
	Event string `json:"event"` // "invoked" or "create"
	PID   int    `json:"pid"`

	Args []string `json:"args,omitempty"` // of an invocation
	Dir  string   `json:"dir,omitempty"`

	ID            string              `json:"id,omitempty"` // of a Create
	Bundle        string              `json:"bundle,omitempty"`
	ContainerType string              `json:"containerType,omitempty"` // "sandbox" or "container"
	ConfigPath    string              `json:"configPath,omitempty"`
	Devices       []specs.LinuxDevice `json:"devices,omitempty"`
}

// record appends one event. A single write to a file opened for appending is
// not torn by the other shims that write to it.
func record(e event) error {
	path := os.Getenv("KATA_STANDIN_RECORD")
	if path == "" {
		return nil
	}
	e.PID = os.Getpid()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

// service is runc's task service with a Create that understands Kata's options.
type service struct {
	taskapi.TTRPCTaskService
}

func (s service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

func (s service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	e := event{Event: "create", ID: r.ID, Bundle: r.Bundle}
	if r.Options != nil {
		options, err := typeurl.UnmarshalAny(r.Options)
		if err != nil {
			return nil, fmt.Errorf("read the options of %s: %w", r.ID, err)
		}
		if kata, ok := options.(*runtimeoptions.Options); ok {
			e.ConfigPath = kata.ConfigPath
		}
	}
	config, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(config, &spec); err != nil {
		return nil, fmt.Errorf("read config.json of %s: %w", r.ID, err)
	}
	e.ContainerType = spec.Annotations["io.kubernetes.cri.container-type"]
	if spec.Linux != nil {
		e.Devices = spec.Linux.Devices
	}
	if err := record(e); err != nil {
		return nil, fmt.Errorf("record the creation of %s: %w", r.ID, err)
	}
	r.Options, err = typeurl.MarshalAnyToProto(&runcoptions.Options{
		BinaryName: os.Getenv("KATA_STANDIN_RUNC"),
		Root:       os.Getenv("KATA_STANDIN_RUNC_ROOT"),
	})
	if err != nil {
		return nil, err
	}
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
	dir, err := os.Getwd()
	if err == nil {
		err = record(event{Event: "invoked", Args: os.Args, Dir: dir})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-kata-v2 (stand-in): record the invocation:", err)
		os.Exit(1)
	}
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.kata.v2"))
}
