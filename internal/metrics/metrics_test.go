package metrics

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/kubeevents"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/refusal"
)

var update = flag.Bool("update", false, "write testdata anew")

// machine has two PFs, one of which has a VF that cannot be handed out.
func machine(tb testing.TB) qattest.Tree {
	tree := qattest.New(tb, qattest.Node{PFs: []qattest.PF{
		{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: qat.StateUp, Group: 1, VFs: 3, VFDriver: "vfio-pci", FirstGroup: 100},
		{Address: "0000:e8:00.0", Family: "c62x", NUMA: 1, Group: 2, VFs: 2, VFDriver: "vfio-pci", FirstGroup: 200, NoDebugfs: true},
	}})
	tree.RequireNodes(tb)
	return tree
}

func monitor(tb testing.TB, tree qattest.Tree) *devices.Monitor {
	tb.Helper()
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	m, err := devices.NewMonitor(devices.Options{Root: tree.Root, Conf: devconf.DefaultOptions(), Log: logrus.NewEntry(logger)})
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// one is a pod that holds the first VF, in two containers.
func one(m *devices.Monitor) func() []allocation.Assignment {
	return func() []allocation.Assignment {
		h := []allocation.Held{{Device: m.Current().Table.Devices()[0], Resource: "qat.intel.com/cy"}}
		return []allocation.Assignment{
			{Container: "a", Source: allocation.SourceSpec, VFs: h},
			{Container: "b", Source: allocation.SourceSpec, VFs: h},
		}
	}
}

func options(m *devices.Monitor) Options {
	return Options{Domain: "qat.intel.com", Devices: m, Assignments: one(m), Connected: func() bool { return true }}
}

// serve returns the address of a server of the metrics.
func serve(t *testing.T, m *Metrics, unready func() []string) string {
	t.Helper()
	s, err := m.Listen("127.0.0.1:0", unready)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + s.Address()
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// ours are the lines of our own metrics, without what depends on time and build.
func ours(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "kata_qat_") && !strings.HasPrefix(line, "kata_qat_build_info") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestWhatIsExportedStaysWhatItIs(t *testing.T) {
	tree := machine(t)
	if err := tree.Rebind("0000:6b:00.3", "4xxxvf"); err != nil {
		t.Fatal(err)
	}
	m := New(options(monitor(t, tree)))
	if err := tree.SetCounters("0000:6b:00.0", qattest.Counter{Requests: 18242, Responses: 18241}); err != nil {
		t.Fatal(err)
	}
	m.Injected(Container, 2)
	m.Took(CreateContainer, 37*time.Microsecond)
	m.Injected(Sandbox, 1)
	m.Refused(Container, refusal.Shortage)
	m.Refused(Sandbox, "a reason that nobody knows")
	code, body := get(t, serve(t, m, nil)+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	const golden = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(ours(body)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := ours(body); got != string(want) {
		t.Errorf("%s is no longer what is exported; dashboards, alerts and docs/observability.md use it. Exported is:\n%s", golden, got)
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes", "kata_qat_build_info"} {
		if !strings.Contains(body, "\n"+name) {
			t.Errorf("%s is not exported", name)
		}
	}
	problems, err := promlint.New(bytes.NewReader(want)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("Prometheus would call it otherwise: %v %v", problems, err)
	}
}

func TestAScrapeSeesTheDeviceAsItIs(t *testing.T) {
	tree := machine(t)
	mon := monitor(t, tree)
	url := serve(t, New(options(mon)), nil) + "/metrics"
	if _, body := get(t, url); !strings.Contains(body, `kata_qat_pf_health{health="healthy",pf="0000:6b:00.0"} 1`) {
		t.Errorf("the PF is not healthy:\n%s", ours(body))
	}
	// The kernel announces none of this.
	if err := tree.Kill("0000:6b:00.0"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Set("0000:6b:00.0", "qat/state", qat.StateDown); err != nil {
		t.Fatal(err)
	}
	_, body := get(t, url)
	for _, want := range []string{`kata_qat_pf_health{health="dead",pf="0000:6b:00.0"} 1`, `kata_qat_pf_up{pf="0000:6b:00.0"} 0`} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not there:\n%s", want, ours(body))
		}
	}
}

func TestReadinessSaysWhatIsMissing(t *testing.T) {
	var wrong []string
	url := serve(t, New(options(monitor(t, machine(t)))), func() []string { return wrong })
	for path, want := range map[string]string{"/healthz": "200 ok\n", "/readyz": "200 ok\n", "/nothing": "404 404 page not found\n"} {
		code, body := get(t, url+path)
		if got := fmt.Sprintf("%d %s", code, body); got != want {
			t.Errorf("%s: %q, expected %q", path, got, want)
		}
	}
	wrong = []string{"not connected to the container runtime", "no sysfs"}
	if code, body := get(t, url+"/readyz"); code != http.StatusServiceUnavailable || body != "not connected to the container runtime\nno sysfs\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if code, _ := get(t, url+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d for a daemon that lives", code)
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	taken := httptest.NewServer(nil)
	defer taken.Close()
	address := taken.Listener.Addr().String()
	_, err := New(options(monitor(t, machine(t)))).Listen(address, nil)
	if err == nil || !strings.Contains(err.Error(), "listen on "+address+" for metrics: ") || !strings.Contains(err.Error(), "metrics.listen") {
		t.Errorf("error %v, expected one that names the address and the key", err)
	}
}

func TestEventsAreCountedByTheirOutcome(t *testing.T) {
	o := options(monitor(t, machine(t)))
	o.Events = func() kubeevents.Outcomes { return kubeevents.Outcomes{Sent: 3, Dropped: 2, Failed: 1} }
	_, body := get(t, serve(t, New(o), nil)+"/metrics")
	got := regexp.MustCompile(`kata_qat_kubernetes_events_total\S+ \d`).FindAllString(body, -1)
	if want := `[kata_qat_kubernetes_events_total{outcome="dropped"} 2 kata_qat_kubernetes_events_total{outcome="failed"} 1 kata_qat_kubernetes_events_total{outcome="sent"} 3]`; fmt.Sprint(got) != want {
		t.Errorf("%v, expected %s", got, want)
	}
}

// What a pod's start pays.
func BenchmarkInjected(b *testing.B) {
	m := New(options(monitor(b, machine(b))))
	b.ReportAllocs()
	for b.Loop() {
		m.Injected(Container, 2)
		m.Took(CreateContainer, 37*time.Microsecond)
	}
}

func BenchmarkScrape1024VFs(b *testing.B) {
	tree := qattest.New(b, qattest.Many(64))
	o := options(monitor(b, tree))
	m := New(o)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}

// Every metric and every reason stands in the documentation, and nothing else.
func TestWhatIsExportedIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	rows := func(text []byte, pattern string) map[string]bool {
		found := make(map[string]bool)
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			found[string(m[1])] = true
		}
		return found
	}
	reasons := make(map[string]bool)
	for _, r := range refusal.Reasons {
		reasons[string(r)] = true
	}
	for what, c := range map[string]struct{ have, documented map[string]bool }{
		"metric": {rows(golden, `(?m)^# TYPE (\S+)`), rows(doc, "(?m)^\\| `(kata_qat_\\w+)` \\|")},
		"reason": {reasons, rows(doc, "(?m)^\\| `(\\w+)` \\| `QAT")},
	} {
		for name := range c.have {
			if !c.documented[name] {
				t.Errorf("docs/observability.md has no %s %s", what, name)
			}
		}
		for name := range c.documented {
			if !c.have[name] {
				t.Errorf("docs/observability.md has %s %s, which is not there", what, name)
			}
		}
	}
}
