// Package labnode makes a guest of the lab a node: containerd, our shim before a
// real one for the handler kata-qat, and the node daemon with a pool of VFs for
// which pods ask by annotation. The host is provisioned before, by our binary.
package labnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/shim"
	"github.com/kata-qat/kata-qat/test/bed"
)

const (
	tools      = "/opt/tools" // containerd and what the bed wants beside it
	ours       = "/opt/shims/containerd-shim-kata-qat-v2"
	config     = "/etc/kata-qat/config.toml"
	shimConfig = "/etc/kata-qat/shim.toml"
)

// Node is a node that runs.
type Node struct {
	*bed.Bed
	daemon *exec.Cmd
}

// Start starts a node whose handler kata-qat is a shim of the given runtime type
// behind ours. env is added to the environment that shims have. It returns when
// the daemon serves pods.
func Start(ctx context.Context, runtimeType string, env ...string) (_ *Node, err error) {
	shims := map[string]string{bed.RuncType: "containerd-shim-runc-v2", bed.KataType: "containerd-shim-kata-v2"}
	if err := errors.Join(
		os.MkdirAll(filepath.Dir(ours), 0o755),
		os.MkdirAll(filepath.Dir(config), 0o755),
		os.Symlink("/usr/local/bin/containerd-shim-kata-qat-v2", ours),
		os.WriteFile("/etc/resolv.conf", nil, 0o644), // CRI copies the host's
		os.WriteFile(shimConfig, fmt.Appendf(nil, "timeout = \"10s\"\n[runtimes]\nkata-qat = %q\n", filepath.Join(tools, shims[runtimeType])), 0o644),
	); err != nil {
		return nil, err
	}
	n := &Node{}
	n.Bed, err = bed.Start(bed.Options{
		Tools: tools,
		Handlers: map[string]bed.Handler{
			"runc":     {},
			"kata-qat": {RuntimeType: runtimeType, RuntimePath: ours, PodAnnotations: []string{"kata-qat.io/*"}},
		},
		RequiredPlugins: []string{"kata-qat"},
		// A guest without hardware to run it is slow, and slower on a busy machine.
		NRIRequestTimeout: 20 * time.Second,
		UpTimeout:         3 * time.Minute,
		Env:               append([]string{shim.ConfigEnv + "=" + shimConfig}, env...),
	})
	if err != nil {
		return nil, err
	}
	if err := n.startDaemon(ctx); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

func (n *Node) startDaemon(ctx context.Context) error {
	text := fmt.Sprintf("standalone = true\n[nri]\nsocket = %q\n[containerd]\nstate = %q\n", n.NRISocket(), filepath.Join(n.Dir(), "state"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	daemon := exec.Command("kata-qat", "nri-plugin")
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	if err := daemon.Start(); err != nil {
		return err
	}
	n.daemon = daemon
	return ready(ctx)
}

// ready waits until the daemon serves pods.
func ready(ctx context.Context) error {
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

// Stop ends the daemon and takes the bed down; what pods left behind is an error.
func (n *Node) Stop() (err error) {
	if n.daemon != nil {
		err = errors.Join(n.daemon.Process.Signal(os.Interrupt), n.daemon.Wait())
	}
	return errors.Join(err, n.Bed.Stop())
}
