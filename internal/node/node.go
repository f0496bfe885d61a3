// Package node is the node daemon: it wires what the other packages do into one
// process and owns its start and its end. It decides nothing itself.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/sirupsen/logrus"

	deviceplugin "github.com/kata-qat/kata-qat/device-plugin"
	"github.com/kata-qat/kata-qat/internal/allocation"
	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/devices"
	nriplugin "github.com/kata-qat/kata-qat/nri-plugin"
)

// Options are what the daemon is started with.
type Options struct {
	Config *config.Config
	Root   string // the host's root directory
	// Standby has Run wait while another daemon serves; without it that is an
	// error.
	Standby bool
	Log     *logrus.Logger
}

// Run serves until the context ends. It returns nil on a clean end, and an
// error for anything that keeps the daemon from its work.
func Run(ctx context.Context, o Options) error {
	log := logrus.NewEntry(o.Log)
	if err := checkStandalone(o); err != nil {
		return err
	}
	if o.Standby {
		if err := standBy(ctx, o.Config.RunDir, log); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil // told to stop
		}
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
	service := &service{profile: o.Config.ProfileOf, devices: monitor, alloc: alloc, log: log}
	if service.observers, err = newObservers(o, service, monitor, alloc, log); err != nil {
		return err
	}
	defer service.observers.close()
	server, err := api.Listen(filepath.Join(o.Config.RunDir, api.SocketName), service)
	if err != nil {
		return err
	}
	// From here on this is the node's only daemon: it holds the socket.
	if err := forgetLeaving(o); err != nil {
		return errors.Join(err, server.Shutdown(ctx))
	}
	defer func() {
		if err := leaveIfTold(o); err != nil {
			log.WithError(err).Error("not everything is gone")
		}
	}()
	cdi, err := writeCDI(o, monitor, log)
	if err != nil {
		return errors.Join(err, server.Shutdown(ctx))
	}
	if cdi != nil && o.Config.CDI.RemoveOnStop {
		defer cdi.close()
	}
	offer, err := newDevicePlugin(o, monitor, alloc, cdi, log)
	if err != nil {
		return errors.Join(err, server.Shutdown(ctx))
	}

	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer func() {
		cancel()
		parts.Wait()
		log.Info("stopped")
	}()
	parts.Go(func() {
		if err := monitor.Run(ctx); err != nil {
			log.WithError(err).Warn("changes of devices are noticed only when a pod asks for one")
		}
	})
	parts.Go(func() { rereadOnHangup(ctx, monitor, log) })
	service.observers.run(ctx, parts.Go)
	parts.Go(func() {
		if err := server.Serve(ctx); err != nil {
			log.WithError(err).Error("the API has ended")
		}
	})
	if offer != nil {
		parts.Go(func() { monitor.Poll(ctx) })
		parts.Go(func() {
			if err := offer.Run(ctx); err != nil {
				log.WithError(err).Error("kubelet is offered no devices: restart the daemon when this is mended")
			}
		})
	}
	// In this order at the end: no more requests, then what they left to be done.
	defer service.later.end()
	defer shutdown(server, log)
	logStart(log, o, monitor.Current())
	plugin := nriplugin.New(nriplugin.Options{
		Profile: o.Config.ProfileOf, MemlockAllowance: uint64(o.Config.MemlockAllowance),
		Devices: monitor, Allocation: alloc, SandboxDevices: sandboxDevices(o),
		Observer: service.observers.plugin(), Log: log, Later: service.later.do,
	})
	return plugin.Serve(ctx, nriplugin.Connection{
		Socket: o.Config.NRI.Socket, Index: o.Config.NRI.Index, Log: log, OnState: notify(&service.connected, log),
	})
}

// rereadOnHangup has the devices read again on SIGHUP, for whoever changed what
// the kernel does not announce.
func rereadOnHangup(ctx context.Context, monitor *devices.Monitor, log *logrus.Entry) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			if err := monitor.Refresh(); err != nil {
				log.WithError(err).Error("the devices could not be read again")
				continue
			}
			log.Info("devices read again")
		}
	}
}

// patience is what calls in hand get when the daemon is stopped; a shim waits
// no longer for its answer.
const patience = 2 * time.Second

func shutdown(server *api.Server, log *logrus.Entry) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.WithError(err).Warn("the API was not shut down cleanly")
	}
}

// writeCDI has the CDI specs written with every change of the devices. It
// returns nil when they are switched off.
func writeCDI(o Options, monitor *devices.Monitor, log *logrus.Entry) (*cdiFiles, error) {
	if o.Config.CDI.Dir == "" {
		return nil, nil
	}
	dir, err := hostPath(o.Root, o.Config.CDI.Dir)
	if err != nil {
		return nil, err
	}
	files, err := newCDIFiles(dir, o.Config.Kubelet.Domain, log)
	if err != nil {
		return nil, err
	}
	monitor.OnChange(files.update)
	return files, nil
}

// newDevicePlugin makes the device plugin, nil when it is switched off. It comes
// after the CDI specs: what it names to kubelet is in them.
func newDevicePlugin(o Options, monitor *devices.Monitor, alloc *allocation.Resolver, cdi *cdiFiles, log *logrus.Entry) (*deviceplugin.Plugin, error) {
	if !o.Config.DevicePlugin.Enable {
		return nil, nil
	}
	dir, err := hostPath(o.Root, o.Config.DevicePlugin.Dir)
	if err != nil {
		return nil, err
	}
	d := deviceplugin.Options{Dir: dir, Domain: o.Config.Kubelet.Domain, Policy: o.Config.DevicePlugin.Policy, Held: alloc.Held, Log: log}
	if o.Config.Kubelet.PodResources != "" {
		d.Root, d.Claimed = o.Root, alloc.Claimed
	}
	if cdi != nil {
		d.CDI = cdi.has
	}
	p := deviceplugin.New(d)
	monitor.OnChange(func(v *devices.View) { p.SetDevices(v.Table) })
	return p, nil
}

// hostPath is a path of the host as this process sees it: its symbolic links
// are the host's, too.
func hostPath(root, path string) (string, error) {
	if root == "/" {
		return path, nil
	}
	return securejoin.SecureJoin(root, path)
}

// sandboxDevices reads the devices of a sandbox that lives: those that were
// cold-plugged into its VM are in its spec alone. A sandbox without a bundle has
// none.
func sandboxDevices(o Options) func(id string) []allocation.SpecDevice {
	bundles := containers.NewBundles(o.Root, o.Config.Containerd.State, o.Config.Containerd.Namespace)
	return func(id string) []allocation.SpecDevice {
		sandbox, err := bundles.Read(id)
		if err != nil {
			return nil
		}
		facts, err := sandbox.Facts()
		if err != nil {
			return nil
		}
		var devices []allocation.SpecDevice
		for _, d := range facts.Linux.Devices {
			if d.Type == "c" {
				devices = append(devices, allocation.SpecDevice{Path: d.Path, Major: d.Major, Minor: d.Minor})
			}
		}
		return devices
	}
}

// confDir is where the run directory has the configuration files of the VFs.
const confDir = "conf"

func newMonitor(o Options, log *logrus.Entry) (*devices.Monitor, error) {
	d := devices.Options{Root: o.Root, Conf: o.Config.Conf.Options, AllowNoIOMMU: o.Config.AllowNoIOMMU, Log: log}
	if o.Config.Conf.Inject {
		d.ConfDir = filepath.Join(o.Config.RunDir, confDir)
	}
	return devices.NewMonitor(d)
}

func newResolver(o Options, log *logrus.Entry) (*allocation.Resolver, error) {
	bundles := containers.NewBundles(o.Root, o.Config.Containerd.State, o.Config.Containerd.Namespace)
	a := allocation.Options{
		Standalone: o.Config.Standalone, Domain: o.Config.Kubelet.Domain,
		Stopped: func(id string) bool {
			running, known := bundles.Running(id)
			return known && !running
		},
	}
	if o.Config.Standalone || o.Config.Kubelet.PodResources == "" {
		log.Info("kubelet is not asked who holds what")
	} else {
		socket, err := hostPath(o.Root, o.Config.Kubelet.PodResources)
		if err != nil {
			return nil, err
		}
		a.KubeletSocket = socket
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
	file, err := hostPath(o.Root, socket)
	if err != nil {
		return err
	}
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
func notify(connection *atomic.Bool, log *logrus.Entry) func(bool) {
	return func(connected bool) {
		connection.Store(connected)
		state := "STATUS=not connected to the container runtime"
		if connected {
			state = daemon.SdNotifyReady + "\nSTATUS=connected to the container runtime"
		}
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.WithError(err).Debug("systemd was not told")
		}
	}
}
