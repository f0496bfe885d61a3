package nriplugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"github.com/fsnotify/fsnotify"
	"github.com/sirupsen/logrus"
	"golang.org/x/mod/semver"
)

const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
	abandonAfter = 2 * time.Second
)

// Connection says how the runtime is reached.
type Connection struct {
	Socket string // containerd's NRI socket
	Index  string // two digits: the plugin's place among the plugins
	Log    *logrus.Entry
	// OnState is told whether the runtime is connected; nil for nobody.
	OnState func(connected bool)
}

// Serve registers the plugin with the runtime and serves it until the context
// ends. When the runtime goes away, or is not there yet, it dials again: at
// once when the socket appears, and with growing pauses otherwise. An index
// that the runtime would refuse is an error at once.
func (p *Plugin) Serve(ctx context.Context, c Connection) error {
	if err := api.CheckPluginIndex(c.Index); err != nil {
		return fmt.Errorf("NRI plugin index %q: expected two digits, 00 to 99: %w", c.Index, err)
	}
	appears, stop := watch(c)
	defer stop()
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		connected := time.Now()
		err := p.session(ctx, c)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(connected) > lastBackoff {
			backoff = firstBackoff
		}
		c.Log.WithError(err).WithFields(logrus.Fields{"socket": c.Socket, "retry": backoff.String()}).Warn("not connected to the runtime")
		retry := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			retry.Stop()
			return nil
		case <-appears:
			retry.Stop()
			backoff = firstBackoff
		case <-retry.C:
		}
	}
}

// session serves one connection until it ends.
func (p *Plugin) session(ctx context.Context, c Connection) error {
	closed := make(chan struct{})
	e := &events{Plugin: p, c: c}
	s, err := stub.New(e,
		stub.WithPluginName(Name), stub.WithPluginIdx(c.Index), stub.WithSocketPath(c.Socket),
		// A runtime with NRI 0.12.4 or later fails the request instead of
		// going on without us, and keeps us for the next.
		stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: true, KeepConnected: true}),
		stub.WithLogger(stubLog{c.Log}),
		stub.WithTTRPCOptions(nil, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.intercept)}),
		stub.WithDialer(func(socket string) (net.Conn, error) {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				return nil, err
			}
			return &watchedConn{Conn: conn, closed: closed}, nil
		}),
	)
	if err != nil {
		return err
	}
	e.stub = s
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case err = <-done:
	case <-closed:
		// A stub whose runtime dies between registration and configuration
		// waits for ever (NRI 0.12.5, stub.Start): leave it behind.
		select {
		case err = <-done:
		case <-time.After(abandonAfter):
		}
	}
	if c.OnState != nil {
		c.OnState(false)
	}
	if err == nil {
		err = errors.New("the runtime closed the connection")
	}
	return err
}

// watchedConn tells when the peer is gone.
type watchedConn struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.once.Do(func() { close(c.closed) })
	}
	return n, err
}

// events adds to the handlers what belongs to one connection.
type events struct {
	*Plugin
	c    Connection
	stub stub.Stub
}

// Configure is the runtime's greeting, answered with the events that we want.
func (e *events) Configure(_ context.Context, _, runtime, version string) (api.EventMask, error) {
	log := e.c.Log.WithFields(logrus.Fields{"runtime": runtime, "version": version})
	log.Info("connected to the runtime")
	if validates(e.stub.RuntimeNRIVersion(), runtime, version) {
		return 0, nil // all that we have a handler for
	}
	// A runtime that does not know the event throws out who asks for it.
	log.Warn("this runtime has no validation of adjustments: when the daemon fails in the middle of a request the container starts without its devices; containerd 2.2 or later refuses it")
	return adjusting, nil
}

// adjusting are the events of a runtime without validation.
var adjusting = api.MustParseEventMask("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "RemoveContainer")

// validates tells whether the runtime has ValidateContainerAdjustment, which
// came with NRI 0.10. A runtime that nothing is known of is taken for a new one.
func validates(nri, runtime, version string) bool {
	if !semver.IsValid(nri) {
		version, _, _ = strings.Cut(strings.TrimPrefix(version, "v"), "+")
		inferred, err := api.InferVersionFromRuntime(runtime, "v"+version)
		if err != nil {
			return runtime != "containerd" || !strings.HasPrefix(version, "1.")
		}
		nri = inferred
	}
	return semver.Compare(nri, "v0.10.0") >= 0
}

// Synchronize ends the connection's set-up: from now on requests come.
func (e *events) Synchronize(ctx context.Context, pods []*api.PodSandbox, ctrs []*api.Container) ([]*api.ContainerUpdate, error) {
	updates, err := e.Plugin.Synchronize(ctx, pods, ctrs)
	if err == nil && e.c.OnState != nil {
		e.c.OnState(true)
	}
	return updates, err
}

// watch sends when the socket appears. It is a help, not a need: where the
// directory cannot be watched the pauses alone decide.
func watch(c Connection) (<-chan struct{}, func()) {
	out := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		err = w.Add(filepath.Dir(c.Socket))
	}
	if err != nil {
		c.Log.WithError(err).Debug("the socket's directory cannot be watched")
		return out, func() {}
	}
	go func() {
		for ev := range w.Events {
			if ev.Name == filepath.Clean(c.Socket) && ev.Has(fsnotify.Create) {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	go func() {
		for range w.Errors { // an overflow loses an event that the pause makes up for
		}
	}()
	return out, func() { w.Close() }
}

// stubLog gives the stub's messages, which are about its own workings, the
// level that they deserve.
type stubLog struct{ l *logrus.Entry }

var _ nrilog.Logger = stubLog{}

func (s stubLog) Debugf(_ context.Context, f string, a ...any) { s.l.Debugf(f, a...) }
func (s stubLog) Infof(_ context.Context, f string, a ...any)  { s.l.Debugf(f, a...) }
func (s stubLog) Warnf(_ context.Context, f string, a ...any)  { s.l.Debugf(f, a...) }
func (s stubLog) Errorf(_ context.Context, f string, a ...any) { s.l.Errorf(f, a...) }
