// Package node is the node daemon: it wires what the other packages do into one
// process and owns its start and its end. It decides nothing itself.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/devices"
	nriplugin "github.com/kata-qat/kata-qat/nri-plugin"
)

// Options are what the daemon is started with.
type Options struct {
	Config *config.Config
	Root   string // the host's root directory
	Log    *logrus.Logger
}

// Run serves until the context ends. It returns nil on a clean end, and an
// error for anything that keeps the daemon from its work.
func Run(ctx context.Context, o Options) error {
	log := logrus.NewEntry(o.Log)
	if err := checkStandalone(o); err != nil {
		return err
	}
	monitor, err := newMonitor(o, log)
	if err != nil {
		return err
	}
	alloc, err := newResolver(o, log)
	if err != nil {
		return err
	}
	defer alloc.Close()
	monitor.OnChange(func(v *devices.View) { alloc.SetTable(v.Table) })

	plugin := nriplugin.New(nriplugin.Options{
		Profile: o.Config.ProfileOf, MemlockAllowance: uint64(o.Config.MemlockAllowance),
		Devices: monitor, Allocation: alloc, Log: log,
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := monitor.Run(ctx); err != nil {
			log.WithError(err).Warn("changes of devices are noticed only when a pod asks for one")
		}
	})
	logStart(log, o, monitor.Current())
	err = plugin.Serve(ctx, nriplugin.Connection{
		Socket: o.Config.NRI.Socket, Index: o.Config.NRI.Index, Log: log, OnState: notify(log),
	})
	cancel()
	parts.Wait()
	log.Info("stopped")
	return err
}

func newMonitor(o Options, log *logrus.Entry) (*devices.Monitor, error) {
	d := devices.Options{Root: o.Root, Conf: o.Config.Conf.Options, AllowNoIOMMU: o.Config.AllowNoIOMMU, Log: log}
	if o.Config.Conf.Inject {
		d.ConfDir = filepath.Join(o.Config.RunDir, "conf")
	}
	return devices.NewMonitor(d)
}

func newResolver(o Options, log *logrus.Entry) (*allocation.Resolver, error) {
	a := allocation.Options{Standalone: o.Config.Standalone, Domain: o.Config.Kubelet.Domain}
	if o.Config.Standalone || o.Config.Kubelet.PodResources == "" {
		log.Info("kubelet is not asked who holds what")
	} else {
		a.KubeletSocket = filepath.Join(o.Root, o.Config.Kubelet.PodResources)
		a.KubeletTimeout = time.Duration(o.Config.Kubelet.Timeout)
	}
	return allocation.NewResolver(a)
}

// checkStandalone refuses to give devices by annotation where a kubelet is: it
// would get a pod devices that the scheduler gave to another.
func checkStandalone(o Options) error {
	socket := o.Config.Kubelet.PodResources
	if !o.Config.Standalone || socket == "" {
		return nil
	}
	file := filepath.Join(o.Root, socket)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("standalone = true, but %s is there: on a node with a kubelet the scheduler hands devices out; set standalone = false, or remove the socket that a former kubelet left", file)
	}
	return nil
}

func logStart(log *logrus.Entry, o Options, v *devices.View) {
	ready, total := 0, 0
	for _, d := range v.Table.Devices() {
		total++
		if d.Err == nil {
			ready++
		}
	}
	log.WithFields(logrus.Fields{
		"pfs": len(v.Inventory.PFs), "vfs": total, "ready": ready, "root": o.Root,
		"handlers": o.Config.Handlers, "standalone": o.Config.Standalone,
	}).Info("started")
}

// notify tells systemd once that the daemon serves; a connection that is lost
// later is in the log and dialled again.
func notify(log *logrus.Entry) func(bool) {
	return func(connected bool) {
		state := "STATUS=not connected to the container runtime"
		if connected {
			state = daemon.SdNotifyReady + "\nSTATUS=connected to the container runtime"
		}
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.WithError(err).Debug("systemd was not told")
		}
	}
}
