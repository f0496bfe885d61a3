package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kata-qat/kata-qat/shim"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// realShim ends at once: what is measured is what ours adds to any.
const realShim = "/bin/true"

// benchShim compares the start of a sandbox's shim behind ours, which asks the
// daemon and rewrites a real config.json for two VFs, with the real shim alone.
func benchShim(ctx context.Context, o options) (err error) {
	node, err := start(func(so *simnode.Options) {
		// The request has to be in the sandbox's spec for the shim to pass it on.
		so.Bed.Handlers["kata-qat"] = bed.Handler{RuntimeType: bed.RuncType, PodAnnotations: []string{"kata-qat.io/*"}}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	d, err := node.StartDaemon(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	pod, err := node.RunPod(ctx, bed.PodSpec{HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=2"}})
	if err != nil {
		return err
	}
	// Like /run, where containerd has its bundles, /dev/shm is in memory.
	bundle, err := os.MkdirTemp("/dev/shm", "kq")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bundle)
	spec, err := os.ReadFile(filepath.Join(node.Bundle(pod.ID), "config.json"))
	if err != nil {
		return err
	}
	config := filepath.Join(bundle, "shim.toml")
	text := fmt.Sprintf("socket = %q\n[runtimes]\nkata-qat = %q\n", node.APISocket(), realShim)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	ours := filepath.Join(filepath.Dir(node.Binary), "containerd-shim-kata-qat-v2")
	measure := func(ctx context.Context, v *variant, n int) error {
		var took bed.Durations
		for range n {
			for _, name := range []string{"config.json", shim.Original} {
				if err := os.Remove(filepath.Join(bundle, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
			if err := os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o644); err != nil {
				return err
			}
			cmd := exec.CommandContext(ctx, v.command, "-namespace", "k8s.io", "-id", pod.ID, "start")
			cmd.Dir, cmd.Env = bundle, append(os.Environ(), shim.ConfigEnv+"="+config)
			began := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			took = append(took, time.Since(began))
			// What is not there was not measured.
			if _, err := os.Stat(filepath.Join(bundle, shim.Original)); (err == nil) != (v.command == ours) {
				return fmt.Errorf("the spec was rewritten: %v", err == nil)
			}
		}
		v.rounds = append(v.rounds, took)
		return nil
	}
	variants := []variant{{name: "real shim alone", command: realShim}, {name: "behind ours", command: ours}}
	if err := interleave(ctx, options{rounds: o.rounds, n: 200 / o.rounds}, variants, measure); err != nil {
		return err
	}
	printPaired("start of a sandbox's shim, 200 interleaved runs", variants)
	return errors.Join(pod.Stop(ctx), pod.Remove(ctx))
}

// benchPod compares a whole pod start over CRI, sandbox and one container with
// two VFs, with the shim and the plugin and without either. The container's
// request has the VFs' nodes in both, as kubelet writes it for any device
// plugin: what the runtime makes of them is not ours. Between the two stands the
// least that such a design can cost: a shim and a plugin that do nothing.
func benchPod(ctx context.Context, o options) (err error) {
	idle, err := buildIdleShim(ctx)
	if err != nil {
		return err
	}
	defer os.Remove(idle)
	node, err := start(func(so *simnode.Options) {
		so.Bed.Handlers = map[string]bed.Handler{
			"kata-qat": {RuntimeType: bed.RuncType}, "plain": {RuntimeType: bed.RuncType},
			"idle": {RuntimeType: bed.RuncType, RuntimePath: idle},
		}
		so.Shims = map[string]string{"kata-qat": "containerd-shim-runc-v2"}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	var container bed.ContainerSpec
	for _, name := range []string{"vfio", "100", "101"} { // the two that the pool gives first
		container.Devices = append(container.Devices, bed.Device{Host: filepath.Join(node.Tree.Root, "dev/vfio", name), Container: "/dev/vfio/" + name, Permissions: "rw"})
	}
	measure := func(ctx context.Context, v *variant, n int) error {
		var d *simnode.Daemon
		if v.handler != "plain" {
			var err error
			if d, err = node.StartDaemon(ctx); err != nil {
				return err
			}
		}
		var took bed.Durations
		for range n {
			began := time.Now()
			pod, err := node.RunPod(ctx, bed.PodSpec{Handler: v.handler, HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=2"}})
			if err != nil {
				return err
			}
			c, err := pod.RunContainer(ctx, container)
			if err != nil {
				return err
			}
			took = append(took, time.Since(began))
			spec, err := c.OCISpec()
			if err != nil {
				return err
			}
			if n := len(spec.Linux.Devices); n != len(container.Devices) { // the same VFs, not two more
				return fmt.Errorf("the container has %d devices", n)
			}
			if err := errors.Join(pod.Stop(ctx), pod.Remove(ctx)); err != nil {
				return err
			}
		}
		v.rounds = append(v.rounds, took)
		if d != nil {
			return d.Stop()
		}
		return nil
	}
	variants := []variant{
		{name: "without kata-qat", handler: "plain"},
		{name: "with a plugin and a shim that do nothing", handler: "idle"},
		{name: "with plugin and shim", handler: "kata-qat"},
	}
	n := max(1, o.n/10)
	if err := interleave(ctx, options{rounds: o.rounds, n: n}, variants, measure); err != nil {
		return err
	}
	printPaired(fmt.Sprintf("Start of a pod with one container and two VFs over CRI, %d interleaved rounds of %d", o.rounds, n), variants)
	return nil
}

// buildIdleShim builds a shim that only becomes that of runc.
func buildIdleShim(ctx context.Context) (string, error) {
	tools, err := bed.ToolsDir("")
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "containerd-shim-idle-")
	if err != nil {
		return "", err
	}
	f.Close()
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w -X main.real="+filepath.Join(tools, "containerd-shim-runc-v2"), "-o", f.Name(), "github.com/kata-qat/kata-qat/test/bench/idleshim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("build the shim that does nothing: %w: %s", err, out)
	}
	return f.Name(), nil
}
