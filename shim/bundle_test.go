package shim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/api/oneshot"
)

// sandboxSpec has fields that no version of the runtime spec knows, numbers
// that a float would spoil, and characters that Go escapes by default.
const sandboxSpec = `{
  "ociVersion": "1.3.0",
  "process": {"args": ["/pause"], "futureField": {"a": [1, 2, {"b": null}]}, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 18446744073709551615, "soft": 9007199254740993}]},
  "hostname": "a<b>&c",
  "linux": {
    "resources": {"devices": [{"allow": false, "access": "rwm"}], "unified": {"x": "y"}},
    "namespaces": [{"type": "pid"}],
    "somethingNew": 1e400
  },
  "vm": {"hypervisor": {"path": "/opt/x"}},
  "annotations": {
    "io.kubernetes.cri.container-type": "sandbox",
    "io.kubernetes.cri.sandbox-id": "f00",
    "io.kubernetes.cri.sandbox-namespace": "default",
    "io.kubernetes.cri.sandbox-name": "tls",
    "io.kubernetes.cri.sandbox-uid": "1-2-3",
    "kata-qat.io/request.c0": "cy=2",
    "other": "<&>"
  }
}`

func answer() *oneshot.Edits {
	return &oneshot.Edits{
		Devices: []oneshot.Device{
			{Path: "/dev/vfio/41", Major: 511, Minor: 1, Mode: 0o660},
			{Path: "/dev/vfio/42", Major: 511, Minor: 2, Mode: 0o660},
		},
		Annotations: map[string]string{"io.katacontainers.config.agent.kernel_modules": "qat_c62xvf"},
	}
}

func newBundle(t *testing.T, config string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, configJSON), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func rewriteBundle(t *testing.T, dir string) error {
	t.Helper()
	b, err := openBundle(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b.rewrite(answer())
}

// generic reads JSON without losing a digit.
func generic(t *testing.T, file string) map[string]any {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := json.NewDecoder(f)
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRewriteAddsTheAnswerAndKeepsEverythingElse(t *testing.T) {
	dir := newBundle(t, sandboxSpec)
	want := generic(t, filepath.Join(dir, configJSON))
	if err := rewriteBundle(t, dir); err != nil {
		t.Fatal(err)
	}
	got := generic(t, filepath.Join(dir, configJSON))

	linux := got["linux"].(map[string]any)
	var nodes []string
	for _, d := range linux["devices"].([]any) {
		nodes = append(nodes, d.(map[string]any)["path"].(string))
	}
	if diff := cmp.Diff([]string{"/dev/vfio/41", "/dev/vfio/42"}, nodes); diff != "" {
		t.Errorf("linux.devices (-want +got):\n%s", diff)
	}
	rules := linux["resources"].(map[string]any)["devices"].([]any)
	if len(rules) != 3 {
		t.Errorf("%d device cgroup rules, expected the one that was there and one a node: %v", len(rules), rules)
	}
	annotations := got["annotations"].(map[string]any)
	if m := annotations["io.katacontainers.config.agent.kernel_modules"]; m != "qat_c62xvf" {
		t.Errorf("kernel_modules annotation is %v", m)
	}

	// Taken back, it is what it was.
	delete(linux, "devices")
	linux["resources"].(map[string]any)["devices"] = rules[:1]
	delete(annotations, "io.katacontainers.config.agent.kernel_modules")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("other fields changed (-before +after):\n%s", diff)
	}
	original, err := os.ReadFile(filepath.Join(dir, Original))
	if err != nil || string(original) != sandboxSpec {
		t.Errorf("the original was not kept byte for byte: %v", err)
	}
	if diff := cmp.Diff([]string{configJSON, Original}, names(t, dir)); diff != "" {
		t.Errorf("files of the bundle (-want +got):\n%s", diff)
	}
	if info, _ := os.Stat(filepath.Join(dir, configJSON)); info.Mode().Perm() != 0o600 {
		t.Errorf("mode of config.json is %v, expected that of the original, 0600", info.Mode())
	}
}

func TestRewriteTwiceGivesTheSame(t *testing.T) {
	dir := newBundle(t, sandboxSpec)
	for range 2 {
		if err := rewriteBundle(t, dir); err != nil {
			t.Fatal(err)
		}
	}
	devices := generic(t, filepath.Join(dir, configJSON))["linux"].(map[string]any)["devices"].([]any)
	if len(devices) != 2 {
		t.Errorf("%d devices after a retry, expected 2", len(devices))
	}
}

// A shim that was killed between keeping the original and the rename left both
// names on one file.
func TestRewriteAfterACrashInTheMiddle(t *testing.T) {
	dir := newBundle(t, sandboxSpec)
	if err := os.Link(filepath.Join(dir, configJSON), filepath.Join(dir, Original)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, pending), []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rewriteBundle(t, dir); err != nil {
		t.Fatal(err)
	}
	if n := len(generic(t, filepath.Join(dir, configJSON))["linux"].(map[string]any)["devices"].([]any)); n != 2 {
		t.Errorf("%d devices, expected 2", n)
	}
	if original, _ := os.ReadFile(filepath.Join(dir, Original)); string(original) != sandboxSpec {
		t.Error("the original is no longer what containerd wrote")
	}
}

func TestRewriteOnAFullDiskLeavesTheBundleAsItWas(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("mounting a small tmpfs needs root: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	config := strings.Replace(sandboxSpec, `"a<b>&c"`, `"`+strings.Repeat("x", 3000)+`"`, 1)
	if err := os.WriteFile(filepath.Join(dir, configJSON), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rest"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	err := rewriteBundle(t, dir)
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v, expected that there is no space left for this bundle", err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, configJSON)); string(got) != config {
		t.Error("config.json changed")
	}
	if diff := cmp.Diff([]string{configJSON, "rest"}, names(t, dir)); diff != "" {
		t.Errorf("files of the bundle (-want +got):\n%s", diff)
	}
}

func TestABundleThatIsNone(t *testing.T) {
	for name, tc := range map[string]struct{ config, want string }{
		"not JSON":           {"{", "is not an OCI spec"},
		"not an object":      {"[1]", "is not an OCI spec"},
		"broken annotations": {`{"annotations": {"a": 1}}`, "annotations of config.json"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newBundle(t, tc.config)
			_, err := openBundle(dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v, expected %q and the bundle", err, tc.want)
			}
		})
	}
	if _, err := openBundle(t.TempDir()); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("a bundle without config.json: error %v", err)
	}
}

func TestADeviceOfAnotherKindAtTheNodesPathIsRefused(t *testing.T) {
	dir := newBundle(t, strings.Replace(sandboxSpec, `"linux": {`, `"linux": {"devices": [{"path": "/dev/vfio/41", "type": "c", "major": 1, "minor": 3}],`, 1))
	before, _ := os.ReadFile(filepath.Join(dir, configJSON))
	if err := rewriteBundle(t, dir); err == nil || !strings.Contains(err.Error(), "/dev/vfio/41") {
		t.Errorf("error %v, expected one that names /dev/vfio/41", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, configJSON)); string(after) != string(before) {
		t.Error("config.json changed")
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
