// Package kubeevents tells the owner of a pod, with an Event of the pod, that
// it was refused its devices and why. It is best effort: nobody waits for it,
// what is too much is dropped and counted, and a repetition makes the Event's
// series longer instead of an Event more.
package kubeevents

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/time/rate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kata-qat/kata-qat/internal/refusal"
)

// Controller is the name under which events are reported.
const Controller = "kata-qat.io/node"

// reasons are the events' reasons, for kubectl get events --field-selector.
var reasons = map[refusal.Reason]string{
	refusal.DeviceUnready: "QATDeviceUnready",
	refusal.DeviceHeld:    "QATDeviceHeld",
	refusal.DeviceGone:    "QATDeviceGone",
	refusal.Shortage:      "QATShortage",
	refusal.Request:       "QATRequestInvalid",
	refusal.Kubelet:       "QATKubeletSilent",
	refusal.Configuration: "QATConfigurationInvalid",
	refusal.Undone:        "QATInjectionUndone",
	refusal.Timeout:       "QATTimeout",
	refusal.Other:         "QATRefused",
}

// Refusal is what an event is about.
type Refusal struct {
	Namespace, Pod, UID string
	Container           string // empty for the pod's sandbox
	Reason              refusal.Reason
	Message             string
}

// Outcomes are what became of the events that there were to be. Repetitions that
// only count on in their series are sent with the next that is written.
type Outcomes struct {
	Sent, Dropped, Failed uint64
}

// Limits. kubelet tries a container again after 10 s at the earliest, and a
// node has some hundred pods.
const (
	queued     = 128
	series     = 256              // that are remembered
	burst      = 20               // writes at once
	perSecond  = 1                // writes, after that
	rewrite    = 30 * time.Second // at the earliest, of one series
	timeout    = 10 * time.Second // of a write
	noteLength = 1024             // of events.k8s.io/v1
)

// Reporter writes events.
type Reporter struct {
	api      *api
	instance string
	log      *logrus.Entry
	now      func() time.Time
	limit    *rate.Limiter
	queue    chan seen

	sent, dropped, failed atomic.Uint64
}

// seen is a refusal and its time.
type seen struct {
	Refusal
	at time.Time
}

// InCluster returns a reporter that writes with the service account of this
// process's own pod. The node's name is that of the environment's NODE_NAME,
// or the host's.
func InCluster(log *logrus.Entry) (*Reporter, error) {
	c, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("events.kubernetes = true: find the API server: %w: expected to run in a pod with a service account; set it to false elsewhere", err)
	}
	node := os.Getenv("NODE_NAME")
	if node == "" {
		if node, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	return New(c, node, log)
}

// New returns a reporter for an API server. instance is the node's name.
func New(c *rest.Config, instance string, log *logrus.Entry) (*Reporter, error) {
	a, err := newAPI(c)
	if err != nil {
		return nil, fmt.Errorf("make a client for events: %w", err)
	}
	return &Reporter{
		api: a, instance: cut(instance, 128), log: log, now: time.Now,
		limit: rate.NewLimiter(perSecond, burst), queue: make(chan seen, queued),
	}, nil
}

// Refused has an event written. It never waits.
func (r *Reporter) Refused(f Refusal) {
	select {
	case r.queue <- seen{f, r.now()}:
	default:
		r.dropped.Add(1)
	}
}

// Outcomes tells what became of the events so far.
func (r *Reporter) Outcomes() Outcomes {
	return Outcomes{Sent: r.sent.Load(), Dropped: r.dropped.Load(), Failed: r.failed.Load()}
}

// Run writes events until the context ends.
func (r *Reporter) Run(ctx context.Context) {
	known := newHistory(series)
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-r.queue:
			s := known.add(f)
			if f.at.Sub(s.written) < rewrite {
				continue
			}
			if r.limit.Wait(ctx) != nil {
				return
			}
			err := r.write(ctx, s)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				s.written = f.at
				r.sent.Add(1)
			} else {
				r.failed.Add(1)
			}
			// Once is enough for as long as it goes on.
			if err != nil && !failing {
				r.log.WithError(err).Warn("an event of a refused pod could not be written")
			}
			failing = err != nil
		}
	}
}

// write makes the series' event, or has it count on. One that the server has
// forgotten meanwhile (after an hour, by default) is made again.
func (r *Reporter) write(ctx context.Context, s *observed) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if s.name != "" {
		gone, err := r.api.patch(ctx, s.Namespace, s.name, seriesOf{Count: s.count, LastObservedTime: metav1.NewMicroTime(s.last)})
		if !gone {
			return err
		}
		s.count, s.first = 1, s.last
	}
	name := fmt.Sprintf("%s.%x", cut(s.Pod, 200), s.last.UnixNano())
	if err := r.api.create(ctx, r.event(s, name)); err != nil {
		return err
	}
	s.name = name
	return nil
}

func (r *Reporter) event(s *observed, name string) *event {
	e := &event{
		TypeMeta:            metav1.TypeMeta{APIVersion: "events.k8s.io/v1", Kind: "Event"},
		Metadata:            metadata{Name: name, Namespace: s.Namespace},
		EventTime:           metav1.NewMicroTime(s.first),
		ReportingController: Controller,
		ReportingInstance:   r.instance,
		Action:              "PrepareSandbox",
		Reason:              reasons[s.Reason],
		Regarding:           reference{APIVersion: "v1", Kind: "Pod", Namespace: s.Namespace, Name: s.Pod, UID: s.UID},
		Note:                cut(s.Message, noteLength),
		Type:                "Warning",
	}
	if s.Container != "" {
		e.Action = "CreateContainer"
		e.Regarding.FieldPath = fmt.Sprintf("spec.containers{%s}", s.Container)
	}
	if s.count > 1 {
		e.Series = &seriesOf{Count: s.count, LastObservedTime: metav1.NewMicroTime(s.last)}
	}
	return e
}

// cut makes s at most n bytes long, between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const ellipsis = "…"
	end := 0
	for i := range s {
		if i > n-len(ellipsis) {
			break
		}
		end = i
	}
	return s[:end] + ellipsis
}
