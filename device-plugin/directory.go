package deviceplugin

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// kubeletSocket is kubelet's registration socket in the directory.
const kubeletSocket = "kubelet.sock"

// identity tells one socket from the next of the same name. The zero identity is
// that of none.
type identity struct {
	dev, ino uint64
	ctime    unix.Timespec
}

func identify(socket string) identity {
	var st unix.Stat_t
	if unix.Stat(socket, &st) != nil {
		return identity{}
	}
	return identity{uint64(st.Dev), st.Ino, st.Ctim}
}

// answers tells whether somebody listens on a socket.
func answers(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// rival says who else serves the VFs of a resource: Intel's device plugin, whose
// socket is called <domain>-<resource>.sock (intel-device-plugins-for-kubernetes,
// pkg/deviceplugin), or Intel's DRA driver, which is named as the domain
// (Kubernetes, dynamic-resource-allocation/kubeletplugin: <driver>-reg.sock, with
// the pod's UID before -reg during an update). It returns "" for nobody. There
// may be somebody about to serve if a socket is silent: it comes to be a moment
// before it is listened to, and stays when its owner is killed.
func (p *Plugin) rival(name string) (who string, silent bool) {
	plugin := filepath.Join(p.o.Dir, p.o.Domain+"-"+name+".sock")
	if err := answers(plugin); err == nil {
		return "Intel's device plugin answers at " + plugin, false
	} else if !errors.Is(err, os.ErrNotExist) {
		silent = true
	}
	drivers, _ := filepath.Glob(filepath.Join(filepath.Dir(p.o.Dir), "plugins_registry", p.o.Domain+"*-reg.sock"))
	for _, driver := range drivers {
		if answers(driver) == nil {
			return "Intel's DRA driver answers at " + driver, false
		}
		silent = true
	}
	return "", silent
}

// directory watches kubelet's directory.
type directory struct {
	dir     string
	changes chan error // nil: something of interest has changed
	done    chan struct{}
	watcher *fsnotify.Watcher
	at      string // what is watched: dir or, as long as that is missing, one above
}

// watchDir watches a directory for sockets that come and go. It need not be
// there yet.
func watchDir(dir string) (*directory, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	d := &directory{dir: filepath.Clean(dir), changes: make(chan error, 1), done: make(chan struct{}), watcher: w}
	if err := d.follow(); err != nil {
		w.Close()
		return nil, err
	}
	go d.run()
	return d, nil
}

func (d *directory) close() {
	close(d.done)
	d.watcher.Close()
}

func (d *directory) run() {
	for {
		select {
		case e, ok := <-d.watcher.Events:
			if !ok {
				return
			}
			if e.Name == d.at && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) {
				_ = d.watcher.Remove(d.at) // a directory that was moved is watched at its new place
				d.at = ""
			} else if d.at == d.dir && !strings.HasSuffix(e.Name, ".sock") {
				continue // kubelet's checkpoints change with every pod
			}
			if err := d.follow(); err != nil {
				select {
				case d.changes <- err:
				case <-d.done:
				}
				return
			}
		case _, ok := <-d.watcher.Errors:
			if !ok {
				return
			}
			// Events were lost.
		}
		select {
		case d.changes <- nil:
		default: // one is waiting already, which says enough
		}
	}
}

// follow watches the directory, or the closest one above it that is there.
func (d *directory) follow() error {
	for {
		closest := d.dir
		for !isDir(closest) && closest != filepath.Dir(closest) {
			closest = filepath.Dir(closest)
		}
		if closest == d.at {
			return nil
		}
		if d.at != "" {
			_ = d.watcher.Remove(d.at)
		}
		d.at = ""
		if err := d.watcher.Add(closest); err != nil {
			if os.IsNotExist(err) {
				continue // it went meanwhile
			}
			return err
		}
		d.at = closest // and once more: it may have come meanwhile
	}
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}
