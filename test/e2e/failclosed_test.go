//go:build bed

package e2e

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// The four ways in which a plugin fails. containerd 2.4 with its NRI 0.12.3
// goes on without a plugin that fails in the middle of a request: that the
// container is refused all the same is our validator's doing.

func TestDaemonDeadBeforeTheRequest(t *testing.T) {
	n := startNode(t)
	d := startDaemon(t, n)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	pod := runPod(t, n, asking("cy=2"))
	mustContain(t, "error", refused(t, pod, bed.ContainerSpec{}), "kata-qat")
	recovers(t, n, pod)
}

func TestDaemonDiesInTheMiddleOfTheRequest(t *testing.T) {
	n := startNode(t)
	d := startDaemon(t, n)
	pod := runPod(t, n, asking("cy=2"))
	// A stopped process has the request and does not answer it.
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	killed := make(chan error, 1)
	timer := time.AfterFunc(500*time.Millisecond, func() { killed <- d.Kill() })
	defer timer.Stop()
	start := time.Now()
	refused(t, pod, bed.ContainerSpec{})
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("refused after %v: the request ended by its timeout, not by the daemon's death", took)
	}
	recovers(t, n, pod)
}

func TestDaemonSlowerThanTheRuntimesPatience(t *testing.T) {
	n := startNode(t)
	d := startDaemon(t, n)
	pod := runPod(t, n, asking("cy=2"))
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	refused(t, pod, bed.ContainerSpec{Name: "main"})
	// The runtime has thrown the plugin out; nobody gets in meanwhile.
	refused(t, pod, bed.ContainerSpec{Name: "main"})
	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// It notices that it was thrown out and comes back by itself.
	if err := d.WaitLog(t.Context(), simnode.Synchronized, 2); err != nil {
		t.Fatal(err)
	}
	works(t, n, pod)
}

func TestDaemonAnswersWithAnError(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	pod := runPod(t, n, asking("cy=99"))
	err := refused(t, pod, bed.ContainerSpec{})
	mustContain(t, "error", err, "kata-qat: pod default/"+pod.Spec.Name+": container main: annotation kata-qat.io/request.main: 99 VFs")
	if by := held(t, n); len(by) != 0 {
		t.Errorf("a refused pod holds %v", by)
	}
}

// recovers starts a daemon and expects the same pod to be served.
func recovers(t *testing.T, n *simnode.Node, pod *bed.Pod) {
	t.Helper()
	startDaemon(t, n)
	works(t, n, pod)
}

func works(t *testing.T, n *simnode.Node, pod *bed.Pod) {
	t.Helper()
	ctr := runContainer(t, pod, bed.ContainerSpec{})
	if got := nodes(ociSpec(t, ctr)); len(got) != 3 {
		t.Errorf("after the recovery the container has nodes %v, expected two groups and the control node", got)
	}
	remove(t, pod)
	if by := held(t, n); len(by) != 0 {
		t.Errorf("still held after the pod was removed: %v", by)
	}
}

func TestThePoolSurvivesKillAndRestart(t *testing.T) {
	n := startNode(t)
	d := startDaemon(t, n)
	first := runPod(t, n, asking("cy=15"))
	runContainer(t, first, bed.ContainerSpec{})
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, n)
	second := runPod(t, n, asking("cy=2"))
	mustContain(t, "more than is free", refused(t, second, bed.ContainerSpec{}), "cy", "default/"+second.Spec.Name)
	third := runPod(t, n, asking("cy=1"))
	runContainer(t, third, bed.ContainerSpec{})
	seen := map[string]string{}
	for pod, vfs := range held(t, n) {
		for _, vf := range vfs {
			if other, twice := seen[vf]; twice {
				t.Errorf("%s is held by %s and by %s", vf, other, pod)
			}
			seen[vf] = pod
		}
	}
	if len(seen) != 16 {
		t.Errorf("%d VFs are held, expected 16", len(seen))
	}
	remove(t, first)
	runContainer(t, second, bed.ContainerSpec{})
	remove(t, second)
	remove(t, third)
}

func TestTheDaemonFollowsARestartOfContainerd(t *testing.T) {
	n := startNode(t)
	d := startDaemon(t, n)
	pod := runPod(t, n, asking("cy=2"))
	runContainer(t, pod, bed.ContainerSpec{})
	before := held(t, n)
	if err := n.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := n.RestartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.WaitLog(t.Context(), simnode.Synchronized, 2); err != nil {
		t.Fatal(err)
	}
	other := runPod(t, n, asking("cy=2"))
	runContainer(t, other, bed.ContainerSpec{})
	after := held(t, n)
	if got, want := strings.Join(after["default/"+pod.Spec.Name], ","), strings.Join(before["default/"+pod.Spec.Name], ","); got != want {
		t.Errorf("the pod that lived on holds %s, before it was %s", got, want)
	}
	for _, vf := range after["default/"+other.Spec.Name] {
		if strings.Contains(strings.Join(before["default/"+pod.Spec.Name], ","), vf) {
			t.Errorf("%s was given twice", vf)
		}
	}
	remove(t, pod)
	remove(t, other)
}

func TestTheDaemonStopsCleanly(t *testing.T) {
	n := startNode(t)
	d := startDaemon(t, n)
	if err := d.Stop(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	// Not even while there is nothing to talk to.
	if err := n.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	d, err := n.LaunchDaemon()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.WaitLog(ctx, "not connected to the runtime", 1); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err != nil {
		t.Errorf("SIGTERM without containerd: %v", err)
	}
	if err := n.RestartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
}
