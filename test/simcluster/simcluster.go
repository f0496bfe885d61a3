// Package simcluster puts a Kubernetes cluster together whose node has QAT
// devices and Kata Containers, on a machine that has neither: a real control
// plane, kubelet and containerd, a simulated sysfs and device nodes in the place
// of the real ones, and a stand-in for Kata's shim that runs runc. kata-qat and
// its programs are the real ones, at their usual paths.
package simcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// Main is kube.Main.
func Main(run func() int) int { return kube.Main(run) }

// Cluster is a running cluster. kata-qat is not installed on it yet.
type Cluster struct {
	*kube.Bed
	Tree   qattest.Tree
	Daemon *kube.Service // nil before Install, and where the chart's pod has it

	programs string // directory of kata-qat's own
}

// machineDir has the simulated machine.
const machineDir = "/run/kata-qat-machine"

// Handler is the runtime handler and RuntimeClass for pods with VFs.
const Handler = "kata-qat"

// RuntimeClass has pods with VFs run by our handler.
const RuntimeClass = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: ` + Handler + `}
handler: ` + Handler + `
`

// Machine is the machine that the cluster's node has: for crypto, for
// compression, and a small one.
func Machine() qattest.Node {
	n := simnode.Machine()
	n.PFs = append(n.PFs, qattest.PF{
		Address: "0000:70:00.0", Family: "4xxx", Services: "sym", State: qat.StateUp, Group: 3, VFs: 2, VFDriver: "vfio-pci", FirstGroup: 300,
	})
	return n
}

// Start starts the cluster with a machine's devices. It works once, below Main.
func Start(ctx context.Context, machine qattest.Node) (*Cluster, error) {
	programs, err := findPrograms()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Tree: qattest.Tree{Root: machineDir}, programs: programs}
	if err := machine.Write(machineDir); err != nil {
		return nil, err
	}
	if err := installKata(); err != nil {
		return nil, err
	}
	if c.Bed, err = kube.Start(ctx, kube.Options{Machine: machineDir}); err != nil {
		return nil, err
	}
	return c, nil
}

// findPrograms looks for bin of this module, in the working directory and above.
func findPrograms() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "bin", "kata-qat")); err == nil {
			return filepath.Join(dir, "bin"), nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("bin/kata-qat is not there, in %s or above: run make build", start)
		}
	}
}

// kataShim stands for the shim of a release of Kata, which provisioning asks for
// its version. It is the stand-in otherwise.
const kataShim = `#!/bin/sh
if [ "$1" = --version ]; then
	echo 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1'
	exit
fi
exec /usr/local/bin/containerd-shim-kata-v2 "$@"
`

// installKata puts files where a release of Kata has them.
func installKata() error {
	for name, text := range map[string]string{
		"/opt/kata/runtime-rs/bin/containerd-shim-kata-v2":                                       kataShim,
		"/opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml": "[hypervisor.qemu]\nkernel_params = \"\"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Install installs kata-qat on the node as bootstrap-node.sh does, and the
// RuntimeClass, and returns when pods can have VFs. changes are laid over the
// daemon's configuration, in which the device plugin is on.
func (c *Cluster) Install(ctx context.Context, changes map[string]any) error {
	for _, name := range []string{"kata-qat", "kata-qat-full", "containerd-shim-kata-qat-v2"} {
		if err := kube.Link(filepath.Join(c.programs, name), filepath.Join("/usr/local/bin", name)); err != nil {
			return err
		}
	}
	if err := c.Configure(changes); err != nil {
		return err
	}
	var err error
	if c.Daemon, err = c.Run("kata-qat", nil, "kata-qat", "nri-plugin"); err != nil {
		return err
	}
	if _, err := c.CLI(ctx, "provision", "runtime", "--guest", "kata"); err != nil {
		return err
	}
	return errors.Join(c.WaitConnected(ctx), c.Apply(ctx, RuntimeClass))
}

// Configure writes the daemon's configuration. It holds from the daemon's next
// start on.
func (c *Cluster) Configure(changes map[string]any) error {
	all := map[string]any{"device_plugin": map[string]any{"enable": true}}
	for key, value := range changes {
		all[key] = value
	}
	text, err := toml.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(config.Path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(config.Path, text, 0o644)
}

// Reconfigure gives the running daemon another configuration.
func (c *Cluster) Reconfigure(ctx context.Context, changes map[string]any) error {
	if err := c.Configure(changes); err != nil {
		return err
	}
	if err := c.Daemon.Restart(ctx); err != nil {
		return err
	}
	return c.WaitConnected(ctx)
}

// WaitConnected waits until the daemon that runs now is asked about every
// container.
func (c *Cluster) WaitConnected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := c.connected(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil && c.Daemon != nil {
			return fmt.Errorf("wait for the daemon: %w; the end of its log:\n%s", err, c.Daemon.Tail(10))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the daemon: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *Cluster) connected(ctx context.Context) error {
	client, err := api.Dial(ctx, filepath.Join(config.Default().RunDir, api.SocketName))
	if err != nil {
		return err
	}
	defer client.Close()
	health, err := client.Health(ctx, &nodev1.HealthRequest{Client: api.Self()})
	if err == nil && !health.GetRuntimeConnected() {
		err = errors.New("containerd has not connected with it")
	}
	return err
}

// CLI runs kata-qat on the node and returns what it printed.
func (c *Cluster) CLI(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "kata-qat", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kata-qat %s: %w: %s%s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()), out)
	}
	return string(out), nil
}
