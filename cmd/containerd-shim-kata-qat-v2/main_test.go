package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/shim"
)

// node is a daemon that gives every sandbox one device, or an error.
type node struct {
	nodev1.NodeService
	err error
}

func (n *node) PrepareSandbox(_ context.Context, r *nodev1.PrepareSandboxRequest) (*nodev1.PrepareSandboxResponse, error) {
	if n.err != nil {
		return nil, n.err
	}
	return &nodev1.PrepareSandboxResponse{
		Daemon:      api.Daemon(),
		Devices:     []*nodev1.DeviceNode{{Path: "/dev/vfio/41", Major: 511, Minor: 1, Mode: 0o660}},
		Annotations: map[string]string{"asked": r.GetNamespace() + "/" + r.GetName() + " " + r.GetRuntimeHandler() + " " + r.GetAnnotations()["kata-qat.io/x"]},
	}, nil
}

// stage is a bundle, a real shim that tells how it was called, and our shim.
type stage struct {
	bundle, binary, config, real string
}

const sandbox = `{"annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "1",
	"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-name": "tls", "kata-qat.io/x": "y"}}`

func newStage(t *testing.T, service *node) stage {
	t.Helper()
	dir := t.TempDir()
	s := stage{bundle: filepath.Join(dir, "bundle"), binary: filepath.Join(dir, "containerd-shim-kata-qat-v2"), config: filepath.Join(dir, "shim.toml"), real: filepath.Join(dir, "real")}
	build := exec.Command("go", "build", "-o", s.binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Mkdir(s.bundle, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "node.sock")
	if service != nil {
		server, err := api.Listen(socket, service)
		if err != nil {
			t.Fatal(err)
		}
		go server.Serve(context.Background())
		t.Cleanup(func() { server.Shutdown(context.Background()) })
	}
	s.write(t, s.real, "#!/bin/sh\necho \"args: $0 $*\"\necho \"env: $MARK\"\necho \"stdin: $(cat)\"\necho \"devices: $(grep -c /dev/vfio/41 config.json)\"\nexit 3\n", 0o755)
	s.write(t, s.config, fmt.Sprintf("socket = %q\n[runtimes]\nkata-qat = %q\n", socket, s.real), 0o644)
	s.write(t, filepath.Join(s.bundle, "config.json"), sandbox, 0o644)
	return s
}

func (s stage) write(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// run calls the shim as containerd does and returns what it printed.
func (s stage) run(args ...string) (string, int) {
	cmd := exec.Command(s.binary, args...)
	cmd.Dir = s.bundle
	cmd.Env = append(os.Environ(), shim.ConfigEnv+"="+s.config, "MARK=kept")
	cmd.Stdin = strings.NewReader("options")
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

// The real shim gets arguments, environment and stdin as they were, and its exit
// code is ours: it is the same process.
func TestTheRealShimTakesOver(t *testing.T) {
	s := newStage(t, &node{})
	for _, tc := range []struct {
		args    []string
		devices string
	}{
		{[]string{"-info"}, "0"},
		{[]string{"-namespace", "k8s.io", "-id", "1", "-bundle", "/x", "delete"}, "0"},
		{[]string{"-namespace", "k8s.io", "-address", "/a", "-id", "1", "start"}, "1"},
		{[]string{"-namespace", "k8s.io", "-address", "/a", "-id", "1", "start"}, "1"}, // containerd tries again
	} {
		out, code := s.run(tc.args...)
		want := fmt.Sprintf("args: %s %s\nenv: kept\nstdin: options\ndevices: %s\n", s.real, strings.Join(tc.args, " "), tc.devices)
		if out != want || code != 3 {
			t.Errorf("%v: exit code %d, printed\n%s\nexpected\n%s", tc.args, code, out, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(s.bundle, "config.json"))
	if err != nil || !strings.Contains(string(b), `"asked":"default/tls kata-qat y"`) {
		t.Errorf("the daemon was not told who asks: %s, %v", b, err)
	}
}

func TestWhatIsNoSandboxIsPassedOnWithoutAsking(t *testing.T) {
	s := newStage(t, nil) // nobody to ask
	for name, spec := range map[string]string{
		"a container of a pod": strings.Replace(sandbox, `"sandbox"`, `"container"`, 1),
		"a container of ctr":   `{}`,
	} {
		s.write(t, filepath.Join(s.bundle, "config.json"), spec, 0o644)
		if out, code := s.run("start"); code != 3 || !strings.Contains(out, "args:") {
			t.Errorf("%s: exit code %d: %s", name, code, out)
		}
	}
}

func TestFailuresAreOneLineAndChangeNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		service *node
		spoil   func(t *testing.T, s stage)
		says    string
	}{
		"no daemon":        {says: "is kata-qat nri-plugin running"},
		"a refusal":        {service: &node{err: status.Error(codes.FailedPrecondition, "pod default/tls: nothing is free")}, says: "sandbox of pod default/tls: pod default/tls: nothing is free"},
		"no configuration": {spoil: func(t *testing.T, s stage) { os.Remove(s.config) }, says: "the shim's configuration"},
		"an unknown key":   {spoil: func(t *testing.T, s stage) { s.write(t, s.config, "sockt = \"x\"\n", 0o644) }, says: `shim.toml:1: unknown key "sockt"`},
		"itself for the real shim": {spoil: func(t *testing.T, s stage) {
			s.write(t, s.config, fmt.Sprintf("[runtimes]\nkata-qat = %q\n", s.binary), 0o644)
		}, says: "is this shim itself"},
		"a relative path": {spoil: func(t *testing.T, s stage) { s.write(t, s.config, "[runtimes]\nkata-qat = \"shim\"\n", 0o644) }, says: "expected an absolute path"},
		"no such program": {spoil: func(t *testing.T, s stage) { os.Remove(s.real) }, says: "is Kata installed there?"},
		"no executable":   {spoil: func(t *testing.T, s stage) { os.Chmod(s.real, 0o644) }, says: "is no executable file"},
		"a config.json that is none": {spoil: func(t *testing.T, s stage) {
			s.write(t, filepath.Join(s.bundle, "config.json"), "{", 0o644)
		}, says: "is not an OCI spec"},
		"no config.json": {spoil: func(t *testing.T, s stage) { os.Remove(filepath.Join(s.bundle, "config.json")) }, says: "config.json: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, tc.service)
			if tc.spoil != nil {
				tc.spoil(t, s)
			}
			before, _ := os.ReadFile(filepath.Join(s.bundle, "config.json"))
			out, code := s.run("-id", "1", "start")
			if code != 1 || !strings.Contains(out, tc.says) || strings.Count(out, "\n") != 1 {
				t.Errorf("exit code %d, printed %q, expected 1 and one line with %q", code, out, tc.says)
			}
			after, _ := os.ReadFile(filepath.Join(s.bundle, "config.json"))
			if string(before) != string(after) {
				t.Error("config.json changed")
			}
			if files, _ := filepath.Glob(filepath.Join(s.bundle, "*kata-qat*")); files != nil {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

func TestTheBinaryIsSmall(t *testing.T) {
	s := newStage(t, nil)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", s.binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(s.binary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 10<<20 {
		t.Errorf("the binary has %d bytes, expected at most 10 MiB", info.Size())
	}
}
