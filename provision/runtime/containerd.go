package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// flavour is a way in which containerd is run.
type flavour struct {
	name   string
	dir    string // of the configuration
	socket string
	units  []string // of which the active one is restarted
	binary string
	// rendered tells that config.toml is made from templates at each start.
	rendered bool
}

// flavours are all there are, those first that a plain containerd may lie beside
// without being used.
func (m *machine) flavours() []flavour {
	rancher := func(name string, binary string, units ...string) flavour {
		dir := filepath.Join(m.paths.Rancher, name)
		return flavour{name: name, dir: filepath.Join(dir, "agent/etc/containerd"), socket: m.paths.K3sSocket, units: units, binary: filepath.Join(dir, binary), rendered: true}
	}
	return []flavour{
		rancher("rke2", "bin/containerd", "rke2-server", "rke2-agent"),
		rancher("k3s", "data/current/bin/containerd", "k3s", "k3s-agent"),
		{name: "containerd", dir: m.paths.Containerd, socket: m.paths.Socket, units: []string{"containerd"}, binary: "containerd"},
	}
}

// setup is containerd as it is on this machine.
type setup struct {
	flavour
	config  string // the file that containerd reads
	schema  int
	version string               // as package semver has it
	files   []*tomledit.Document // config and all that it imports, in the order in which they are read
}

// containerd finds out which containerd there is and what it is configured by.
func (m *machine) containerd(ctx context.Context) (*setup, error) {
	c := &setup{}
	for _, f := range m.flavours() {
		if m.Flavour == f.name || m.Flavour == "" && (!f.rendered || m.exists(f.dir)) {
			c.flavour = f
			break
		}
	}
	c.config = filepath.Join(c.dir, "config.toml")
	if m.ContainerdConfig != "" {
		c.config = m.ContainerdConfig
	}
	if m.Socket != "" {
		c.socket = m.Socket
	}
	switch resolved, err := m.resolve(c.config); {
	case err == nil:
		c.config = resolved
	case errors.Is(err, fs.ErrNotExist) && c.rendered:
		return nil, fmt.Errorf("%s is not there, which %s makes when it starts: start it once", c.config, c.name)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("containerd's configuration: %w", err)
	}
	if err := m.readConfig(c); err != nil {
		return nil, fmt.Errorf("containerd's configuration: %w", err)
	}
	if err := m.containerdVersion(ctx, c); err != nil {
		return nil, err
	}
	return c, c.checkSchema()
}

// readConfig reads the configuration; that there is none is no error.
func (m *machine) readConfig(c *setup) (err error) {
	c.files, err = containerdconfig.Read(configFiles{m}, c.config)
	if len(c.files) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c.schema = containerdconfig.Schema(c.files)
	return err
}

// configFiles are the machine's files.
type configFiles struct{ *machine }

func (f configFiles) Read(name string) ([]byte, error) { return f.read(name) }

func (f configFiles) List(dir string) ([]string, error) {
	p, err := f.path(dir)
	if err != nil {
		return nil, err
	}
	return readDir(p)
}

// containerdVersion asks the program that will read the configuration, and if
// that does not say, the one that runs.
func (m *machine) containerdVersion(ctx context.Context, c *setup) error {
	out, err := m.Runner.Run(ctx, "", c.binary, "--version")
	if err == nil {
		if c.version = findVersion(out); c.version != "" {
			return nil
		}
		err = fmt.Errorf("%s --version says %q", c.binary, strings.TrimSpace(out))
	}
	running, criErr := m.cri(c.socket).version(ctx)
	if criErr == nil {
		if c.version = findVersion(running); c.version != "" {
			return nil
		}
		criErr = fmt.Errorf("its version is %q", running)
	}
	err = fmt.Errorf("version of containerd: %w; and on %s: %v: is it installed?", err, c.socket, criErr)
	if out == "" && !m.exists(c.socket) {
		err = plan.Absent(err)
	}
	return err
}

var containerdRelease = lazyregexp.New(`(?:^|\s)v?([12]\.\d+\.\d+)`)

func findVersion(s string) string {
	if found := containerdRelease.FindStringSubmatch(s); found != nil {
		return "v" + found[1]
	}
	return ""
}

// merges tells whether what imported files say is merged with what is there
// (containerd 2.0, pull request 9982). Before that the whole section of a plugin
// takes the place of the one before: a drop-in would wipe CRI's configuration.
func (c *setup) merges() bool { return semver.Compare(c.version, "v2.0.0") >= 0 }

// validates tells whether NRI has the default validator.
func (c *setup) validates() bool { return semver.Compare(c.version, "v2.2.0") >= 0 }

func (c *setup) checkSchema() error {
	if len(c.files) == 0 {
		c.schema = 2
		if c.merges() {
			c.schema = 3 // 4 is of 2.4, which takes 3 as well
		}
		return nil
	}
	switch {
	case semver.Compare(c.version, "v1.7.0") < 0:
		return fmt.Errorf("containerd %s has no NRI: expected 1.7 or later, and 2.2 or later where no pod may start without its devices", c.version)
	case c.schema < 2:
		return fmt.Errorf("%s is of schema 1 (it has no version): expected version 2, 3 or 4: see containerd config migrate", c.config)
	case c.schema > 4:
		return fmt.Errorf("%s is of schema %d, which this kata-qat does not know: expected 2, 3 or 4", c.config, c.schema)
	case c.schema > 2 && !c.merges():
		return fmt.Errorf("%s is of schema %d, which containerd %s does not read: expected 2", c.config, c.schema, c.version)
	}
	return nil
}

func (c *setup) String() string {
	name := "containerd " + strings.TrimPrefix(c.version, "v")
	if c.rendered {
		name += " of " + c.name
	}
	if len(c.files) == 0 {
		return name + " without a configuration"
	}
	return fmt.Sprintf("%s, %s of schema %d", name, c.config, c.schema)
}

// criPlugin is the one of CRI's that has the runtimes.
func (c *setup) criPlugin() string {
	if c.schema == 2 {
		return containerdconfig.CRIv1
	}
	return containerdconfig.CRIv2
}
