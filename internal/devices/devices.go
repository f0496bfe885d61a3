// Package devices keeps a node's view of its QAT devices ready: the inventory,
// the table of device nodes, and the configuration file of every VF, rendered
// beforehand. Whoever starts a pod reads the current view from memory; the view
// is made anew when the kernel says that something changed.
package devices

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// View is what was known of a node's devices at one moment. It never changes.
type View struct {
	Inventory *qat.Inventory
	Table     *vfio.Table

	conf map[confKey]confFile
	off  bool
}

// VFs of one family with the same services have the same configuration.
type confKey struct {
	family   *qat.Family
	services qat.Services
}

type confFile struct {
	path string
	err  error
}

// Conf returns the file with the VF's configuration, on the host; "" when
// configuration files are switched off. An error says why there can be none.
func (v *View) Conf(vf *qat.VF) (string, error) {
	if v.off {
		return "", nil
	}
	c := v.conf[confKey{vf.Family, vf.Services}]
	return c.path, c.err
}

// Options say where the devices are and what is made of them.
type Options struct {
	Root         string // where sysfs and the device nodes are mounted
	ConfDir      string // for rendered configuration files; "" for none
	Conf         devconf.Options
	AllowNoIOMMU bool
	Log          *logrus.Entry
}

// Monitor keeps the current View.
type Monitor struct {
	o       Options
	store   *devconf.Store
	current atomic.Pointer[View]
	told    atomic.Bool           // the kernel announces changes
	failed  atomic.Pointer[error] // of the last refresh

	mu       sync.Mutex // one refresh at a time; never held by a reader
	last     time.Time
	onChange []func(*View)
}

// NewMonitor makes the first view.
func NewMonitor(o Options) (*Monitor, error) {
	m := &Monitor{o: o}
	if o.ConfDir != "" {
		store, err := devconf.NewStore(o.ConfDir)
		if err != nil {
			return nil, err
		}
		m.store = store
	}
	return m, m.Refresh()
}

// Current returns the newest view, without doing anything for it.
func (m *Monitor) Current() *View { return m.current.Load() }

// Err says why the devices could not be read the last time; the current view is
// an older one then.
func (m *Monitor) Err() error {
	if err := m.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Root is the directory that the devices are read below.
func (m *Monitor) Root() string { return m.o.Root }

// OnChange has f called with every view from now on, and once with the current
// one. It is called with the next refresh waiting: it must not refresh.
func (m *Monitor) OnChange(f func(*View)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onChange = append(m.onChange, f)
	f(m.Current())
}

// Refresh reads the devices again.
func (m *Monitor) Refresh() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refresh()
}

// RefreshOlder refreshes when the view is older than age, and tells whether it
// did. It bounds what a caller that was refused something can cost.
func (m *Monitor) RefreshOlder(age time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.last) < age {
		return false
	}
	if err := m.refresh(); err != nil {
		m.o.Log.WithError(err).Error("the devices could not be read again")
		return false
	}
	return true
}

func (m *Monitor) refresh() error {
	m.last = time.Now()
	inv, err := qat.Discover(m.o.Root)
	if err != nil {
		m.failed.Store(&err)
		return err
	}
	m.failed.Store(nil)
	v := &View{
		Inventory: inv,
		Table:     vfio.Load(m.o.Root, inv, vfio.Options{AllowNoIOMMU: m.o.AllowNoIOMMU}),
		conf:      make(map[confKey]confFile),
		off:       m.store == nil,
	}
	if m.store != nil {
		for vf := range inv.VFs() {
			k := confKey{vf.Family, vf.Services}
			if _, done := v.conf[k]; !done {
				v.conf[k] = m.render(k)
			}
		}
	}
	m.report(v)
	m.current.Store(v)
	for _, f := range m.onChange {
		f(v)
	}
	return nil
}

func (m *Monitor) render(k confKey) confFile {
	f, err := devconf.ForVF(k.family, k.services, m.o.Conf)
	if err != nil {
		return confFile{err: err}
	}
	path, err := m.store.Put(k.family, f)
	return confFile{path, err}
}

// report logs what is new since the last view.
func (m *Monitor) report(v *View) {
	known := map[string]bool{}
	if old := m.Current(); old != nil {
		for _, p := range old.Inventory.Problems {
			known[p.Error()] = true
		}
	}
	for _, p := range v.Inventory.Problems {
		if !known[p.Error()] {
			m.o.Log.WithField("device", p.Address).WithError(p.Err).Warn("a device could not be read")
		}
	}
}

// Run refreshes the view whenever the kernel announces a change of a PCI or
// VFIO device, until the context ends. Without uevents (no permission, another
// network namespace) it returns an error at once; the view then changes only by
// Refresh.
func (m *Monitor) Run(ctx context.Context) error {
	events, err := Events(ctx)
	if err != nil {
		return fmt.Errorf("listen to kernel events: %w", err)
	}
	m.told.Store(true)
	defer m.told.Store(false)
	for err := range Settled(ctx, events) {
		if err != nil {
			m.o.Log.WithError(err).Warn("kernel events were lost; the devices are read again")
		}
		if err := m.Refresh(); err != nil {
			m.o.Log.WithError(err).Error("the devices could not be read again")
		}
	}
	if ctx.Err() == nil {
		return errors.New("listen to kernel events: the socket was closed")
	}
	return nil
}

const (
	// pollPFs is how often the PFs are asked for what the kernel announces no
	// change of: it costs three small files of each.
	pollPFs = 10 * time.Second
	// What is announced is read again so often, should an announcement be lost,
	// or none be had.
	pollAll, pollAllUntold = 5 * time.Minute, 30 * time.Second
)

// Poll refreshes the view when a PF's state, services or heartbeat have changed,
// of which the kernel says nothing, until the context ends.
func (m *Monitor) Poll(ctx context.Context) {
	tick := time.NewTicker(pollPFs)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		age := pollAll
		if !m.told.Load() {
			age = pollAllUntold
		}
		if m.RefreshOlder(age) || !qat.PFsChanged(m.o.Root, m.Current().Inventory) {
			continue
		}
		if err := m.Refresh(); err != nil {
			m.o.Log.WithError(err).Error("the devices could not be read again")
		}
	}
}
