//go:build bed

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// freeAddress is one of loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// fetch returns the code and the text of a page; 0 when nobody answers.
func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// metric is the value of one series.
func metric(t *testing.T, address, series string) float64 {
	t.Helper()
	_, page := fetch(t, "http://"+address+"/metrics")
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no series %s in\n%s", series, page)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMetricsTellWhatHappensToPods(t *testing.T) {
	n := startNode(t)
	address := freeAddress(t)
	if err := n.Configure(map[string]any{"metrics": map[string]any{"listen": address}}); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, n)
	expect := func(what string, want map[string]float64) {
		t.Helper()
		for series, v := range want {
			if got := metric(t, address, series); got != v {
				t.Errorf("%s: %s is %v, expected %v", what, series, got, v)
			}
		}
	}
	const (
		free     = `kata_qat_vfs{pf="0000:6b:00.0",resource="qat.intel.com/cy",state="free"}`
		held     = `kata_qat_vfs{pf="0000:6b:00.0",resource="qat.intel.com/cy",state="held"}`
		injected = `kata_qat_injected_vfs_total{target="container"}`
		created  = `kata_qat_handler_seconds_count{handler="create_container"}`
		validate = `kata_qat_handler_seconds_count{handler="validate"}`
		shortage = `kata_qat_refusals_total{reason="shortage",target="container"}`
		request  = `kata_qat_refusals_total{reason="request",target="container"}`
	)
	expect("before any pod", map[string]float64{free: 16, held: 0, injected: 0, created: 0, shortage: 0, "kata_qat_runtime_connected": 1})

	pod := runPod(t, n, asking("cy=2"))
	runContainer(t, pod, bed.ContainerSpec{})
	expect("with a pod of two VFs", map[string]float64{
		free: 14, held: 2, injected: 2, created: 1, validate: 1, `kata_qat_allocated_vfs{resource="qat.intel.com/cy",source="pool"}`: 2,
	})
	refused(t, runPod(t, n, asking("cy=15")), bed.ContainerSpec{})
	refused(t, runPod(t, n, asking("cy=99")), bed.ContainerSpec{})
	runContainer(t, runPod(t, n, bed.PodSpec{HostNetwork: true}), bed.ContainerSpec{})
	expect("after two refusals and a pod without VFs", map[string]float64{held: 2, injected: 2, created: 1, shortage: 1, request: 1})
	remove(t, pod)
	expect("without the pod", map[string]float64{free: 16, held: 0, injected: 2})
}

func TestReadinessFollowsTheRuntime(t *testing.T) {
	n := startNode(t, func(o *simnode.Options) { o.Bed.RequiredPlugins = nil })
	address := freeAddress(t)
	if err := n.Configure(map[string]any{"metrics": map[string]any{"listen": address}, "nri": map[string]any{"socket": n.NRISocket() + ".not-yet"}}); err != nil {
		t.Fatal(err)
	}
	d, err := n.LaunchDaemon()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.WaitLog(t.Context(), "not connected to the runtime", 1); err != nil {
		t.Fatal(err)
	}
	if code, body := fetch(t, "http://"+address+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz without a runtime: %d %s", code, body)
	}
	if code, body := fetch(t, "http://"+address+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "not connected to the container runtime") {
		t.Errorf("/readyz without a runtime: %d %s", code, body)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Configure(map[string]any{"metrics": map[string]any{"listen": address}}); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		code, body := fetch(t, "http://"+address+"/readyz")
		if code == http.StatusOK {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("/readyz with a runtime: %d %s", code, body)
		}
	}
}

// verify runs kata-qat verify of a pod while its PF gets requests, and returns
// the exit code and what it said.
func verify(t *testing.T, n *simnode.Node, pod string, busy qat.Address) (code int, said string) {
	t.Helper()
	cmd := n.CLI("verify", pod, "--for", "500ms")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		for i := uint64(1); ctx.Err() == nil; i++ {
			if err := n.Tree.SetCounters(busy, qattest.Counter{Requests: i, Responses: i}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	out, err := cmd.CombinedOutput()
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func TestVerifyTellsWhetherAPodsHardwareWorks(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	const crypto, compression = "0000:6b:00.0", "0000:e8:00.0"
	pod := runPod(t, n, asking("cy=2"))
	runContainer(t, pod, bed.ContainerSpec{})
	name := "default/" + pod.Spec.Name
	check := func(what string, busy qat.Address, code int, parts ...string) {
		t.Helper()
		got, said := verify(t, n, name, busy)
		if got != code {
			t.Errorf("%s: exit %d, expected %d", what, got, code)
		}
		mustContain(t, what, said, parts...)
	}
	check("its PF is busy", crypto, 0, "hardware in use: yes (PF "+crypto+": +")
	check("another PF is busy", compression, 1, "hardware in use: no (PF "+crypto+" got no request in ")
	other := runPod(t, n, asking("cy=1"))
	runContainer(t, other, bed.ContainerSpec{})
	check("its PF is another pod's, too", crypto, 3, "hardware in use: perhaps (PF "+crypto, "shared with default/"+other.Spec.Name)
	remove(t, other)
	check("it has the PF alone again", crypto, 0, "hardware in use: yes")
}
