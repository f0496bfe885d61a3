package doctor

import (
	"context"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/shim"
)

// checkShim reads the shim's configuration as the shim does, but below the root.
func checkShim(_ context.Context, p *patient) finding {
	file, err := p.path(shim.ConfigFile)
	if err != nil {
		return unknown(shim.ConfigFile, err)
	}
	c, err := shim.LoadConfig(file)
	if err != nil {
		return fail("without it no sandbox starts", provisionRuntime, Evidence{Path: shim.ConfigFile, Value: strings.ReplaceAll(err.Error(), file, shim.ConfigFile)})
	}
	var seen, wrong []Evidence
	if socket := filepath.Join(p.Config.RunDir, api.SocketName); path.Clean(c.Socket) != socket {
		wrong = append(wrong, Evidence{Path: shim.ConfigFile + " socket", Value: c.Socket, Want: socket})
	}
	if len(c.Runtimes) == 0 {
		wrong = append(wrong, Evidence{Path: shim.ConfigFile + " [runtimes]", Value: "empty", Want: "Kata's own shim for each handler"})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		e := Evidence{Path: fmt.Sprintf("%s runtimes.%s", shim.ConfigFile, name), Value: c.Runtimes[name]}
		if err := p.executable(c.Runtimes[name]); err != nil {
			e.Value, e.Want = fmt.Sprintf("%s: %v", c.Runtimes[name], err), "Kata's own shim"
			wrong = append(wrong, e)
			continue
		}
		seen = append(seen, e)
	}
	// What is in it counts for the checks of handlers all the same.
	p.shim = c
	if len(wrong) > 0 {
		return fail("pods of these handlers do not start", provisionRuntime, wrong...)
	}
	return ok(seen...)
}

// kataConfig is the configuration of Kata for one handler.
type kataConfig struct {
	handler handler
	profile edits.Profile
	files   []kataFile // the base first, then the drop-ins in their order
	strange []Evidence // what is among the drop-ins and is none
	err     error
}

type kataFile struct {
	name    string
	content map[string]any
}

func (k *kataConfig) base() string { return k.files[0].name }

// find returns the value of a key, and the file that has it: the last of those
// that do, as Kata reads them (domain of the key: base, then config.d by name).
func (k *kataConfig) find(key string, tables ...string) (any, string) {
	for _, f := range slices.Backward(k.files) {
		if v, there := table(f.content, tables...)[key]; there {
			return v, f.name
		}
	}
	return nil, k.base()
}

// hypervisors are those that any of the files has a table for.
func (k *kataConfig) hypervisors() []string {
	all := make(map[string]bool)
	for _, f := range k.files {
		for name := range table(f.content, "hypervisor") {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// kataBase is the file that Kata reads for a handler: the one that containerd's
// entry names, or the first of those that Kata looks for by itself, beside its
// shim where kata-deploy has it.
func (p *patient) kataBase(h handler) string {
	if h.Options.ConfigPath != "" {
		return h.Options.ConfigPath
	}
	candidates := []string{"/etc/kata-containers/configuration.toml", "/usr/share/defaults/kata-containers/configuration.toml"}
	if p.shim != nil {
		if real := p.shim.Runtimes[h.name]; strings.HasPrefix(real, "/opt/kata/") {
			dir := "/opt/kata/share/defaults/kata-containers"
			if strings.Contains(real, "/runtime-rs/") {
				dir += "/runtime-rs"
			}
			candidates = append(candidates, dir+"/configuration.toml")
		}
	}
	for _, c := range candidates {
		if _, err := p.stat(c); err == nil {
			return c
		}
	}
	return candidates[0]
}

func (p *patient) readKata(h handler) kataConfig {
	k := kataConfig{handler: h, files: []kataFile{{name: p.kataBase(h)}}}
	k.profile, _ = p.Config.ProfileOf(h.name)
	if k.err = p.decodeKata(&k.files[0]); k.err != nil {
		return k
	}
	// It is beside the file that a link leads to (Kata 4.1).
	dir := path.Join(path.Dir(p.resolve(k.base())), "config.d")
	names, _ := p.list(dir) // most have none
	for _, name := range names {
		f := kataFile{name: path.Join(dir, name)}
		info, err := p.stat(f.name)
		switch {
		case err == nil && !info.Mode().IsRegular():
			k.strange = append(k.strange, Evidence{Path: f.name, Value: "no regular file", Want: "*.toml"})
		case path.Ext(name) != ".toml" || strings.HasPrefix(name, "."):
			k.strange = append(k.strange, Evidence{Path: f.name, Value: "a leftover?", Want: "*.toml"})
		default:
			if err := p.decodeKata(&f); err != nil {
				k.strange = append(k.strange, Evidence{Path: f.name, Value: err.Error(), Want: "valid TOML"})
				continue
			}
			k.files = append(k.files, f)
		}
	}
	return k
}

func (p *patient) decodeKata(f *kataFile) error {
	b, err := p.read(f.name)
	if err != nil {
		return err
	}
	if err := toml.Unmarshal(b, &f.content); err != nil {
		return fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "toml: "))
	}
	return nil
}

// checkKataConfig reads the configuration of the handlers that the shim serves,
// or, without one, of all that get devices.
func checkKataConfig(_ context.Context, p *patient) finding {
	if !p.configured() {
		return skip("see containerd-config")
	}
	var seen, wrong []Evidence
	for _, h := range p.handlersOf() {
		if p.shim != nil && p.shim.Runtimes[h.name] == "" {
			continue
		}
		k := p.readKata(h)
		e := Evidence{Path: k.base(), Value: fmt.Sprintf("of handler %s, with %d drop-ins", h.name, len(k.files)-1)}
		if k.err != nil {
			wrong = append(wrong, Evidence{Path: k.base(), Value: k.err.Error(), Want: "Kata's configuration for handler " + h.name})
			continue
		}
		p.katas = append(p.katas, k)
		seen = append(seen, e)
	}
	switch {
	case len(wrong) > 0:
		return fail("pods of these handlers do not start", provisionRuntime, wrong...)
	case len(seen) == 0:
		return fail("containerd has no handler whose pods get devices", provisionRuntime, Evidence{Path: p.runtime.file, Value: fmt.Sprintf("%d handlers", len(p.runtime.handlers)), Want: "one that matches " + strings.Join(p.Config.Handlers, ", ")})
	}
	return ok(seen...)
}

// checkKataDropIns finds files that Kata takes for drop-ins: it reads every file
// in the directory, whatever it is called.
func checkKataDropIns(_ context.Context, p *patient) finding {
	if len(p.katas) == 0 {
		return skip("see kata-config")
	}
	var seen, wrong []Evidence
	for i := range p.katas {
		k := &p.katas[i]
		for _, f := range k.files[1:] {
			seen = append(seen, Evidence{Path: f.name, Value: "valid"})
		}
		wrong = append(wrong, k.strange...)
	}
	if len(wrong) > 0 {
		return fail("Kata reads every file of the directory, and starts no VM with one that it does not understand", "mv '"+wrong[0].Path+"' /root/", wrong...)
	}
	return ok(seen...)
}

const rootPort = "root-port"

// port is a value of cold_plug_vfio or hot_plug_vfio; "" is off.
func port(v any) string {
	s, _ := v.(string)
	if s == "no-port" {
		return ""
	}
	return s
}

// checkColdPlug wants the one setting with which devices reach a VM. With both
// plugs off Kata drops those of a sandbox without a word (seen with Kata 4.1).
func checkColdPlug(_ context.Context, p *patient) finding {
	if len(p.katas) == 0 {
		return skip("see kata-config")
	}
	result := ok()
	for i := range p.katas {
		k := &p.katas[i]
		for _, hypervisor := range k.hypervisors() {
			v, file := k.find("cold_plug_vfio", "hypervisor", hypervisor)
			h, _ := k.find("hot_plug_vfio", "hypervisor", hypervisor)
			cold, hot := port(v), port(h)
			e := Evidence{
				Path:  fmt.Sprintf("%s [hypervisor.%s] cold_plug_vfio", file, hypervisor),
				Value: fmt.Sprintf("%q, and hot_plug_vfio %q (handler %s)", cold, hot, k.handler.name), Want: fmt.Sprintf("%q", rootPort),
			}
			var one finding
			switch {
			case cold == rootPort && hot == "":
				e.Value, e.Want = fmt.Sprintf("%q (handler %s)", cold, k.handler.name), ""
				one = ok(e)
			case cold != "" && hot != "":
				one = fail("Kata refuses both at once", provisionRuntime, e)
			case cold != "":
				one = fail("runtime-rs takes no other port", provisionRuntime, e)
			case hot != "":
				one = warn("hot-plug: only Kata's Go runtime has it, and it needs no shim", provisionRuntime, e)
			default:
				one = fail("both plugs are off: Kata drops a sandbox's devices without a word", provisionRuntime, e)
			}
			result = join(result, one)
		}
	}
	return result
}

// join adds one finding to what was found before.
func join(a, b finding) finding {
	if a.state == b.state {
		a.evidence = append(a.evidence, b.evidence...)
		return a
	}
	return worse(a, b)
}

// checkKataProfile sees that the guest treats a VF as the handler's profile says.
func checkKataProfile(_ context.Context, p *patient) finding {
	if len(p.katas) == 0 {
		return skip("see kata-config")
	}
	result := ok()
	for i := range p.katas {
		k := &p.katas[i]
		mode, file := k.find("vfio_mode", "runtime")
		if mode == nil {
			mode = "guest-kernel" // Kata's default
		}
		e := Evidence{Path: file + " [runtime] vfio_mode", Value: fmt.Sprintf("%q (handler %s)", mode, k.handler.name)}
		if mode != string(k.profile) {
			e.Want = fmt.Sprintf("%q, the handler's profile", k.profile)
			result = join(result, fail("the container does not find its VF where it looks for it", provisionRuntime, e))
			continue
		}
		result = join(result, ok(e))
		if k.profile != edits.ProfileVFIO {
			continue
		}
		for _, hypervisor := range k.hypervisors() {
			v, file := k.find("enable_iommu", "hypervisor", hypervisor)
			if on, _ := v.(bool); !on {
				result = join(result, fail("profile vfio needs an IOMMU in the guest", provisionRuntime,
					Evidence{Path: fmt.Sprintf("%s [hypervisor.%s] enable_iommu", file, hypervisor), Value: "false", Want: "true"}))
			}
		}
	}
	return result
}
