// Package simnode puts a node with QAT devices together on a machine that has
// none: a sysfs tree and device nodes below a directory, a real containerd
// beside it, and the real kata-qat daemon between the two. What it cannot
// simulate is the device itself: nothing answers behind the nodes.
package simnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/shim"
	"github.com/kata-qat/kata-qat/test/bed"
)

// Options say what the node has.
type Options struct {
	Bed bed.Options
	// Machine has the devices; by default two PFs of 16 VFs each, on two NUMA
	// nodes, for crypto and for compression.
	Machine *qattest.Node
	// Config is laid over the daemon's configuration, which is standalone.
	Config map[string]any
	// Shims puts our shim before the real shim of these handlers of
	// Bed.Handlers, by the file name that the real one has in build/tools.
	Shims map[string]string
}

// Node is a running node without a daemon: see StartDaemon.
type Node struct {
	*bed.Bed
	Tree   qattest.Tree
	Binary string // kata-qat
	dir    string
	config string
	shim   map[string]any // the shim's configuration
}

// containerdDir is short: the paths of sockets are bounded.
const containerdDir = "ctd"

// Machine is the machine that Options have by default.
func Machine() qattest.Node {
	return qattest.Node{PFs: []qattest.PF{
		{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: qat.StateUp, Group: 1, VFs: 16, VFDriver: "vfio-pci", FirstGroup: 100},
		{Address: "0000:e8:00.0", Family: "4xxx", NUMA: 1, Services: "dc", State: qat.StateUp, Group: 2, VFs: 16, VFDriver: "vfio-pci", FirstGroup: 200},
	}}
}

// Start builds the machine and starts containerd. On an error nothing is left.
func Start(o Options) (_ *Node, err error) {
	binary, err := findBinary()
	if err != nil {
		return nil, err
	}
	n := &Node{Binary: binary}
	if n.dir, err = os.MkdirTemp("/tmp", "kqn"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop())
		}
	}()
	machine := Machine()
	if o.Machine != nil {
		machine = *o.Machine
	}
	n.Tree = qattest.Tree{Root: filepath.Join(n.dir, "root"), GroupMajor: machine.GroupMajor}
	if err := machine.Write(n.Tree.Root); err != nil {
		return nil, err
	}
	// containerd is found below the host's root, as on a real node.
	o.Bed.Dir = filepath.Join(n.Tree.Root, containerdDir)
	if len(o.Shims) > 0 {
		if err := n.wrap(&o); err != nil {
			return nil, err
		}
	}
	if n.Bed, err = bed.Start(o.Bed); err != nil {
		return nil, err
	}
	return n, n.Configure(o.Config)
}

// wrap makes our shim the runtime_path of the handlers, under the name that
// tells it which one it serves.
func (n *Node) wrap(o *Options) error {
	tools := filepath.Join(filepath.Dir(filepath.Dir(n.Binary)), "build", "tools")
	if o.Bed.ContainerdVersion == "1.7" {
		tools = filepath.Join(tools, "1.7")
	}
	runtimes := map[string]string{}
	handlers := maps.Clone(o.Bed.Handlers)
	for handler, real := range o.Shims {
		runtimes[handler] = filepath.Join(tools, real)
		h := handlers[handler]
		h.RuntimePath = filepath.Join(n.dir, "shims", "containerd-shim-"+handler+"-v2")
		// Kata's own, and ours for a pool without kubelet.
		h.PodAnnotations = []string{"io.katacontainers.*", "kata-qat.io/*"}
		handlers[handler] = h
		if err := os.MkdirAll(filepath.Dir(h.RuntimePath), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join(filepath.Dir(n.Binary), "containerd-shim-kata-qat-v2"), h.RuntimePath); err != nil {
			return err
		}
	}
	o.Bed.Handlers = handlers
	o.Bed.Env = append(slices.Clone(o.Bed.Env), shim.ConfigEnv+"="+n.ShimConfig())
	return n.ConfigureShim(map[string]any{"runtimes": runtimes})
}

// ShimConfig is the shim's configuration file.
func (n *Node) ShimConfig() string { return filepath.Join(n.dir, "shim.toml") }

// ConfigureShim writes the shim's configuration, with changes laid over the
// node's own.
func (n *Node) ConfigureShim(changes map[string]any) error {
	if n.shim == nil {
		n.shim = map[string]any{"socket": n.APISocket()}
	}
	maps.Copy(n.shim, changes)
	b, err := toml.Marshal(n.shim)
	if err != nil {
		return err
	}
	return os.WriteFile(n.ShimConfig(), b, 0o644)
}

// APISocket is where the daemon serves its API.
func (n *Node) APISocket() string { return filepath.Join(n.RunDir(), api.SocketName) }

// Configure writes the daemon's configuration, with changes laid over the
// node's own.
func (n *Node) Configure(changes map[string]any) error {
	c := map[string]any{
		"standalone": true,
		"run_dir":    n.RunDir(),
		"nri":        map[string]any{"socket": n.NRISocket()},
		"containerd": map[string]any{"state": "/" + containerdDir + "/state"},
	}
	for k, v := range changes {
		c[k] = v
	}
	b, err := toml.Marshal(c)
	if err != nil {
		return err
	}
	n.config = filepath.Join(n.dir, "config.toml")
	return os.WriteFile(n.config, b, 0o644)
}

// RunDir is the daemon's run directory.
func (n *Node) RunDir() string { return filepath.Join(n.dir, "run") }

// Stop takes everything down and removes it; the daemons must be stopped.
func (n *Node) Stop() error {
	var err error
	if n.Bed != nil {
		err = n.Bed.Stop()
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}

// CLI returns a kata-qat command for this node.
func (n *Node) CLI(args ...string) *exec.Cmd {
	global := []string{
		"--host-root", n.Tree.Root, "--config", n.config,
		"--containerd", "/" + containerdDir + "/containerd.sock", "--state", "/" + containerdDir + "/state",
	}
	return exec.Command(n.Binary, append(global, args...)...)
}

// Daemon is a running kata-qat nri-plugin.
type Daemon struct {
	cmd  *exec.Cmd
	log  *journal
	done chan struct{}
	err  error // of the process, once done is closed
}

// StartDaemon starts the daemon and returns when containerd has told it of the
// pods, so that it is asked about every container from now on.
func (n *Node) StartDaemon(ctx context.Context) (*Daemon, error) {
	d, err := n.LaunchDaemon()
	if err != nil {
		return nil, err
	}
	if err := d.WaitLog(ctx, Synchronized, 1); err != nil {
		return nil, errors.Join(err, d.Kill())
	}
	return d, nil
}

// LaunchDaemon starts the daemon, with further flags, and does not wait for
// anything.
func (n *Node) LaunchDaemon(flags ...string) (*Daemon, error) {
	d := &Daemon{cmd: n.CLI(append([]string{"nri-plugin"}, flags...)...), log: newJournal(), done: make(chan struct{})}
	d.cmd.Stderr = d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// Synchronized is in the daemon's log when a connection to the runtime is
// complete.
const Synchronized = "synchronized with the runtime"

// PID of the daemon's process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Running tells whether the process has not ended yet.
func (d *Daemon) Running() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// Log returns what the daemon has logged so far.
func (d *Daemon) Log() string { return d.log.String() }

// WaitLog waits until the log has the text n times.
func (d *Daemon) WaitLog(ctx context.Context, text string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		changed := d.log.changed()
		if strings.Count(d.Log(), text) >= n {
			return nil
		}
		select {
		case <-changed:
		case <-d.done:
			return fmt.Errorf("the daemon ended (%v) before it logged %q; its log:\n%s", d.err, text, d.Log())
		case <-ctx.Done():
			return fmt.Errorf("the daemon did not log %q (%d times); its log:\n%s", text, n, d.Log())
		}
	}
}

// Signal sends the daemon a signal.
func (d *Daemon) Signal(s syscall.Signal) error { return d.cmd.Process.Signal(s) }

// Stop ends the daemon as systemd would, and returns its error.
func (d *Daemon) Stop() error {
	if err := d.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.done:
		return d.err
	case <-time.After(10 * time.Second):
		return errors.Join(errors.New("the daemon did not end within 10 s of SIGTERM"), d.Kill())
	}
}

// Kill ends the daemon at once.
func (d *Daemon) Kill() error {
	err := d.Signal(syscall.SIGKILL)
	<-d.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// journal keeps what is written to it and tells of every write.
type journal struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	news chan struct{}
}

func newJournal() *journal { return &journal{news: make(chan struct{})} }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.news)
	j.news = make(chan struct{})
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) changed() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.news
}

// findBinary looks for bin/kata-qat in the working directory and above.
func findBinary() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		file := filepath.Join(d, "bin", "kata-qat")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("bin/kata-qat is not there, in %s or above: run make build", dir)
		}
	}
}
