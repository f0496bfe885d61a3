package bed

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// written is the configuration that a bed with the options writes.
func written(t *testing.T, opts Options) map[string]any {
	t.Helper()
	b := &Bed{opts: opts, dir: t.TempDir(), tools: tools{runc: "/usr/sbin/runc"}}
	if err := b.writeConfig(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(b.configPath())
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := toml.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// at follows a path of keys through tables; it is nil where there is none.
func at(config map[string]any, path ...string) any {
	var v any = config
	for _, key := range path {
		t, _ := v.(map[string]any)
		v = t[key]
	}
	return v
}

// criPlugin is the id of the plugin that has the runtimes, by release.
var criPlugin = map[string]string{"2.4": "io.containerd.cri.v1.runtime", "1.7": "io.containerd.grpc.v1.cri"}

func TestRuntimeEntryHasOptionsOfItsShim(t *testing.T) {
	for version, plugin := range criPlugin {
		config := written(t, Options{ContainerdVersion: version, Handlers: map[string]Handler{
			"runc":    {},
			"wrapped": {RuntimeType: RuncType, RuntimePath: "/opt/shim"},
			"kata":    {RuntimeType: KataType, ConfigPath: "/opt/kata's.toml"},
			"bare":    {RuntimeType: KataType},
		}})
		for _, want := range []struct {
			handler, key string
			value        any
		}{
			{"runc", "BinaryName", "/usr/sbin/runc"},
			{"wrapped", "BinaryName", "/usr/sbin/runc"},
			{"kata", "ConfigPath", "/opt/kata's.toml"},
			{"kata", "BinaryName", nil},
			{"bare", "BinaryName", nil},
		} {
			if got := at(config, "plugins", plugin, "containerd", "runtimes", want.handler, "options", want.key); got != want.value {
				t.Errorf("containerd %s, handler %s: option %s is %v, expected %v", version, want.handler, want.key, got, want.value)
			}
		}
		if got := at(config, "plugins", plugin, "containerd", "runtimes", "wrapped", "runtime_path"); got != "/opt/shim" {
			t.Errorf("containerd %s: runtime_path is %v", version, got)
		}
	}
}

func TestRuntimeEntryPassesPodAnnotationsOn(t *testing.T) {
	for version, plugin := range criPlugin {
		config := written(t, Options{ContainerdVersion: version, Handlers: map[string]Handler{
			"runc":    {},
			"wrapped": {PodAnnotations: []string{"io.katacontainers.*", "kata-qat.io/*"}},
			"none":    {PodAnnotations: []string{}},
		}})
		for handler, want := range map[string][]any{
			"runc":    {"io.katacontainers.*"},
			"wrapped": {"io.katacontainers.*", "kata-qat.io/*"},
			"none":    {},
		} {
			got, ok := at(config, "plugins", plugin, "containerd", "runtimes", handler, "pod_annotations").([]any)
			if !ok || !slices.Equal(got, want) {
				t.Errorf("containerd %s, handler %s: pod_annotations are %v, expected %v", version, handler, got, want)
			}
		}
	}
}

func TestConfigurationStaysInTheDirectory(t *testing.T) {
	for version := range releases {
		config := written(t, Options{ContainerdVersion: version})
		if imports, ok := config["imports"].([]any); !ok || len(imports) != 0 {
			t.Errorf("containerd %s: imports are %v, expected an empty list, which keeps the host's configuration out", version, config["imports"])
		}
		for _, path := range [][]string{
			{"root"}, {"state"}, {"grpc", "address"}, {"ttrpc", "address"},
			{"plugins", "io.containerd.nri.v1.nri", "socket_path"}, {"plugins", "io.containerd.nri.v1.nri", "plugin_path"},
		} {
			if got, _ := at(config, path...).(string); !strings.HasPrefix(got, os.TempDir()) {
				t.Errorf("containerd %s: %v is %q, expected a path of the bed's directory", version, path, got)
			}
		}
	}
}

func TestOldContainerdCannotRequirePlugins(t *testing.T) {
	_, err := config17(&Bed{opts: Options{RequiredPlugins: []string{"kata-qat"}}})
	if err == nil || !strings.Contains(err.Error(), "use 2.4") {
		t.Errorf("containerd 1.7 with required plugins: %v, expected an error that says to use 2.4", err)
	}
}
