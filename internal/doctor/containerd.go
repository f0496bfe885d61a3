package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	nriplugin "github.com/kata-qat/kata-qat/nri-plugin"
)

// containerdConfig is what of containerd's configuration matters here.
type containerdConfig struct {
	file     string // the first of the files, below the root
	files    []string
	schema   int
	nri      map[string]any
	handlers map[string]handler
	err      error
}

// handler is a runtime entry.
type handler struct {
	name, file                   string
	Type                         string   `toml:"runtime_type"`
	Path                         string   `toml:"runtime_path"`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices"`
	PodAnnotations               []string `toml:"pod_annotations"`
	Options                      struct{ ConfigPath string }
}

// configFiles are where distributions of Kubernetes have containerd's
// configuration, by containerd's socket. k3s and RKE2 render theirs.
var configFiles = map[string][]string{
	"/run/containerd/containerd.sock": {"/etc/containerd/config.toml"},
	"/run/k3s/containerd/containerd.sock": {
		"/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
		"/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
	},
}

func (p *patient) containerdFile() string {
	if p.ContainerdConfig != "" {
		return p.ContainerdConfig
	}
	candidates := configFiles[path.Clean(p.Containerd.Address)]
	for _, f := range candidates {
		if _, err := p.stat(f); err == nil {
			return f
		}
	}
	return append(candidates, "/etc/containerd/config.toml")[0]
}

// readContainerd reads the configuration and what it imports.
func (p *patient) readContainerd() (c containerdConfig) {
	c.file = p.containerdFile()
	c.nri, c.handlers = make(map[string]any), make(map[string]handler)
	files, err := containerdconfig.Read(hostFiles{p}, c.file)
	c.schema = containerdconfig.Schema(files)
	for _, f := range files {
		c.files = append(c.files, f.Name())
		if bad := c.take(f); bad != nil && err == nil {
			err = fmt.Errorf("%s: %w", f.Name(), bad)
		}
	}
	c.err = err
	return c
}

// hostFiles are the host's.
type hostFiles struct{ *patient }

func (f hostFiles) Read(name string) ([]byte, error)  { return f.read(name) }
func (f hostFiles) List(dir string) ([]string, error) { return f.list(dir) }

// take lays one file over what is known.
func (c *containerdConfig) take(file *tomledit.Document) error {
	at := func(path ...string) map[string]any {
		v, _ := file.Get(path...)
		below, _ := v.(map[string]any)
		return below
	}
	overlay(c.nri, at("plugins", containerdconfig.NRI))
	for _, plugin := range []string{containerdconfig.CRIv1, containerdconfig.CRIv2} {
		for handlerName, entry := range at(containerdconfig.Runtimes(plugin)...) {
			h := c.handlers[handlerName]
			h.name, h.file = handlerName, file.Name()
			b, err := toml.Marshal(entry)
			if err == nil {
				err = toml.Unmarshal(b, &h)
			}
			if err != nil {
				return fmt.Errorf("runtimes.%s: %s", handlerName, strings.TrimPrefix(err.Error(), "toml: "))
			}
			c.handlers[handlerName] = h
		}
	}
	return nil
}

// table goes down the path; where there is no table it returns nil.
func table(content map[string]any, path ...string) map[string]any {
	for _, key := range path {
		content, _ = content[key].(map[string]any)
	}
	return content
}

func overlay(to, from map[string]any) {
	for k, v := range from {
		below, isTable := v.(map[string]any)
		if was, both := to[k].(map[string]any); isTable && both {
			overlay(was, below)
			continue
		}
		to[k] = v
	}
}

func checkContainerd(ctx context.Context, p *patient) finding {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	if p.client, err = p.Containerd.Client(); err == nil {
		p.containerd, err = p.client.Version(ctx)
	}
	if err != nil {
		return fail("no pod can start", "systemctl restart containerd; journalctl -u containerd -n 20  # or name its socket with --containerd",
			Evidence{Path: p.Containerd.Address, Value: err.Error(), Want: "an answer"})
	}
	return ok(Evidence{Path: p.Containerd.Address, Value: "version " + p.containerd})
}

// olderThan compares with the running containerd. One that does not answer is
// taken for a new one.
func (p *patient) olderThan(major, minor int) bool {
	parts := strings.SplitN(p.containerd, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a < major || a == major && b < minor)
}

func checkContainerdVersion(_ context.Context, p *patient) finding {
	e := Evidence{Path: p.Containerd.Address, Value: "version " + p.containerd, Want: "2.2 or later"}
	switch {
	case p.containerd == "":
		return skip("see containerd")
	case p.olderThan(1, 7):
		return fail("it has no NRI, without which no container gets its devices", "upgrade containerd", e)
	case p.olderThan(2, 2):
		return warn("its NRI has no validators: a container can be created without its devices while the daemon is away", "upgrade containerd", e)
	}
	e.Want = ""
	return ok(e)
}

func checkContainerdConfig(_ context.Context, p *patient) finding {
	p.runtime = p.readContainerd()
	const dump = "containerd config dump >/dev/null"
	switch err := p.runtime.err; {
	case errors.Is(err, fs.ErrNotExist) && len(p.runtime.files) == 0:
		return fail("without one containerd knows no Kata", provisionRuntime+"  # or name it with --containerd-config", Evidence{Path: p.runtime.file, Value: "not there"})
	case err != nil:
		return fail("containerd does not start with it", dump, Evidence{Path: p.runtime.file, Value: err.Error()})
	}
	return ok(Evidence{Path: p.runtime.file, Value: fmt.Sprintf("version %d, %d files, %d handlers", p.runtime.schema, len(p.runtime.files), len(p.runtime.handlers))})
}

// configured tells whether there is a configuration to check.
func (p *patient) configured() bool { return p.runtime.err == nil }

func checkNRI(_ context.Context, p *patient) finding {
	if !p.configured() {
		return skip("see containerd-config")
	}
	disabled, said := p.runtime.nri["disable"].(bool)
	if !said {
		disabled = p.olderThan(2, 0) // containerd 1.7 has it off
	}
	e := Evidence{Path: p.runtime.file + " [plugins.'io.containerd.nri.v1.nri'] disable", Value: fmt.Sprint(disabled), Want: "false"}
	if closed, _ := p.runtime.nri["disable_connections"].(bool); closed {
		e.Path, e.Value = strings.TrimSuffix(e.Path, "disable")+"disable_connections", "true"
		return fail("the daemon cannot connect: no container gets its devices", provisionRuntime, e)
	}
	if disabled {
		return fail("containerd asks no plugin: no container gets its devices", provisionRuntime, e)
	}
	if socket := p.Config.NRI.Socket; p.states["containerd"] == OK {
		if _, err := p.stat(socket); err != nil {
			return fail("containerd serves NRI elsewhere, or was not restarted", "systemctl restart containerd  # or set nri.socket in "+p.ConfigFile, Evidence{Path: socket, Value: err.Error(), Want: "containerd's NRI socket"})
		}
	}
	e.Want = ""
	return ok(e)
}

func checkRequired(_ context.Context, p *patient) finding {
	switch {
	case !p.configured():
		return skip("see containerd-config")
	case p.failed("nri"):
		return skip("see nri")
	case p.olderThan(2, 2):
		return skip("see containerd-version")
	}
	validator := table(p.runtime.nri, "default_validator")
	enabled, _ := validator["enable"].(bool)
	required, _ := validator["required_plugins"].([]any)
	e := Evidence{Path: p.runtime.file + " [plugins.'io.containerd.nri.v1.nri'.default_validator]", Value: fmt.Sprintf("enable = %v, required_plugins = %v", enabled, required)}
	if !enabled || !slices.Contains(required, any(nriplugin.Name)) {
		e.Want = fmt.Sprintf("enable = true, required_plugins = [%s]", nriplugin.Name)
		return fail("while the daemon is away, containers are created without their devices", provisionRuntime, e)
	}
	return ok(e)
}

func checkConnected(_ context.Context, p *patient) finding {
	switch {
	case p.health == nil:
		return skip("see daemon")
	case p.failed("nri") || p.failed("containerd"):
		return skip("see nri and containerd")
	case !p.health.GetRuntimeConnected():
		return fail("no container gets its devices", restartDaemon+"; journalctl -u kata-qat -n 20", Evidence{Path: p.Config.NRI.Socket, Value: cmp.Or(p.health.GetReason(), "not connected"), Want: "connected"})
	}
	return ok(Evidence{Path: p.Config.NRI.Socket, Value: "connected"})
}

// handlersOf are the runtime entries whose pods get devices, by name.
func (p *patient) handlersOf() (all []handler) {
	for _, name := range slices.Sorted(maps.Keys(p.runtime.handlers)) {
		if _, ours := p.Config.ProfileOf(name); ours {
			all = append(all, p.runtime.handlers[name])
		}
	}
	return all
}

// executable says what keeps a program of the host from being started.
func (p *patient) executable(name string) error {
	info, err := p.stat(name)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("no executable file (mode %v)", info.Mode())
	}
	return nil
}

// checkHandlers sees that the handlers that the shim knows are started by it,
// under the name by which it knows which one it serves.
func checkHandlers(_ context.Context, p *patient) finding {
	switch {
	case !p.configured():
		return skip("see containerd-config")
	case p.shim == nil:
		return skip("see shim-config")
	}
	var seen, wrong, weak []Evidence
	for _, name := range slices.Sorted(maps.Keys(p.shim.Runtimes)) {
		h, there := p.runtime.handlers[name]
		entry := fmt.Sprintf("%s runtimes.%s", cmp.Or(h.file, p.runtime.file), name)
		want := fmt.Sprintf("containerd-shim-%s-v2", name)
		_, ours := p.Config.ProfileOf(name)
		switch {
		case !there:
			wrong = append(wrong, Evidence{Path: entry, Value: "not there", Want: "an entry with our shim as runtime_path"})
		case !ours:
			wrong = append(wrong, Evidence{Path: p.ConfigFile + " handlers", Value: fmt.Sprint(p.Config.Handlers), Want: "a pattern for " + name})
		case filepath.Base(h.Path) != want:
			wrong = append(wrong, Evidence{Path: entry + ".runtime_path", Value: cmp.Or(h.Path, "none"), Want: "the path of " + want})
		case p.executable(h.Path) != nil:
			wrong = append(wrong, Evidence{Path: h.Path, Value: p.executable(h.Path).Error(), Want: "our shim"})
		case !h.PrivilegedWithoutHostDevices:
			weak = append(weak, Evidence{Path: entry + ".privileged_without_host_devices", Value: "false", Want: "true"})
		default:
			seen = append(seen, Evidence{Path: entry + ".runtime_path", Value: h.Path})
		}
	}
	switch {
	case len(wrong) > 0:
		return fail("pods of these handlers get no devices at the start of their VM", provisionRuntime, wrong...)
	case len(weak) > 0:
		return warn("a privileged container gets every device of the host, other pods' VFs too", provisionRuntime, weak...)
	}
	return ok(seen...)
}
