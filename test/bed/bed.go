// Package bed starts a real containerd, with CRI and NRI, in a directory of its
// own, and takes it down again without leaving a trace. It knows pods and
// containers as kubelet would ask for them; it knows nothing of QAT.
//
// A bed needs root, runc, a static busybox and the programs of `make tools`. It
// needs no network: its images are made from what is there.
package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options say what a bed has. The zero value is a good one.
type Options struct {
	// Dir is the directory of the bed, which must not exist and must be short:
	// a path of a unix socket has at most 107 characters. By default one is
	// made below /tmp.
	Dir string
	// ContainerdVersion is "2.4", the default, or "1.7".
	ContainerdVersion string
	// Tools is where `make tools` put its programs; by default build/tools of
	// the module that the working directory is in.
	Tools string
	// Handlers are the CRI runtime handlers by name; by default those of
	// DefaultHandlers.
	Handlers map[string]Handler
	// RequiredPlugins are the NRI plugins without which no container is
	// created. containerd 1.7 cannot require any.
	RequiredPlugins []string
	// NRIRequestTimeout is how long a plugin may take to answer; by default 2 s,
	// as in containerd.
	NRIRequestTimeout time.Duration
	// UpTimeout is how long containerd may take until it is ready and has the
	// images; by default a minute. It takes a second on a quiet machine.
	UpTimeout time.Duration
	// CNI is a CNI network configuration list. Without one, pods must use the
	// host's network.
	CNI string
	// Env is added to the environment of containerd, which its shims inherit.
	Env []string
}

// Handler is a runtime handler of containerd's CRI plugin.
type Handler struct {
	RuntimeType string // "io.containerd.runc.v2" when empty
	RuntimePath string // of the shim's binary; found by the type's name when empty
	// ConfigPath is what a Kata shim gets as options.ConfigPath. runc's own
	// shim refuses it.
	ConfigPath string
	// PodAnnotations are patterns of the pod's annotations that get into the
	// OCI specs of its sandbox and containers, as those that a wrapper of
	// Kata's shim reads; "io.katacontainers.*" when nil. A * matches no slash.
	PodAnnotations []string
}

// The runtime types that a bed brings the shims for.
const (
	RuncType = "io.containerd.runc.v2"
	// KataType is Kata's, behind which a bed has a stand-in that runs runc and
	// records what it was given.
	KataType = "io.containerd.kata.v2"
)

// DefaultHandlers are runc, and kata and kata-qat of KataType.
func DefaultHandlers() map[string]Handler {
	return map[string]Handler{"runc": {RuntimeType: RuncType}, "kata": {RuntimeType: KataType}, "kata-qat": {RuntimeType: KataType}}
}

// Bed is a running containerd. Its methods are safe for concurrent use, but for
// Stop, KillContainerd and RestartContainerd.
type Bed struct {
	opts  Options
	dir   string
	tools tools
	lock  *os.File // held while the process that owns the bed lives

	containerd *process
	conn       *grpc.ClientConn
	runtime    cri.RuntimeServiceClient
	pods       atomic.Int64 // names pods that have none
	stopped    bool

	// socketsBefore are the shims' sockets that were there before the bed.
	socketsBefore map[string]bool
}

// Start starts a bed and returns when its CRI is ready and has the images
// Busybox and Pause. On an error nothing is left running. It first clears away
// the beds that processes killed before their Stop have left.
func Start(opts Options) (_ *Bed, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("start a containerd bed: it needs root: run as root or with sudo")
	}
	if opts.ContainerdVersion == "" {
		opts.ContainerdVersion = "2.4"
	}
	if opts.Handlers == nil {
		opts.Handlers = DefaultHandlers()
	}
	if opts.NRIRequestTimeout == 0 {
		opts.NRIRequestTimeout = 2 * time.Second
	}
	if opts.UpTimeout == 0 {
		opts.UpTimeout = time.Minute
	}
	b := &Bed{opts: opts}
	if b.tools, err = findTools(opts); err != nil {
		return nil, fmt.Errorf("start a containerd bed: %w", err)
	}
	if err := sweepStale(); err != nil {
		return nil, fmt.Errorf("start a containerd bed: %w", err)
	}
	if err := b.makeDir(); err != nil {
		return nil, fmt.Errorf("start a containerd bed: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start a containerd bed in %s: %w", b.dir, err)
			if tail := tail(b.Log(), 20); tail != "" {
				err = fmt.Errorf("%w; the end of containerd's log:\n%s", err, tail)
			}
			err = errors.Join(err, b.Stop())
		}
	}()
	b.socketsBefore = shimSockets()
	if err := b.writeConfig(); err != nil {
		return nil, err
	}
	// A refused connection is tried again within the deadline of the call, so
	// that nobody has to wait for the socket.
	b.conn, err = grpc.NewClient("unix://"+b.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: dialBackoff, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, err
	}
	b.runtime = cri.NewRuntimeServiceClient(b.conn)
	ctx, cancel := context.WithTimeout(context.Background(), b.opts.UpTimeout)
	defer cancel()
	if err := b.startContainerd(ctx); err != nil {
		return nil, err
	}
	if err := b.importImages(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// ForTest starts a bed that is stopped when the test ends. What the bed leaves
// behind fails the test; if the test failed, containerd's log is printed.
func ForTest(t testing.TB, opts Options) *Bed {
	t.Helper()
	b, err := Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of containerd's log:\n%s", tail(b.Log(), 60))
		}
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// makeDir makes the directory and takes its lock.
func (b *Bed) makeDir() (err error) {
	if b.opts.Dir == "" {
		b.dir, err = os.MkdirTemp(tempDir, tempPrefix)
	} else {
		b.dir = filepath.Clean(b.opts.Dir)
		err = os.Mkdir(b.dir, 0o700)
	}
	if err != nil {
		return err
	}
	// The longest socket is that of a shim, named by a SHA-256 in hexadecimal.
	if longest := filepath.Join(b.dir, "s", strings.Repeat("0", 64)); len(longest) > 106 {
		err := fmt.Errorf("directory %s: a shim's socket in it would have a path of %d characters, at most 106 work: choose a shorter one", b.dir, len(longest))
		return errors.Join(err, os.Remove(b.dir))
	}
	if b.lock, err = newLock(b.dir); err != nil {
		return err
	}
	return mountState(b.dir)
}

// Stop removes all pods, stops containerd and removes the directory. It returns
// an error that names what the pods left behind, be it a process, a mount or a
// cgroup, and clears that away, too. A second Stop does nothing.
func (b *Bed) Stop() error {
	if b.stopped {
		return nil
	}
	b.stopped = true
	var errs []error
	if b.containerd != nil {
		errs = append(errs, b.removePods())
		errs = append(errs, b.containerd.terminate(10*time.Second))
	}
	if b.conn != nil {
		errs = append(errs, b.conn.Close())
	}
	found, err := settle(b.dir, 2*time.Second)
	errs = append(errs, err)
	if !found.empty() {
		errs = append(errs, fmt.Errorf("left behind: %s", found))
	}
	errs = append(errs, sweep(b.dir))
	if left := newSockets(b.socketsBefore, b.opts.ContainerdVersion); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left behind: sockets %s", strings.Join(left, ", ")))
	}
	if b.lock != nil {
		errs = append(errs, b.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop the containerd bed in %s: %w", b.dir, err)
	}
	return nil
}

// removePods removes the pods through CRI, for which it starts containerd again
// if a test has killed it.
func (b *Bed) removePods() error {
	ctx, cancel := context.WithTimeout(context.Background(), b.opts.UpTimeout)
	defer cancel()
	if !b.containerd.alive() {
		if err := b.startContainerd(ctx); err != nil {
			return fmt.Errorf("remove the pods: %w", err)
		}
	}
	list, err := b.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("remove the pods: %w", err)
	}
	errs := make([]error, len(list.Items))
	var all sync.WaitGroup
	for i, item := range list.Items {
		all.Go(func() { errs[i] = b.removePod(ctx, item.Id) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Dir is the directory of the bed.
func (b *Bed) Dir() string { return b.dir }

// Socket is containerd's socket, which serves CRI.
func (b *Bed) Socket() string { return filepath.Join(b.dir, "containerd.sock") }

// NRISocket is the socket that NRI plugins connect to.
func (b *Bed) NRISocket() string { return filepath.Join(b.dir, "nri.sock") }

// CDIDir is the one directory in which containerd looks for CDI specs.
func (b *Bed) CDIDir() string { return filepath.Join(b.dir, "cdi") }

// Log is the file that containerd logs to.
func (b *Bed) Log() string { return filepath.Join(b.dir, "containerd.log") }

// Runc is the runc binary that the bed uses.
func (b *Bed) Runc() string { return b.tools.runc }

// RuncRoot is the state directory of runc for the handlers of the bed.
func (b *Bed) RuncRoot() string { return filepath.Join(b.dir, "runc") }

// Bundle is the OCI bundle of a container or, with its pod's id, of a sandbox.
func (b *Bed) Bundle(id string) string {
	return filepath.Join(b.dir, "state", "io.containerd.runtime.v2.task", "k8s.io", id)
}

// Cgroup is the path, in every cgroup hierarchy, below which all pods of the bed
// have theirs.
func (b *Bed) Cgroup() string { return cgroup(b.dir) }

// cgroup is the parent of the cgroups of the pods of the bed in dir.
func cgroup(dir string) string { return "/" + strings.Trim(strings.ReplaceAll(dir, "/", "-"), "-") }

// tail returns the last lines of a file, or nothing if there is none.
func tail(path string, lines int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// tools are the programs that a bed runs.
type tools struct {
	path                   string // for containerd's PATH
	containerd, ctr, pause string
	runc, busybox, standin string
}

// findTools finds the programs, and says how to get those that are missing.
func findTools(opts Options) (tools, error) {
	release, ok := releases[opts.ContainerdVersion]
	if !ok {
		return tools{}, fmt.Errorf("containerd %q: expected \"2.4\" or \"1.7\"", opts.ContainerdVersion)
	}
	dir, err := ToolsDir(opts.Tools)
	if err != nil {
		return tools{}, err
	}
	bin := filepath.Join(dir, release.dir)
	t := tools{
		path:       bin + ":" + dir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		containerd: filepath.Join(bin, "containerd"),
		ctr:        filepath.Join(bin, "ctr"),
		pause:      filepath.Join(dir, "pause"),
		standin:    filepath.Join(bin, "containerd-shim-kata-v2"),
	}
	for _, path := range []string{t.containerd, t.ctr, t.pause, t.standin, filepath.Join(bin, "containerd-shim-runc-v2")} {
		if _, err := os.Stat(path); err != nil {
			return tools{}, fmt.Errorf("%s is missing: run make tools", path)
		}
	}
	if t.runc, err = FindRunc(dir); err != nil {
		return tools{}, err
	}
	if t.busybox, err = findProgram("busybox", "/bin/busybox"); err != nil {
		return tools{}, err
	}
	return t, nil
}

// ToolsDir is where `make tools` put its programs: dir, or build/tools of the
// module that the working directory is in when dir is empty.
func ToolsDir(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "build", "tools"), nil
}

// FindRunc is the runc binary of beds on this machine.
func FindRunc(toolsDir string) (string, error) {
	runc, err := findProgram("runc", "/usr/sbin/runc")
	if err != nil || RaisesLimits() {
		return runc, err
	}
	unraised := filepath.Join(toolsDir, "runc-unraised")
	if _, err := os.Stat(unraised); err != nil {
		return "", fmt.Errorf("%s is missing: run make tools", unraised)
	}
	return unraised, nil
}

// RaisesLimits tells whether containers of a bed can have resource limits above
// this process's own. Without CAP_SYS_RESOURCE they get the lower ones; their
// specs are the same.
func RaisesLimits() bool {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// findProgram looks at PATH and, as root's has no sbin everywhere, at a usual
// place.
func findProgram(name, usual string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	if _, err := os.Stat(usual); err == nil {
		return usual, nil
	}
	return "", fmt.Errorf("%s is missing: run test/setup.sh", name)
}

// moduleRoot is the nearest directory above the working directory with a go.mod.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("look for build/tools: %s is in no Go module: set Options.Tools", start)
		}
	}
}
