package node

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/client-go/rest"

	"github.com/kata-qat/kata-qat/internal/allocation"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/kubeevents"
	"github.com/kata-qat/kata-qat/internal/metrics"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// newService is a daemon's service without a runtime, whose events go to a server
// of the test's.
func newService(t *testing.T, events string) *service {
	t.Helper()
	tree := qattest.New(t, qattest.Many(1))
	tree.RequireNodes(t)
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	log := logrus.NewEntry(logger)
	monitor, err := devices.NewMonitor(devices.Options{Root: tree.Root, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	alloc, err := allocation.NewResolver(allocation.Options{Standalone: true})
	if err != nil {
		t.Fatal(err)
	}
	monitor.OnChange(func(v *devices.View) { alloc.SetTable(v.Table) })
	s := &service{profile: config.Default().ProfileOf, devices: monitor, alloc: alloc, log: log}
	reporter, err := kubeevents.New(&rest.Config{Host: events}, "node-1", log)
	if err != nil {
		t.Fatal(err)
	}
	s.observers = &observers{events: reporter, log: log}
	s.observers.metrics = metrics.New(metrics.Options{
		Domain: "qat.intel.com", Devices: monitor, Assignments: alloc.Assignments, Connected: s.connected.Load, Events: reporter.Outcomes,
	})
	if s.observers.server, err = s.observers.metrics.Listen("127.0.0.1:0", s.unready); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	parts := 0
	s.observers.run(t.Context(), func(f func()) {
		parts++
		go func() { f(); done <- struct{}{} }()
	})
	t.Cleanup(func() {
		for range parts {
			<-done
		}
	})
	return s
}

func TestASandboxThatIsRefusedIsCountedAndItsOwnerTold(t *testing.T) {
	posted := make(chan eventsv1.Event, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var e eventsv1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		posted <- e
	}))
	t.Cleanup(server.Close)
	s := newService(t, server.URL)
	ask := func(name, request string) error {
		_, err := s.PrepareSandbox(t.Context(), &nodev1.PrepareSandboxRequest{
			SandboxId: "sandbox-" + name, Namespace: "default", Name: name, Uid: "0b0c", RuntimeHandler: "kata-qat",
			Annotations: map[string]string{allocation.RequestAnnotation + "tls": request},
		})
		return err
	}
	if err := ask("modest", "cy=2"); err != nil {
		t.Fatal(err)
	}
	err := ask("greedy", "cy=15")
	if err == nil {
		t.Fatal("15 of 14 VFs were given")
	}
	e := <-posted
	if e.Regarding.Name != "greedy" || e.Regarding.UID != "0b0c" || e.Reason != "QATShortage" || e.Action != "PrepareSandbox" || !strings.Contains(err.Error(), e.Note) {
		t.Errorf("event %+v of the error %v", e, err)
	}
	r, err := http.Get("http://" + s.observers.server.Address() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`kata_qat_refusals_total{reason="shortage",target="sandbox"} 1`, `kata_qat_injected_vfs_total{target="sandbox"} 2`,
		`kata_qat_handler_seconds_count{handler="prepare_sandbox"} 1`,
	} {
		if !strings.Contains(string(page), "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

func TestWhatKeepsANodeFromServingIsSaid(t *testing.T) {
	s := newService(t, "http://127.0.0.1:1")
	if got := s.unready(); len(got) != 1 || got[0] != "not connected to the container runtime" {
		t.Errorf("%q", got)
	}
	s.connected.Store(true)
	if got := s.unready(); len(got) != 0 {
		t.Errorf("a node that serves: %q", got)
	}
	if err := (qattest.Tree{Root: s.devices.Root()}).Break("0000:00:00.0", "../../../bus/pci/devices"); err != nil {
		t.Fatal(err)
	}
	if err := s.devices.Refresh(); err == nil {
		t.Fatal("a machine without a PCI bus was read")
	}
	h, err := s.Health(t.Context(), nil)
	if err != nil || h.GetReady() || !strings.Contains(h.GetReason(), "discover QAT devices") {
		t.Errorf("%+v, %v", h, err)
	}
}

// Without metrics and events the plugin has nobody to tell but of refusals.
func TestObserversThatAreOffCostNothing(t *testing.T) {
	p := (&observers{}).plugin()
	if p.Injected != nil || p.Validated != nil {
		t.Error("somebody is told")
	}
	p.Refused(allocation.Pod{}, "", io.EOF)
	(&observers{}).close()
}
