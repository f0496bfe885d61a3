//go:build !entry

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimesetup "github.com/kata-qat/kata-qat/provision/runtime"
)

func TestProvisionRuntimeOnAMachineWithoutContainerd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("programs of another root are run by changing the root")
	}
	root := t.TempDir()
	for name, text := range map[string]string{
		"opt/kata/VERSION": "4.1.0",
		"opt/kata/runtime-rs/bin/containerd-shim-kata-v2":                                       "",
		"opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml": "[hypervisor.qemu]\n",
		"usr/local/bin/containerd-shim-kata-qat-v2":                                             "",
		"var/lib/rancher/k3s/agent/etc/containerd/config.toml":                                  "version = 3\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	command := func(args ...string) (code int, stdout, stderr string) {
		return kataQAT(t, append([]string{"--host-root", root, "provision", "runtime"}, args...)...)
	}
	if code, _, stderr := command("--print", "--guest", "kata"); code != exitFailure || !strings.Contains(stderr, "version of containerd") {
		t.Errorf("without a containerd: exit code %d, %s", code, stderr)
	}
	code, out, stderr := command("--dry-run", "--guest", "kata", "-o", "json")
	if code != exitFailure || !strings.Contains(out, "cold_plug_vfio") {
		t.Errorf("--dry-run shows what it can nevertheless: exit code %d, %s\n%s", code, stderr, out)
	}
	for _, args := range [][]string{{"--print", "--undo"}, {"--handler", "runsc"}, {"--kata", "c"}, {"--containerd-of", "docker"}, {"x"}} {
		if code, _, stderr := command(args...); code != exitUsage {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
	}
}

func TestFilesAreWrittenForPeopleAndPrograms(t *testing.T) {
	files := []runtimesetup.File{{Path: "/a", Content: "x = 1\n\x1b\n"}, {Path: "/b", Target: "c"}}
	var text, data bytes.Buffer
	if err := writeFiles(&text, "table", files); err != nil {
		t.Fatal(err)
	}
	if want := "==> /a\nx = 1\n\\u001b\n\n==> /b -> c\n"; text.String() != want {
		t.Errorf("got %q, expected %q", text.String(), want)
	}
	var got []runtimesetup.File
	if err := writeFiles(&data, "json", files); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data.Bytes(), &got); err != nil || len(got) != 2 || got[0] != files[0] {
		t.Errorf("got %s, %v", data.String(), err)
	}
}
