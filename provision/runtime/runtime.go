// Package runtime holds the steps that have Kata and containerd use what the host
// and the guest were made into: a configuration directory of Kata for each of our
// runtime handlers, our shim before Kata's, containerd's entry for the handler,
// and NRI with our plugin required. It edits no file of Kata's, and of
// containerd's no more than it must.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// Options say what is to be made of a machine. The zero value, but for Config, is
// what most want.
type Options struct {
	Root   string // where the machine's root is
	Config *config.Config
	// Handlers are the runtime handlers; by default DefaultHandler. The profile
	// of each is what Config says.
	Handlers []string
	// Kata is the runtime to use, or "" for runtime-rs if it is there.
	Kata Language
	// Base is the configuration of Kata to build upon, "" for that of its
	// installation.
	Base string
	// Guest is the directory of a guest that provision guest made; "" for the
	// one of the handler's profile; KatasGuest for what Kata's own
	// configuration names.
	Guest string
	// Planned are guests that are to be made before the steps are applied, by
	// profile, for a plan that is shown before; nil for one of which nothing is
	// known yet. A profile that is not in it has the guest that is there.
	Planned map[edits.Profile]*guest.Manifest
	// Flavour is who runs containerd, by name; "" to find out.
	Flavour string
	// ContainerdConfig and Socket are containerd's, if they are not where they
	// are on all such machines.
	ContainerdConfig, Socket string
	// Programs is a directory of this process, as an image has it, with our
	// programs, which are installed on the machine first; "" where they are there.
	Programs string
	// NotRequired lets containers be created while our NRI plugin is not there.
	NotRequired bool
	// Replace overwrites what somebody else has written for the same handler.
	Replace bool
	// NoRestart writes the files and leaves it to the caller to restart
	// containerd, as in an image that is being built.
	NoRestart bool
	// HealthTimeout is how long containerd may take to come back; 0 for
	// DefaultHealthTimeout.
	HealthTimeout time.Duration
	// Paths are where things are; nil for DefaultPaths.
	Paths *Paths
	// Runner runs programs of the machine; nil for a host.Runner of Root.
	Runner Runner
}

const (
	// DefaultHandler is the runtime handler of a machine with one.
	DefaultHandler = "kata-qat"
	// KatasGuest as Options.Guest leaves Kata's own kernel and root in place.
	KatasGuest = "kata"
	// DefaultHealthTimeout is how long containerd may take to come back. k3s
	// starts a whole node before it.
	DefaultHealthTimeout = 2 * time.Minute
)

// Runner runs a program of the machine and returns what it printed.
type Runner interface {
	Run(ctx context.Context, dir, name string, args ...string) (string, error)
}

// Paths are where things are on the machine.
type Paths struct {
	KataDeploy string   // prefix of kata-deploy and of Kata's releases
	Packages   []string // prefixes of other installations
	KataEtc    string   // the administrator's configuration of these
	Config     string   // our configuration directories of Kata, one a handler
	ShimConfig string
	Shims      string // of our shim, under the name of each handler
	Containerd string // containerd's configuration directory
	Rancher    string // k3s and RKE2
	Socket     string // containerd's
	K3sSocket  string // that of k3s and RKE2
	Guest      string // what provision guest made, by profile
	State      string // what must outlive a boot
}

// DefaultPaths are those of every machine.
func DefaultPaths() *Paths {
	return &Paths{
		KataDeploy: "/opt/kata",
		Packages:   []string{"/usr/local", "/usr"},
		KataEtc:    "/etc/kata-containers",
		Config:     "/etc/kata-qat/kata",
		ShimConfig: "/etc/kata-qat/shim.toml",
		Shims:      "/usr/local/bin",
		Containerd: "/etc/containerd",
		Rancher:    "/var/lib/rancher",
		Socket:     "/run/containerd/containerd.sock",
		K3sSocket:  "/run/k3s/containerd/containerd.sock",
		Guest:      guest.DefaultOut,
		State:      plan.Directory,
	}
}

// handler is a runtime handler and what it is to have.
type handler struct {
	name    string
	profile edits.Profile
}

var handlerName = lazyregexp.New(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Steps returns the steps that have Kata and containerd serve the handlers, in
// their order.
func Steps(o Options) ([]plan.Step, error) {
	m, err := newMachine(o)
	if err != nil {
		return nil, err
	}
	steps := []plan.Step{&kataStep{m}, &kataConfig{m}, &shimStep{m}, &containerdStep{machine: m}}
	if o.Programs != "" {
		steps = append([]plan.Step{&programsStep{m}}, steps...)
	}
	return steps, nil
}

// machine is what the steps see of the machine.
type machine struct {
	Options
	paths    *Paths
	handlers []handler
}

func newMachine(o Options) (*machine, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Runner == nil {
		o.Runner = host.NewRunner(o.Root)
	}
	if o.HealthTimeout == 0 {
		o.HealthTimeout = DefaultHealthTimeout
	}
	if len(o.Handlers) == 0 {
		o.Handlers = []string{DefaultHandler}
	}
	m := &machine{Options: o, paths: o.Paths}
	if m.paths == nil {
		m.paths = DefaultPaths()
	}
	switch o.Kata {
	case "", Go, Rust:
	default:
		return nil, fmt.Errorf("kata runtime %q: expected %q or %q", o.Kata, Rust, Go)
	}
	if o.Flavour != "" && !slices.ContainsFunc(m.flavours(), func(f flavour) bool { return f.name == o.Flavour }) {
		return nil, fmt.Errorf("containerd of %q: expected containerd, k3s or rke2", o.Flavour)
	}
	for i, name := range o.Handlers {
		if !handlerName.MatchString(name) {
			return nil, fmt.Errorf("runtime handler %q: expected lower-case letters, digits and dashes, as in a RuntimeClass", name)
		}
		if slices.Contains(o.Handlers[:i], name) {
			return nil, fmt.Errorf("runtime handler %q is named twice", name)
		}
		profile, ok := o.Config.ProfileOf(name)
		if !ok {
			return nil, fmt.Errorf("runtime handler %q is none of handlers (%q) in %s: the daemon would give its pods no device: add it there", name, o.Config.Handlers, config.Path)
		}
		m.handlers = append(m.handlers, handler{name, profile})
	}
	return m, nil
}

// File is a file as it is wanted.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content,omitempty"`
	Target  string `json:"target,omitempty"` // of a link
}

// Files returns all files that the steps see to, as they are wanted, whether they
// are so or not. It changes nothing.
func Files(ctx context.Context, o Options) ([]File, error) {
	m, err := newMachine(o)
	if err != nil {
		return nil, err
	}
	var all []File
	for _, wanted := range []func(context.Context) ([]file, error){m.kataFiles, m.shimFiles, m.containerdFiles} {
		files, err := wanted(ctx)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if !f.gone {
				all = append(all, File{Path: f.name, Content: f.content, Target: f.target})
			}
		}
	}
	return all, nil
}

// path is where a file of the machine is for this process. Links are followed as
// they would be by a process of the machine.
func (m *machine) path(name string) (string, error) {
	if filepath.Clean(m.Root) == "/" {
		return name, nil
	}
	return securejoin.SecureJoin(m.Root, name)
}

// resolve follows links and returns the path on the machine that they lead to.
func (m *machine) resolve(name string) (string, error) {
	p, err := m.path(name)
	if err != nil {
		return "", err
	}
	if p, err = filepath.EvalSymlinks(p); err != nil {
		return "", err
	}
	if filepath.Clean(m.Root) == "/" {
		return p, nil
	}
	root, err := filepath.EvalSymlinks(m.Root)
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(root, p)
	return filepath.Join("/", rel), err
}

// read returns the content of a file of the machine.
func (m *machine) read(name string) ([]byte, error) {
	p, err := m.path(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(p)
}

// exists tells whether the machine has a file; what cannot be looked at is not
// there.
func (m *machine) exists(name string) bool {
	p, err := m.path(name)
	if err != nil {
		return false
	}
	_, err = os.Stat(p)
	return err == nil
}

// executable returns an error that says so if a file is no program.
func (m *machine) executable(name string) error {
	p, err := m.path(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is not there", name)
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is no executable file", name)
	}
	return nil
}
