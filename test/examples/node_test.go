//go:build bed

package examples

import (
	"bytes"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// startNode starts a node whose handler kata-qat is runc's shim behind ours, with
// Debian's programs for the images that the set-ups name.
func startNode(t *testing.T) *simnode.Node {
	t.Helper()
	n, err := simnode.Start(simnode.Options{
		Bed: bed.Options{
			Handlers:        map[string]bed.Handler{"kata-qat": {RuntimeType: bed.RuncType}, "runc": {RuntimeType: bed.RuncType}},
			RequiredPlugins: []string{"kata-qat"},
		},
		Shims: map[string]string{"kata-qat": "containerd-shim-runc-v2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Errorf("the node left something behind: %v", err)
		}
	})
	var layout bytes.Buffer
	if _, err := ociimage.Write(&layout, standIns(t, "registry.example/haproxy-qat:3.0.23", "registry.example/dpdk-qat:22.11", "docker.io/library/haproxy:3.0.23", "docker.io/library/nginx:1.28")...); err != nil {
		t.Fatal(err)
	}
	if err := n.ImportImages(t.Context(), &layout); err != nil {
		t.Fatal(err)
	}
	d, err := n.StartDaemon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
		if err := d.Stop(); err != nil {
			t.Errorf("stop the daemon: %v", err)
		}
	})
	return n
}

// exitCode waits until the container has ended.
func exitCode(t testing.TB, c *bed.Container) int {
	t.Helper()
	var code int
	eventually(t, "container "+c.ID+" ends", func() bool {
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		code = int(s.ExitCode)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return code
}
