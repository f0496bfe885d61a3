//go:build bed

package e2e

import (
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
)

// As during a rolling update of the DaemonSet.
func TestNewDaemonStandsByAndTakesTheOldOnesPlace(t *testing.T) {
	n := startNode(t)
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
	start := time.Now()
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	ended := time.Since(start)
	if err := second.WaitLog(t.Context(), "synchronized with the runtime", 1); err != nil {
		t.Fatal(err)
	}
	t.Logf("the first ended in %v, the second served %v after that was asked for", ended, time.Since(start))
	p := runPod(t, n, asking("cy=1"))
	c, err := p.RunContainer(t.Context(), bed.ContainerSpec{})
	if err != nil {
		t.Fatal(err)
	}
	if spec, err := c.OCISpec(); err != nil || spec.Linux == nil || len(spec.Linux.Devices) < 2 {
		t.Errorf("a container got no devices from the second daemon: %v, %+v", err, spec)
	}
}
