//go:build bed

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/provision/plan"
	"github.com/kata-qat/kata-qat/provision/runtime"
	"github.com/kata-qat/kata-qat/shim"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// bareNode is a node whose containerd knows nothing of Kata, with a Kata
// installation whose shim is the stand-in.
type bareNode struct {
	*simnode.Node
	t        *testing.T
	dir      string
	tools    string
	restarts int
	// spoil is done to our drop-in before the next restart.
	spoil func(dropIn string)
}

func newBareNode(t *testing.T, version string) *bareNode {
	t.Helper()
	b := &bareNode{t: t, dir: t.TempDir()}
	b.Node = startNode(t, func(o *simnode.Options) {
		o.Bed.ContainerdVersion = version
		o.Bed.Handlers = map[string]bed.Handler{"runc": {RuntimeType: bed.RuncType}}
		o.Bed.RequiredPlugins = nil
		o.Bed.Env = []string{shim.ConfigEnv + "=" + filepath.Join(b.dir, "shim.toml")}
	})
	b.tools = filepath.Join(filepath.Dir(filepath.Dir(b.Binary)), "build", "tools")
	if version == "1.7" {
		b.tools = filepath.Join(b.tools, "1.7")
	}
	kata := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = --version ]; then\n\techo 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1'\n\texit\nfi\nexec %s/%s \"$@\"\n", b.tools, standin)
	for name, text := range map[string]string{
		"kata/runtime-rs/bin/" + standin: kata,
		"kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml": "[hypervisor.qemu]\nkernel_params = \"\"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(b.dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(b.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	ours := "containerd-shim-kata-qat-v2"
	if err := os.Symlink(filepath.Join(filepath.Dir(b.Binary), ours), filepath.Join(b.dir, "bin", ours)); err != nil {
		t.Fatal(err)
	}
	return b
}

// config is containerd's configuration.
func (b *bareNode) config() string { return filepath.Join(b.Dir(), "config.toml") }

func (b *bareNode) dropIn() string { return filepath.Join(b.Dir(), "conf.d", "60-kata-qat.toml") }

// engine has the paths of this process: what it writes is read by programs whose
// root is the machine's.
func (b *bareNode) engine() *plan.Engine {
	b.t.Helper()
	cfg := config.Default()
	cfg.Standalone, cfg.RunDir, cfg.NRI.Socket = true, b.RunDir(), b.NRISocket()
	p := runtime.DefaultPaths()
	p.KataDeploy, p.Packages, p.KataEtc = filepath.Join(b.dir, "kata"), nil, filepath.Join(b.dir, "etc")
	p.Config, p.ShimConfig, p.Shims = filepath.Join(b.dir, "config"), filepath.Join(b.dir, "shim.toml"), filepath.Join(b.dir, "bin")
	p.Containerd, p.Rancher, p.Socket, p.State = b.Dir(), filepath.Join(b.dir, "rancher"), b.Socket(), filepath.Join(b.dir, "state")
	steps, err := runtime.Steps(runtime.Options{Config: cfg, Guest: runtime.KatasGuest, Paths: p, Runner: b, HealthTimeout: 3 * time.Second})
	if err != nil {
		b.t.Fatal(err)
	}
	return &plan.Engine{Root: b.dir, Steps: steps}
}

// Run stands in for systemctl, and runs everything else.
func (b *bareNode) Run(ctx context.Context, _, name string, args ...string) (string, error) {
	switch line := strings.Join(append([]string{name}, args...), " "); line {
	case "systemctl is-active containerd":
		return "active\n", nil
	case "systemctl restart containerd":
		b.restarts++
		if b.spoil != nil {
			b.spoil(b.dropIn())
			b.spoil = nil
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := b.RestartContainerd(ctx)
		if errors.Is(err, context.DeadlineExceeded) { // it runs, and that is all that systemd knows
			err = nil
		}
		return "", err
	case "containerd --version":
		name = filepath.Join(b.tools, "containerd")
	}
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

func (b *bareNode) read(name string) string {
	b.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// From a containerd that knows nothing of Kata to a pod with its VFs, and back.
func TestProvisionRuntimeMakesContainerdServeKata(t *testing.T) {
	for _, version := range []string{"2.4", "1.7"} {
		t.Run("containerd "+version, func(t *testing.T) {
			b := newBareNode(t, version)
			before := b.read(b.config())
			if _, err := b.RunPod(t.Context(), asking("cy=2")); err == nil {
				t.Fatal("the handler is there already")
			}
			if _, err := b.engine().Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			d := startDaemon(t, b.Node)
			pod := runPod(t, b.Node, asking("cy=2"))
			event, err := b.ShimCreate(pod.ID)
			if err != nil {
				t.Fatal(err)
			}
			if want := filepath.Join(b.dir, "config", "kata-qat", "configuration.toml"); event.ConfigPath != want {
				t.Errorf("Kata's shim got the configuration %q, expected %q", event.ConfigPath, want)
			}
			if len(event.Devices) != 2 {
				t.Errorf("the sandbox has %v, expected 2 VFs", event.Devices)
			}
			if got := inside(t, runContainer(t, pod, bed.ContainerSpec{}), "ls /dev/vfio"); got != "100\n101\nvfio" {
				t.Errorf("the container has %q", got)
			}

			config := b.read(b.config())
			out, err := b.engine().Apply(t.Context())
			if err != nil || out.Changed || out.Pending || b.restarts != 1 {
				t.Errorf("the second run: %v, %+v, %d restarts", err, out, b.restarts)
			}
			if got := b.read(b.config()); got != config {
				t.Errorf("the second run changed config.toml to\n%s", got)
			}

			if version == "2.4" {
				if err := d.Kill(); err != nil {
					t.Fatal(err)
				}
				mustContain(t, "error", refused(t, pod, bed.ContainerSpec{Name: "late"}), "kata-qat")
			}
			remove(t, pod)
			if _, err := b.engine().Undo(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, b.read(b.config())); diff != "" {
				t.Errorf("config.toml after the undo (-before +after):\n%s", diff)
			}
			for _, left := range []string{filepath.Dir(b.dropIn()), filepath.Join(b.dir, "config"), filepath.Join(b.dir, "shim.toml"), filepath.Join(b.dir, "state"), filepath.Join(b.dir, plan.Directory)} {
				if _, err := os.Lstat(left); !os.IsNotExist(err) {
					t.Errorf("%s is left: %v", left, err)
				}
			}
			if _, err := b.RunPod(t.Context(), asking("cy=2")); err == nil {
				t.Error("the handler is still there")
			}
		})
	}
}

func TestProvisionRuntimeRollsBackABrokenContainerd(t *testing.T) {
	for name, spoil := range map[string]string{
		"containerd does not start":         "[[[",
		"containerd starts without CRI":     "\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"nobody\"\n",
		"containerd starts with no handler": "",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBareNode(t, "2.4")
			before := b.read(b.config())
			b.spoil = func(dropIn string) {
				text := b.read(dropIn) + spoil
				if spoil == "" {
					text = ""
				}
				if err := os.WriteFile(dropIn, []byte(text), 0o644); err != nil {
					t.Error(err)
				}
			}
			e := b.engine()
			_, err := e.Apply(t.Context())
			if err == nil {
				t.Fatal("a broken containerd was taken for healthy")
			}
			mustContain(t, "error", err.Error(), "containerd", "rolled back")
			if diff := cmp.Diff(before, b.read(b.config())); diff != "" {
				t.Errorf("config.toml (-before +after):\n%s", diff)
			}
			if _, err := os.Lstat(filepath.Dir(b.dropIn())); !os.IsNotExist(err) {
				t.Errorf("conf.d is left: %v", err)
			}
			pod := runPod(t, b.Node, bed.PodSpec{Handler: "runc"})
			runContainer(t, pod, bed.ContainerSpec{})
			remove(t, pod)
		})
	}
}
