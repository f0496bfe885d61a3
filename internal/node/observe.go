package node

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/kubeevents"
	"github.com/kata-qat/kata-qat/internal/metrics"
	"github.com/kata-qat/kata-qat/internal/refusal"
	nriplugin "github.com/kata-qat/kata-qat/nri-plugin"
)

// observers are told what the daemon does: metrics and events, each nil when it
// is off.
type observers struct {
	metrics *metrics.Metrics
	server  *metrics.Server
	events  *kubeevents.Reporter
	log     *logrus.Entry
}

// newObservers makes those that the configuration wants. The metrics' address
// is taken from now on.
func newObservers(o Options, s *service, monitor *devices.Monitor, alloc *allocation.Resolver, log *logrus.Entry) (*observers, error) {
	obs := &observers{log: log}
	var err error
	if o.Config.Events.Kubernetes {
		if obs.events, err = kubeevents.InCluster(log); err != nil {
			return nil, err
		}
	}
	if o.Config.Metrics.Listen == "" {
		return obs, nil
	}
	m := metrics.Options{Domain: o.Config.Kubelet.Domain, Devices: monitor, Assignments: alloc.Assignments, Connected: s.connected.Load}
	if obs.events != nil {
		m.Events = obs.events.Outcomes
	}
	obs.metrics = metrics.New(m)
	// The daemon whose place this one takes gives up its socket before its port.
	for deadline := time.Now().Add(patience); ; time.Sleep(handover) {
		obs.server, err = obs.metrics.Listen(o.Config.Metrics.Listen, s.unready)
		if !o.Standby || !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return obs, err
		}
	}
}

// run serves what was made until the context ends.
func (o *observers) run(ctx context.Context, start func(func())) {
	if o.events != nil {
		start(func() { o.events.Run(ctx) })
	}
	if o.server != nil {
		o.log.WithField("address", o.server.Address()).Info("metrics are served")
		start(func() {
			if err := o.server.Serve(ctx); err != nil {
				o.log.WithError(err).Error("the metrics' server has ended")
			}
		})
	}
}

// plugin is what the NRI plugin tells.
func (o *observers) plugin() nriplugin.Observer {
	p := nriplugin.Observer{
		Refused: func(pod allocation.Pod, container string, err error) {
			o.refused(metrics.Container, pod, container, err)
		},
	}
	if o.metrics != nil {
		p.Injected = func(vfs int, took time.Duration) { o.injected(metrics.Container, metrics.CreateContainer, vfs, took) }
		p.Validated = func(took time.Duration) { o.metrics.Took(metrics.Validate, took) }
	}
	return p
}

func (o *observers) injected(t metrics.Target, h metrics.Handler, vfs int, took time.Duration) {
	if o.metrics != nil {
		o.metrics.Injected(t, vfs)
		o.metrics.Took(h, took)
	}
}

func (o *observers) refused(t metrics.Target, pod allocation.Pod, container string, err error) {
	reason := refusal.Of(err)
	if o.metrics != nil {
		o.metrics.Refused(t, reason)
	}
	if o.events != nil {
		o.events.Refused(kubeevents.Refusal{
			Namespace: pod.Namespace, Pod: pod.Name, UID: pod.UID, Container: container, Reason: reason, Message: err.Error(),
		})
	}
}

// close gives the metrics' address back.
func (o *observers) close() {
	if o.server != nil {
		o.server.Close()
	}
}
