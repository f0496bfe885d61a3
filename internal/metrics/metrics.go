// Package metrics tells Prometheus what the node daemon does and what its
// devices are like. What happens is counted in atomic variables, so that no pod
// waits for it; what is, is looked up when somebody asks. No label has a value
// that a pod can choose.
package metrics

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/kubeevents"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/refusal"
	"github.com/kata-qat/kata-qat/internal/version"
)

// namespace of all names but those of the Go runtime and the process.
const namespace = "kata_qat"

// Target is what gets devices, or is refused.
type Target string

// The targets.
const (
	Container Target = "container"
	Sandbox   Target = "sandbox"
)

var targets = []Target{Container, Sandbox}

// Handler is a request that a pod's start waits for.
type Handler string

// The handlers.
const (
	CreateContainer Handler = "create_container"
	Validate        Handler = "validate"
	PrepareSandbox  Handler = "prepare_sandbox"
)

// Options say where the state comes from.
type Options struct {
	Domain      string // of the extended resources
	Devices     *devices.Monitor
	Assignments func() []allocation.Assignment
	Connected   func() bool // to the container runtime
	// Events tells what became of the events about refused pods; nil when
	// there are none to be.
	Events func() kubeevents.Outcomes
}

// Metrics are the daemon's. Counting is safe for concurrent use and takes no
// lock.
type Metrics struct {
	registry   *prometheus.Registry
	injections map[Target]prometheus.Counter
	vfs        map[Target]prometheus.Counter
	refusals   map[Target]map[refusal.Reason]prometheus.Counter
	seconds    map[Handler]prometheus.Observer
}

// New makes the metrics. Every series that can be there is, from the start: a
// counter that appears with its first event has no rate.
func New(o Options) *Metrics {
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		injections: make(map[Target]prometheus.Counter),
		vfs:        make(map[Target]prometheus.Counter),
		refusals:   make(map[Target]map[refusal.Reason]prometheus.Counter),
		seconds:    make(map[Handler]prometheus.Observer),
	}
	injections := counter("injections_total", "Containers and sandboxes that were given VFs.", "target")
	vfs := counter("injected_vfs_total", "VFs that were given to containers and sandboxes; those of a pod count for both.", "target")
	refusals := counter("refusals_total", "Containers and sandboxes that were refused, by reason.", "target", "reason")
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: "handler_seconds",
		Help: "Time that the start of a pod with VFs waited for the daemon, by request.",
		// From a handler that answers from memory to the 2 s that the runtime
		// gives a plugin.
		Buckets: []float64{25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 5e-3, 25e-3, 100e-3, 500e-3, 1, 2},
	}, []string{"handler"})
	m.registry.MustRegister(injections, vfs, refusals, seconds, build(), newState(o),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, t := range targets {
		m.injections[t], m.vfs[t] = injections.WithLabelValues(string(t)), vfs.WithLabelValues(string(t))
		m.refusals[t] = make(map[refusal.Reason]prometheus.Counter)
		for _, r := range refusal.Reasons {
			m.refusals[t][r] = refusals.WithLabelValues(string(t), string(r))
		}
	}
	for _, h := range []Handler{CreateContainer, Validate, PrepareSandbox} {
		m.seconds[h] = seconds.WithLabelValues(string(h))
	}
	return m
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

func build() prometheus.Collector {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info", Help: "1 for the version that runs."}, []string{"version"})
	g.WithLabelValues(version.Version).Set(1)
	return g
}

// Injected counts what was given VFs.
func (m *Metrics) Injected(t Target, vfs int) {
	m.injections[t].Inc()
	m.vfs[t].Add(float64(vfs))
}

// Refused counts what was refused.
func (m *Metrics) Refused(t Target, r refusal.Reason) {
	c, ok := m.refusals[t][r]
	if !ok {
		c = m.refusals[t][refusal.Other]
	}
	c.Inc()
}

// Took notes how long a pod's start waited.
func (m *Metrics) Took(h Handler, d time.Duration) { m.seconds[h].Observe(d.Seconds()) }

// state is looked up at each scrape.
type state struct {
	Options
	vfs, allocated, pf, up, health, requests, responses, problems, connected, events *prometheus.Desc
}

func newState(o Options) *state {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &state{
		Options:   o,
		vfs:       desc("vfs", "VFs by PF, resource and state: free, held by a pod, or unusable.", "pf", "resource", "state"),
		allocated: desc("allocated_vfs", "VFs that pods hold, by resource and by who allocated them.", "resource", "source"),
		pf:        desc("pf_info", "1 for each PF.", "pf", "family", "driver", "numa_node", "services"),
		up:        desc("pf_up", "Whether the PF is up, for those that have a state (Gen4 and later).", "pf"),
		health:    desc("pf_health", "1 for what the heartbeat says of the PF.", "pf", "health"),
		requests:  desc("pf_firmware_requests_total", "Requests that the PF's firmware has got since the device was started.", "pf"),
		responses: desc("pf_firmware_responses_total", "Responses that the PF's firmware has given since the device was started.", "pf"),
		problems:  desc("device_problems", "Entries of sysfs that could not be read as they should be."),
		connected: desc("runtime_connected", "Whether the daemon is connected to the container runtime."),
		events:    desc("kubernetes_events_total", "Events about refused pods, by what became of them.", "outcome"),
	}
}

// Describe names what Collect gives.
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.vfs, s.allocated, s.pf, s.up, s.health, s.requests, s.responses, s.problems, s.connected, s.events} {
		ch <- d
	}
}

// The states of a VF.
const (
	free     = "free"
	held     = "held"
	unusable = "unusable"
)

// Collect looks at the current view of the devices, at the record of who holds
// them, and asks each PF for what the kernel does not announce.
func (s *state) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	total := func(d *prometheus.Desc, v uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), label)
	}
	view := s.Devices.Current()
	holders := s.allocations(gauge)
	type key struct{ pf, resource, state string }
	vfs := make(map[key]int)
	for _, d := range view.Table.Devices() {
		k := key{string(d.VF.PF), s.Domain + "/" + d.VF.Services.ResourceName(), ""}
		for _, k.state = range []string{free, held, unusable} {
			vfs[k] += 0
		}
		switch {
		case holders[d.VF.Address]:
			k.state = held
		case d.Err != nil:
			k.state = unusable
		default:
			k.state = free
		}
		vfs[k]++
	}
	for k, n := range vfs {
		gauge(s.vfs, float64(n), k.pf, k.resource, k.state)
	}
	for i := range view.Inventory.PFs {
		// The daemon runs on one processor: a pod that starts goes first.
		runtime.Gosched()
		pf := &view.Inventory.PFs[i]
		address := string(pf.Address)
		gauge(s.pf, 1, address, pf.Family.Name, pf.Driver, strconv.Itoa(pf.NUMANode), string(pf.Services))
		v := qat.ReadVitals(s.Devices.Root(), pf)
		if v.State != "" {
			gauge(s.up, truth(v.State == qat.StateUp), address)
		}
		for _, h := range []qat.Health{qat.HealthOK, qat.HealthDead, qat.HealthUnknown} {
			gauge(s.health, truth(v.Health == h), address, string(h))
		}
		if v.Err == nil {
			total(s.requests, v.Counters.Requests(), address)
			total(s.responses, v.Counters.Responses(), address)
		}
	}
	gauge(s.problems, float64(len(view.Inventory.Problems)))
	gauge(s.connected, truth(s.Connected()))
	var events kubeevents.Outcomes
	if s.Events != nil {
		events = s.Events()
	}
	total(s.events, events.Sent, "sent")
	total(s.events, events.Dropped, "dropped")
	total(s.events, events.Failed, "failed")
}

// allocations tells how many VFs are held, and returns which. Containers of a
// pod may share one.
func (s *state) allocations(gauge func(*prometheus.Desc, float64, ...string)) map[qat.Address]bool {
	type key struct{ resource, source string }
	count := make(map[key]int)
	holders := make(map[qat.Address]bool)
	for _, a := range s.Assignments() {
		for _, h := range a.VFs {
			if address := h.Device.VF.Address; !holders[address] {
				holders[address] = true
				count[key{h.Resource, string(a.Source)}]++
			}
		}
	}
	for k, n := range count {
		gauge(s.allocated, float64(n), k.resource, k.source)
	}
	return holders
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
