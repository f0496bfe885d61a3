package bed

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pelletier/go-toml/v2"
)

// table is a table of TOML.
type table map[string]any

// release is what differs between the releases of containerd.
type release struct {
	dir    string // of its programs, below that of all tools
	config func(*Bed) (table, error)
}

var releases = map[string]release{
	"2.4": {dir: ".", config: config2},
	"1.7": {dir: "1.7", config: config17},
}

func (b *Bed) configPath() string { return filepath.Join(b.dir, "config.toml") }

func (b *Bed) writeConfig() error {
	config, err := releases[b.opts.ContainerdVersion].config(b)
	if err != nil {
		return err
	}
	content, err := toml.Marshal(config)
	if err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	for _, dir := range []string{b.CDIDir(), b.path("cni"), b.path("s"), b.path("logs")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if b.opts.CNI != "" {
		if err := os.WriteFile(b.path("cni", "10-bed.conflist"), []byte(b.opts.CNI), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(b.configPath(), content, 0o600)
}

func (b *Bed) path(parts ...string) string {
	return filepath.Join(append([]string{b.dir}, parts...)...)
}

// config2 is the configuration of containerd 2 in the schema of 2.0, which all
// of 2 take.
func config2(b *Bed) (table, error) {
	validator := table{"enable": true, "required_plugins": append([]string{}, b.opts.RequiredPlugins...)}
	nri := b.nri()
	nri["default_validator"] = validator
	runtime := b.criRuntime()
	runtime["cdi_spec_dirs"] = []string{b.CDIDir()}
	runtime["cni"] = table{"bin_dirs": []string{cniBin}, "conf_dir": b.path("cni")}
	runtime["containerd"] = table{"default_runtime_name": "runc", "runtimes": b.runtimes()}
	config := b.base(3, table{
		"io.containerd.cri.v1.images": table{
			"snapshotter":   snapshotter(b.dir),
			"pinned_images": table{"sandbox": Pause},
		},
		"io.containerd.cri.v1.runtime":           runtime,
		"io.containerd.nri.v1.nri":               nri,
		"io.containerd.shim.v1.manager":          table{"socket_dir": b.path("s")},
		"io.containerd.image-verifier.v1.bindir": table{"bin_dir": b.path("image-verifier")},
	})
	return config, nil
}

// config17 is the configuration of containerd 1.7.
func config17(b *Bed) (table, error) {
	if len(b.opts.RequiredPlugins) > 0 {
		return nil, fmt.Errorf("required NRI plugins %q: containerd 1.7 cannot require any: use 2.4", b.opts.RequiredPlugins)
	}
	runtime := b.criRuntime()
	runtime["enable_cdi"] = true
	runtime["cdi_spec_dirs"] = []string{b.CDIDir()}
	runtime["sandbox_image"] = Pause
	runtime["cni"] = table{"bin_dir": cniBin, "conf_dir": b.path("cni")}
	runtime["containerd"] = table{"snapshotter": snapshotter(b.dir), "default_runtime_name": "runc", "runtimes": b.runtimes()}
	return b.base(2, table{
		"io.containerd.grpc.v1.cri": runtime,
		"io.containerd.nri.v1.nri":  b.nri(),
	}), nil
}

// cniBin is where Debian's containernetworking-plugins has the CNI plugins.
const cniBin = "/usr/lib/cni"

// base is what the configurations of all releases have in common. It imports
// nothing, so that the containerd of the host has no part in it.
func (b *Bed) base(schema int, plugins table) table {
	plugins["io.containerd.internal.v1.opt"] = table{"path": b.path("opt")}
	return table{
		"version": schema,
		"root":    b.path("root"),
		"state":   stateDir(b.dir),
		"imports": []string{},
		"grpc":    table{"address": b.Socket()},
		"ttrpc":   table{"address": b.Socket() + ".ttrpc"},
		"disabled_plugins": []string{
			"io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
			"io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
		},
		"plugins": plugins,
	}
}

func (b *Bed) criRuntime() table {
	return table{
		"disable_apparmor": true,
		// Without CAP_SYS_RESOURCE, as in many CI machines, a lower
		// oom_score_adj than that of containerd kills every sandbox.
		"restrict_oom_score_adj":       true,
		"netns_mounts_under_state_dir": true,
	}
}

func (b *Bed) nri() table {
	return table{
		"disable":                     false,
		"disable_connections":         false,
		"socket_path":                 b.NRISocket(),
		"plugin_path":                 b.path("nri", "plugins"),
		"plugin_config_path":          b.path("nri", "conf.d"),
		"plugin_registration_timeout": "5s",
		"plugin_request_timeout":      b.opts.NRIRequestTimeout.String(),
	}
}

func (b *Bed) runtimes() table {
	all := table{}
	for name, h := range b.opts.Handlers {
		all[name] = b.runtimeEntry(h)
	}
	return all
}

// runtimeEntry writes a handler as Kata's documentation writes Kata's, and with
// runc's options where runc's shim serves it.
func (b *Bed) runtimeEntry(h Handler) table {
	entry := table{
		"runtime_type":                    h.RuntimeType,
		"privileged_without_host_devices": true,
		"pod_annotations":                 h.PodAnnotations,
		"container_annotations":           []string{"io.katacontainers.*"},
	}
	if h.PodAnnotations == nil {
		entry["pod_annotations"] = []string{"io.katacontainers.*"}
	}
	if h.RuntimeType == "" {
		entry["runtime_type"] = RuncType
	}
	if h.RuntimePath != "" {
		entry["runtime_path"] = h.RuntimePath
	}
	switch {
	case h.ConfigPath != "":
		entry["options"] = table{"ConfigPath": h.ConfigPath}
	case entry["runtime_type"] == RuncType:
		entry["options"] = table{"BinaryName": b.tools.runc, "Root": b.RuncRoot()}
	}
	return entry
}

// overlayMagic is OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const overlayMagic = 0x794c7630

// snapshotter is one that works in dir: overlayfs does not lie on overlayfs, on
// which a bed in a container finds itself.
func snapshotter(dir string) string {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err == nil && fs.Type == overlayMagic {
		return "native"
	}
	return "overlayfs"
}
