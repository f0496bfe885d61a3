//go:build bed

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/provision/runtime"
)

// k3sTables are the tables of k3s' own templates, with what they are rendered from
// for a node with flannel, an image for pauses and a private registry (k3s 1.33,
// pkg/agent/templates). {{ .Dir }} is where its configuration is.
var k3sTables = map[int]string{
	3: `
version = 3
{{ if .Imports }}imports = ["{{ .Dir }}/config-v3.toml.d/*.toml"]
{{ end }}root = "{{ .Dir }}/root"
state = "{{ .Dir }}/state"

[grpc]
  address = "{{ .Dir }}/containerd.sock"

[plugins.'io.containerd.internal.v1.opt']
  path = "{{ .Dir }}/opt"

[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"

[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  device_ownership_from_security_context = false

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  disable_snapshot_annotations = true
  use_local_image_pull = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "rancher/mirrored-pause:3.6"

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{{ .Dir }}/cni"]
  conf_dir = "{{ .Dir }}/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{{ .Dir }}/certs.d"
`,
	2: `
version = 2

[plugins."io.containerd.internal.v1.opt"]
  path = "{{ .Dir }}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  enable_selinux = false
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  sandbox_image = "rancher/mirrored-pause:3.6"

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  disable_snapshot_annotations = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{{ .Dir }}/cni"
  conf_dir = "{{ .Dir }}/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{{ .Dir }}/certs.d"
`,
}

// k3s is a machine with k3s and the containerd that it brings, which is not
// started.
type k3s struct {
	t       *testing.T
	dir     string // what DefaultPaths have below /
	binary  string // containerd
	schema  int
	imports bool
}

// etc is where k3s has containerd's configuration.
func (k *k3s) etc() string { return filepath.Join(k.dir, "rancher/k3s/agent/etc/containerd") }

// render makes the configuration as k3s does when it starts: of the user's template
// with k3s' own under the name "base", or of the latter.
func (k *k3s) render() {
	k.t.Helper()
	name := map[int]string{2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}[k.schema]
	text := `{{ template "base" . }}`
	if b, err := os.ReadFile(filepath.Join(k.etc(), name)); err == nil {
		text = string(b)
	} else if !errors.Is(err, os.ErrNotExist) {
		k.t.Fatal(err)
	}
	tmpl := template.Must(template.New("compiled_template").Parse(text))
	template.Must(tmpl.New("base").Parse(k3sTables[k.schema]))
	var out bytes.Buffer
	if err := tmpl.Execute(&out, map[string]any{"Dir": k.etc(), "Imports": k.imports}); err != nil {
		k.t.Fatal(err)
	}
	k.write("rancher/k3s/agent/etc/containerd/config.toml", out.String(), 0o600)
}

func (k *k3s) write(name, text string, mode os.FileMode) {
	k.t.Helper()
	name = filepath.Join(k.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), mode)); err != nil {
		k.t.Fatal(err)
	}
}

// Run is what the machine's programs do: k3s' containerd is the real one.
func (k *k3s) Run(ctx context.Context, _, name string, args ...string) (string, error) {
	if filepath.Base(name) == "containerd" {
		name = k.binary
	}
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// provisioned writes the files that provision runtime wants, and renders anew.
func (k *k3s) provisioned() {
	k.t.Helper()
	p := runtime.DefaultPaths()
	p.KataDeploy, p.Packages, p.KataEtc = filepath.Join(k.dir, "kata"), nil, filepath.Join(k.dir, "etc")
	p.Config, p.ShimConfig, p.Shims = filepath.Join(k.dir, "config"), filepath.Join(k.dir, "shim.toml"), filepath.Join(k.dir, "bin")
	p.Containerd, p.Rancher, p.State = filepath.Join(k.dir, "none"), filepath.Join(k.dir, "rancher"), filepath.Join(k.dir, "state")
	files, err := runtime.Files(k.t.Context(), runtime.Options{Config: config.Default(), Guest: runtime.KatasGuest, Paths: p, Runner: k})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, f := range files {
		if rel, err := filepath.Rel(k.dir, f.Path); err == nil && f.Target == "" {
			k.write(rel, f.Content, 0o644)
		}
	}
	k.render()
}

// dump is the configuration as containerd itself reads it.
func (k *k3s) dump() map[string]any {
	k.t.Helper()
	cmd := exec.Command(k.binary, "--config", filepath.Join(k.etc(), "config.toml"), "config", "dump")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		k.t.Fatalf("containerd refuses it: %v: %s", err, stderr.String())
	}
	if strings.Contains(stderr.String(), "unknown key") { // it warns, and goes on
		k.t.Errorf("containerd complains: %s", stderr.String())
	}
	var v map[string]any
	if err := toml.Unmarshal(out, &v); err != nil {
		k.t.Fatal(err)
	}
	return v
}

// at goes down tables.
func at(v any, path ...string) any {
	for _, key := range path {
		table, _ := v.(map[string]any)
		v = table[key]
	}
	return v
}

func TestContainerdTakesWhatK3sMakesOfOurs(t *testing.T) {
	for name, tc := range map[string]struct {
		version string
		schema  int
		imports bool
		file    string // of ours
	}{
		"a template for schema 3":    {"", 3, false, "config-v3.toml.tmpl"},
		"a directory that it reads":  {"", 3, true, "config-v3.toml.d/60-kata-qat.toml"},
		"a template for schema 2":    {"", 2, false, "config.toml.tmpl"},
		"a template, containerd 1.7": {"1.7", 2, false, "config.toml.tmpl"},
	} {
		t.Run(name, func(t *testing.T) {
			tools, err := filepath.Abs(filepath.Join("../../build/tools", tc.version))
			if err != nil {
				t.Fatal(err)
			}
			k := &k3s{t: t, dir: t.TempDir(), binary: filepath.Join(tools, "containerd"), schema: tc.schema, imports: tc.imports}
			k.write("kata/runtime-rs/bin/containerd-shim-kata-v2", "#!/bin/sh\necho 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1'\n", 0o755)
			k.write("kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml", "[hypervisor.qemu]\n", 0o644)
			k.write("bin/containerd-shim-kata-qat-v2", "#!/bin/true\n", 0o755)
			k.render()
			before := k.dump()
			k.provisioned()
			if _, err := os.Stat(filepath.Join(k.etc(), tc.file)); err != nil {
				t.Fatal(err)
			}
			after := k.dump()

			cri := "io.containerd.cri.v1.runtime"
			if tc.version == "1.7" {
				cri = "io.containerd.grpc.v1.cri"
			}
			ours := at(after, "plugins", cri, "containerd", "runtimes", "kata-qat")
			want := map[string]any{
				"runtime_type": "io.containerd.kata-qat.v2", "runtime_path": filepath.Join(k.dir, "bin/containerd-shim-kata-qat-v2"), "privileged_without_host_devices": true,
				"pod_annotations": []any{"io.katacontainers.*"}, "options": map[string]any{"ConfigPath": filepath.Join(k.dir, "config/kata-qat/configuration.toml")},
			}
			for key, value := range want {
				if diff := cmp.Diff(value, at(ours, key)); diff != "" {
					t.Errorf("kata-qat's %s (-want +got):\n%s", key, diff)
				}
			}
			nri := at(after, "plugins", "io.containerd.nri.v1.nri")
			if at(nri, "disable") != false {
				t.Errorf("NRI is %v", nri)
			}
			if diff := cmp.Diff([]any{"kata-qat"}, at(nri, "default_validator", "required_plugins")); diff != "" && tc.version == "" {
				t.Errorf("required plugins (-want +got):\n%s", diff)
			}

			// Everything else is what k3s has made of its own.
			delete(at(after, "plugins", cri, "containerd", "runtimes").(map[string]any), "kata-qat")
			for _, v := range []map[string]any{before, after} {
				delete(v["plugins"].(map[string]any), "io.containerd.nri.v1.nri")
				delete(v, "imports") // dump names the files that it has read
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the rest (-before +after):\n%s", diff)
			}

			// Rendered with ours in it, it is what a second run finds.
			k.provisioned()
			if at(k.dump(), "plugins", cri, "containerd", "runtimes", "kata-qat") == nil {
				t.Error("a second run took it out")
			}
		})
	}
}
