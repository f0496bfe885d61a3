package bed

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSpec says what pod to run.
type PodSpec struct {
	Namespace   string // "default" when empty
	Name        string // one that is free when empty
	UID         string // made from the name when empty
	Handler     string // "kata-qat" when empty
	Labels      map[string]string
	Annotations map[string]string
	HostNetwork bool // needed in a bed without CNI
}

// Pod is a pod sandbox.
type Pod struct {
	ID   string
	Spec PodSpec

	bed    *Bed
	config *cri.PodSandboxConfig
}

// ContainerSpec says what container to create. The zero value is a shell that
// sleeps until it is told to end.
type ContainerSpec struct {
	Name        string // "main" when empty
	Image       string // Busybox when empty
	Command     []string
	Env         []string // NAME=value
	Devices     []Device
	CDIDevices  []string // "vendor.com/class=name"
	Mounts      []Mount
	User        *User
	Labels      map[string]string
	Annotations map[string]string
	Privileged  bool
}

// Device is a device node of the host for a container.
type Device struct {
	Host        string
	Container   string // Host when empty
	Permissions string // "rwm" when empty
}

// Mount is a directory or file of the host for a container.
type Mount struct {
	Host, Container string
	ReadOnly        bool
}

// User is the user and group that a container's process runs as.
type User struct{ UID, GID int64 }

// Container is a container of a pod.
type Container struct {
	ID  string
	Pod *Pod

	name string
}

// ExecResult is what a command in a container said.
type ExecResult struct {
	Stdout, Stderr string
	Code           int
}

// idle is a shell that ends on SIGTERM at once, which as process 1 of its pid
// namespace it would ignore without the trap.
var idle = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"}

// RunPod creates and starts a pod sandbox.
func (b *Bed) RunPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	if spec.Name == "" {
		spec.Name = "pod-" + strconv.FormatInt(b.pods.Add(1), 10)
	}
	spec.Namespace = cmp.Or(spec.Namespace, "default")
	spec.Handler = cmp.Or(spec.Handler, "kata-qat")
	spec.UID = cmp.Or(spec.UID, "uid-"+spec.Namespace+"-"+spec.Name)
	network := cri.NamespaceMode_NODE
	if !spec.HostNetwork {
		if b.opts.CNI == "" {
			return nil, fmt.Errorf("run pod %s/%s: this bed has no network for pods: set HostNetwork or Options.CNI", spec.Namespace, spec.Name)
		}
		network = cri.NamespaceMode_POD
	}
	p := &Pod{Spec: spec, bed: b, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Namespace: spec.Namespace, Name: spec.Name, Uid: spec.UID},
		LogDirectory: b.path("logs", spec.UID),
		Labels:       spec.Labels,
		Annotations:  spec.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: cgroup(b.dir),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: network, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD,
			}},
		},
	}}
	r, err := b.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: spec.Handler})
	if err != nil {
		return nil, fmt.Errorf("run pod %s/%s with handler %s: %w", spec.Namespace, spec.Name, spec.Handler, err)
	}
	p.ID = r.PodSandboxId
	return p, nil
}

// CreateContainer creates a container and does not start it. An error of
// containerd can be told by its gRPC status.
func (p *Pod) CreateContainer(ctx context.Context, spec ContainerSpec) (*Container, error) {
	config := p.containerConfig(spec)
	r, err := p.bed.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.config})
	if err != nil {
		return nil, fmt.Errorf("create container %s of pod %s/%s: %w", config.Metadata.Name, p.Spec.Namespace, p.Spec.Name, err)
	}
	return &Container{ID: r.ContainerId, Pod: p, name: config.Metadata.Name}, nil
}

// RunContainer creates and starts a container.
func (p *Pod) RunContainer(ctx context.Context, spec ContainerSpec) (*Container, error) {
	c, err := p.CreateContainer(ctx, spec)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

func (p *Pod) containerConfig(spec ContainerSpec) *cri.ContainerConfig {
	name := cmp.Or(spec.Name, "main")
	security := &cri.LinuxContainerSecurityContext{
		NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		Privileged:       spec.Privileged,
	}
	if u := spec.User; u != nil {
		security.RunAsUser = &cri.Int64Value{Value: u.UID}
		security.RunAsGroup = &cri.Int64Value{Value: u.GID}
	}
	config := &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: name},
		Image:       &cri.ImageSpec{Image: cmp.Or(spec.Image, Busybox)},
		Command:     spec.Command,
		LogPath:     name + ".log",
		Labels:      spec.Labels,
		Annotations: spec.Annotations,
		Linux:       &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{}, SecurityContext: security},
	}
	if len(spec.Command) == 0 && config.Image.Image == Busybox {
		config.Command = idle
	}
	for _, kv := range spec.Env {
		k, v, _ := strings.Cut(kv, "=")
		config.Envs = append(config.Envs, &cri.KeyValue{Key: k, Value: []byte(v)})
	}
	for _, d := range spec.Devices {
		config.Devices = append(config.Devices, &cri.Device{
			HostPath: d.Host, ContainerPath: cmp.Or(d.Container, d.Host), Permissions: cmp.Or(d.Permissions, "rwm"),
		})
	}
	for _, name := range spec.CDIDevices {
		config.CDIDevices = append(config.CDIDevices, &cri.CDIDevice{Name: name})
	}
	for _, m := range spec.Mounts {
		config.Mounts = append(config.Mounts, &cri.Mount{HostPath: m.Host, ContainerPath: m.Container, Readonly: m.ReadOnly})
	}
	return config
}

// OCISpec is the sandbox's config.json as its shim was given it.
func (p *Pod) OCISpec() (*specs.Spec, error) { return p.bed.readSpec(p.ID) }

// Stop stops the pod and its containers.
func (p *Pod) Stop(ctx context.Context) error {
	_, err := p.bed.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	return wrap(err, "stop pod "+p.ID)
}

// Remove stops the pod and removes it with all its containers.
func (p *Pod) Remove(ctx context.Context) error { return p.bed.removePod(ctx, p.ID) }

func (b *Bed) removePod(ctx context.Context, id string) error {
	_, stop := b.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	_, remove := b.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return wrap(errors.Join(stop, remove), "remove pod "+id)
}

// Start starts the container's process.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.runtime().StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID})
	return wrap(err, "start container "+c.ID)
}

// Exec runs a command in the container. The error is about the running, not
// about how the command ended.
func (c *Container) Exec(ctx context.Context, command ...string) (ExecResult, error) {
	r, err := c.runtime().ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command})
	if err != nil {
		return ExecResult{}, fmt.Errorf("run %q in container %s: %w", command, c.ID, err)
	}
	return ExecResult{Stdout: string(r.Stdout), Stderr: string(r.Stderr), Code: int(r.ExitCode)}, nil
}

// Status is the container's status as CRI has it.
func (c *Container) Status(ctx context.Context) (*cri.ContainerStatus, error) {
	r, err := c.runtime().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		return nil, fmt.Errorf("status of container %s: %w", c.ID, err)
	}
	return r.Status, nil
}

// Stats are the container's resource figures as CRI has them.
func (c *Container) Stats(ctx context.Context) (*cri.ContainerStats, error) {
	r, err := c.runtime().ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.ID})
	if err != nil {
		return nil, fmt.Errorf("stats of container %s: %w", c.ID, err)
	}
	return r.Stats, nil
}

// LogPath is the file that the container's output goes to, in CRI's format.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.config.LogDirectory, c.name+".log")
}

// OCISpec is the container's config.json as its shim was given it.
func (c *Container) OCISpec() (*specs.Spec, error) { return c.Pod.bed.readSpec(c.ID) }

// Stop stops the container's process, at first with SIGTERM.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	_, err := c.runtime().StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace.Seconds())})
	return wrap(err, "stop container "+c.ID)
}

// Remove kills the container if it runs and removes it.
func (c *Container) Remove(ctx context.Context) error {
	_, err := c.runtime().RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID})
	return wrap(err, "remove container "+c.ID)
}

func (c *Container) runtime() cri.RuntimeServiceClient { return c.Pod.bed.runtime }

func (b *Bed) readSpec(id string) (*specs.Spec, error) {
	content, err := os.ReadFile(filepath.Join(b.Bundle(id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the spec of %s: %w", id, err)
	}
	spec := new(specs.Spec)
	if err := json.Unmarshal(content, spec); err != nil {
		return nil, fmt.Errorf("read the spec of %s: %w", id, err)
	}
	return spec, nil
}

func wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
