//go:build bed

package e2e

import (
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// As during a rolling update of the DaemonSet.
func TestNewDaemonStandsByAndTakesTheOldOnesPlace(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	n := startNode(t, func(o *simnode.Options) { o.Config = map[string]any{"metrics": map[string]any{"listen": address}} })
	ready := func() {
		t.Helper()
		answer, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("/readyz: %s", answer.Status)
		}
	}
	first := startDaemon(t, n)
	second, err := n.LaunchDaemon("--standby")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Stop(); err != nil {
			t.Errorf("stop the second daemon: %v", err)
		}
	})
	if err := second.WaitLog(t.Context(), "standing by", 1); err != nil {
		t.Fatal(err)
	}
	runPod(t, n, asking("cy=1")) // the first serves as before
	ready()
	start := time.Now()
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	ended := time.Since(start)
	if err := second.WaitLog(t.Context(), "synchronized with the runtime", 1); err != nil {
		t.Fatal(err)
	}
	t.Logf("the first ended in %v, the second served %v after that was asked for", ended, time.Since(start))
	ready()
	p := runPod(t, n, asking("cy=1"))
	c, err := p.RunContainer(t.Context(), bed.ContainerSpec{})
	if err != nil {
		t.Fatal(err)
	}
	if spec, err := c.OCISpec(); err != nil || spec.Linux == nil || len(spec.Linux.Devices) < 2 {
		t.Errorf("a container got no devices from the second daemon: %v, %+v", err, spec)
	}
}
