// Command nodetest runs in a guest of the lab: on a real kernel with VFs bound
// to vfio-pci it starts containerd and the node daemon, has a pod ask for one
// VF over CRI, and uses that VF from inside the container.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/shim"
	"github.com/kata-qat/kata-qat/test/bed"
)

const (
	tools  = "/opt/tools" // containerd and what the bed wants beside it
	shims  = "/opt/shims"
	config = "/etc/kata-qat/config.toml"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nodetest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if err := files(); err != nil {
		return err
	}
	b, err := bed.Start(bed.Options{
		Tools: tools,
		Handlers: map[string]bed.Handler{
			"runc":     {},
			"kata-qat": {RuntimePath: filepath.Join(shims, "containerd-shim-kata-qat-v2"), PodAnnotations: []string{"kata-qat.io/*"}},
		},
		RequiredPlugins: []string{"kata-qat"},
		// A guest without hardware to run it is slow.
		NRIRequestTimeout: 20 * time.Second,
		Env:               []string{shim.ConfigEnv + "=/etc/kata-qat/shim.toml"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	text := fmt.Sprintf("standalone = true\n[nri]\nsocket = %q\n[containerd]\nstate = %q\n", b.NRISocket(), filepath.Join(b.Dir(), "state"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	daemon := exec.CommandContext(ctx, "kata-qat", "nri-plugin")
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	if err := daemon.Start(); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, daemon.Process.Signal(os.Interrupt), daemon.Wait())
	}()
	if err := connected(ctx); err != nil {
		return err
	}
	return usePod(ctx, b)
}

// files gives the shim its name and its configuration.
func files() error {
	return errors.Join(
		os.MkdirAll(shims, 0o755),
		os.MkdirAll(filepath.Dir(config), 0o755),
		os.Symlink("/usr/local/bin/containerd-shim-kata-qat-v2", filepath.Join(shims, "containerd-shim-kata-qat-v2")),
		os.WriteFile("/etc/kata-qat/shim.toml", []byte("timeout = \"10s\"\n[runtimes]\nkata-qat = \""+tools+"/containerd-shim-runc-v2\"\n"), 0o644),
	)
}

// connected waits until the daemon serves pods.
func connected(ctx context.Context) error {
	for {
		c, err := api.Dial(ctx, api.Socket)
		if err == nil {
			h, herr := c.Health(ctx, &nodev1.HealthRequest{Client: api.Self()})
			c.Close()
			if herr == nil && h.GetReady() {
				return nil
			}
			err = herr
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon is not ready: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// usePod runs the pod and looks at it from inside and outside.
func usePod(ctx context.Context, b *bed.Bed) error {
	pod, err := b.RunPod(ctx, bed.PodSpec{Name: "tls", HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=1"}})
	if err != nil {
		return err
	}
	ctr, err := pod.RunContainer(ctx, bed.ContainerSpec{
		User:   &bed.User{UID: 1000, GID: 1000},
		Mounts: []bed.Mount{{Host: "/bin/vfiotest", Container: "/vfiotest", ReadOnly: true}},
	})
	if err != nil {
		return err
	}
	in := func(script string) (string, int, error) {
		r, err := ctr.Exec(ctx, "/bin/sh", "-c", script)
		return strings.TrimSpace(r.Stdout + r.Stderr), r.Code, err
	}
	own, _, err := in("echo $PCIDEVICE_QAT_INTEL_COM_CY")
	if err != nil {
		return err
	}
	fmt.Println("own", own)
	other, err := neighbour(own)
	if err != nil {
		return err
	}
	for _, script := range []string{"/vfiotest " + own, "ulimit -l", "/vfiotest " + other, "ls /dev/vfio"} {
		out, code, err := in(script)
		if err != nil {
			return err
		}
		fmt.Printf("$ %s\n%s\nexit code %d\n", script, out, code)
	}
	if out, err := exec.Command("kata-qat", "devices").CombinedOutput(); err != nil {
		return fmt.Errorf("kata-qat devices: %w: %s", err, out)
	}
	return errors.Join(pod.Stop(ctx), pod.Remove(ctx))
}

// neighbour is another VF of the same PF.
func neighbour(vf string) (string, error) {
	links, err := filepath.Glob("/sys/bus/pci/devices/" + vf + "/physfn/virtfn*")
	if err != nil {
		return "", err
	}
	for _, l := range links {
		target, err := os.Readlink(l)
		if err != nil {
			return "", err
		}
		if name := filepath.Base(target); name != vf {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s has no neighbour among %v", vf, links)
}
