// Package deviceplugin is kubelet's device plugin for the QAT virtual functions
// of a node (API v1beta1): it offers them as extended resources, tells their
// health and NUMA node, and says what a container needs to use those that
// kubelet gives it. Who holds what is kubelet's to know; what a container's spec
// becomes in the end is package nriplugin's.
package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/placement"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// Options say for whom the plugin works and how.
type Options struct {
	// Dir is kubelet's directory for device plugins, as this process sees it.
	// It need not be there yet.
	Dir    string
	Domain string // of the extended resources
	Policy placement.Policy
	// CDI tells whether there is a CDI spec of a kind, whose devices can then
	// be named to the runtime; nil when there is none.
	CDI func(kind string) bool
	// Root is the host's, where processes are looked for that have a VF open;
	// "" not to look.
	Root string
	// Claimed lists the VFs that pods hold, whatever has them open.
	Claimed func(context.Context) (map[qat.Address]bool, error)
	// Held tells whether a pod holds a VF, as far as the runtime has told; nil
	// when nobody knows.
	Held func(qat.Address) bool
	Log  *logrus.Entry
}

// Plugin serves kubelet. Its methods are safe for concurrent use.
type Plugin struct {
	o    Options
	log  *logrus.Entry
	wake chan struct{} // something is to be looked at

	current atomic.Pointer[state] // kubelet's questions wait for no lock

	mu    sync.Mutex
	table *vfio.Table
	users map[qat.Address]vfio.User

	// These belong to Run.
	servers map[string]*server
	said    map[string]string // what was logged of a resource last
}

// state is what is offered.
type state struct {
	*snapshot
	replaced chan struct{} // closed when it is no longer that
}

// New returns a plugin that offers nothing yet.
func New(o Options) *Plugin {
	p := &Plugin{
		o: o, log: o.Log.WithField("part", "device-plugin"), wake: make(chan struct{}, 1),
		servers: make(map[string]*server), said: make(map[string]string),
	}
	p.current.Store(&state{offer(nil, o.Domain, nil, nil), make(chan struct{})})
	return p
}

// SetDevices makes the plugin offer the devices as they are now. kubelet is told
// at once. A resource that there is no longer stays, with no devices.
func (p *Plugin) SetDevices(t *vfio.Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.table = t
	p.renew()
}

// renew needs the lock.
func (p *Plugin) renew() {
	next := &state{offer(p.table, p.o.Domain, p.users, p.o.CDI), make(chan struct{})}
	former := p.current.Swap(next)
	close(former.replaced)
	p.poke()
	p.report(former.snapshot, next.snapshot)
}

// report logs which resources have more or fewer usable devices than before.
func (p *Plugin) report(former, now *snapshot) {
	for _, name := range now.names() {
		r, old := now.resources[name], former.resources[name]
		if old != nil && old.usable() == r.usable() && len(old.devices) == len(r.devices) {
			continue
		}
		log := p.log.WithFields(logrus.Fields{"resource": r.kind, "ready": r.usable(), "total": len(r.devices)})
		if err := r.problem(); err != nil {
			log = log.WithError(err)
		}
		log.Info("devices offered")
	}
	for _, name := range former.names() {
		if now.resources[name] == nil {
			p.log.WithFields(logrus.Fields{"resource": p.full(name), "ready": 0, "total": 0}).Info("devices offered")
		}
	}
}

// now is what is offered.
func (p *Plugin) now() *state { return p.current.Load() }

// poke has Run look at everything again.
func (p *Plugin) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it is going to anyway
	}
}

func (p *Plugin) full(name string) string { return p.o.Domain + "/" + name }

// A registration that failed is tried again after firstRetry, and after twice as
// long each time up to lastRetry. A kubelet that starts is noticed at once.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// registerTimeout is how long kubelet may take to connect to a plugin that
// registers: its own limit (Kubernetes, pkg/kubelet/cm/devicemanager, dial).
const registerTimeout = 10 * time.Second

// Run offers the devices to kubelet until the context ends. It waits for a
// kubelet that is not there, and registers again with one that was started
// again. The error says why kubelet's directory cannot be watched.
func (p *Plugin) Run(ctx context.Context) error {
	dir, err := watchDir(p.o.Dir)
	if err != nil {
		return fmt.Errorf("device plugin: watch %s: %w", p.o.Dir, err)
	}
	defer dir.close()
	if p.o.Root != "" {
		ctx, cancel := context.WithCancel(ctx)
		var users sync.WaitGroup
		users.Go(func() { p.followUsers(ctx) })
		defer users.Wait()
		defer cancel()
	}
	p.removeLeftovers()
	defer func() {
		for name := range p.servers {
			p.stop(name)
		}
	}()
	retry, pause := time.NewTimer(0), firstRetry
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-p.wake:
		case err := <-dir.changes:
			if err != nil {
				return fmt.Errorf("device plugin: watch %s: %w", p.o.Dir, err)
			}
		}
		retry.Stop()
		if p.settle(ctx) {
			pause = firstRetry
			continue
		}
		retry.Reset(pause)
		pause = min(2*pause, lastRetry)
	}
}

// settle makes what there is what should be: every resource has a server, which
// kubelet knows; unless somebody else serves it. It returns false when that is
// to be tried again.
func (p *Plugin) settle(ctx context.Context) bool {
	kubelet := filepath.Join(p.o.Dir, kubeletSocket)
	id := identify(kubelet)
	now := p.now()
	settled := true
	names := now.names()
	for name := range p.servers {
		if now.resources[name] == nil {
			names = append(names, name)
		}
	}
	for _, name := range names {
		who, silent := p.rival(name)
		if who != "" {
			p.stop(name)
			p.say(name, "", logrus.WarnLevel, "another plugin serves this resource, so this one does not: "+who)
			continue
		}
		settled = settled && !silent
		s := p.servers[name]
		if s != nil && s.kubelet == id && s.there() {
			continue
		}
		if s != nil {
			p.stop(name)
			delete(p.said, name)
			// A kubelet that takes a plugin and drops it is not to be run after.
			if s.lost.Load() && time.Since(s.since) < time.Second {
				settled = false
				continue
			}
		}
		if id == (identity{}) {
			p.say(name, "", logrus.InfoLevel, "waiting for kubelet")
			continue
		}
		if err := p.start(ctx, name, kubelet, id); err != nil {
			if ctx.Err() == nil {
				p.say(name, err.Error(), logrus.WarnLevel, "kubelet could not be told of the devices; this is tried again")
			}
			settled = false
			continue
		}
		p.say(name, "", logrus.InfoLevel, "registered with kubelet")
	}
	return settled
}

// start serves a resource and registers it.
func (p *Plugin) start(ctx context.Context, name, kubelet string, id identity) error {
	if err := answers(kubelet); err != nil {
		return fmt.Errorf("register %s: %w: expected a kubelet that runs", p.full(name), err)
	}
	s, err := p.serve(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	if err := s.register(ctx, kubelet); err != nil {
		s.stop()
		return fmt.Errorf("register %s with kubelet at %s: %w", p.full(name), kubelet, err)
	}
	s.kubelet, s.since = id, time.Now()
	p.servers[name] = s
	return nil
}

func (p *Plugin) stop(name string) {
	if s := p.servers[name]; s != nil {
		delete(p.servers, name)
		s.stop()
	}
}

// say logs what has become of a resource, unless it said so last.
func (p *Plugin) say(name, problem string, level logrus.Level, message string) {
	if p.said[name] == message+problem {
		return
	}
	p.said[name] = message + problem
	log := p.log.WithField("resource", p.full(name))
	if problem != "" {
		log = log.WithError(errors.New(problem))
	}
	log.Log(level, message)
}

// removeLeftovers removes the sockets of a daemon that was killed.
func (p *Plugin) removeLeftovers() {
	// The pattern is well-formed unless the directory's name is odd; then they
	// stay, which does no harm.
	left, _ := filepath.Glob(filepath.Join(p.o.Dir, socketPrefix+"*.sock"))
	for _, socket := range left {
		if err := os.Remove(socket); err != nil {
			p.log.WithError(err).Warn("the socket of a former daemon could not be removed")
		}
	}
}
