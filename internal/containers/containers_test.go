package containers_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
)

var (
	sandboxID = containerstest.ID("5a")
	appID     = containerstest.ID("a9")
)

const spec = `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.container-name":"app","io.kubernetes.cri.sandbox-name":"p",
	"io.kubernetes.cri.sandbox-namespace":"default","io.kubernetes.cri.sandbox-uid":"u","io.kubernetes.cri.sandbox-id":"SANDBOX"},
	"linux":{"devices":[{"path":"/dev/vfio/7","type":"c","major":511,"minor":7}]}}`

func list(t *testing.T, n containers.Node) ([]containers.Container, error) {
	t.Helper()
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var all []containers.Container
	for c, err := range client.All(t.Context()) {
		if err != nil {
			return all, err
		}
		all = append(all, c)
	}
	return all, nil
}

func TestRecordsOfAPod(t *testing.T) {
	s := containerstest.Serve(t, containerstest.Root(t),
		containerstest.Container(appID, sandboxID, "default", "p", "app", spec),
		containerstest.Sandbox(sandboxID, "default", "p", "{}"))
	all, err := list(t, s.Node())
	if err != nil || len(all) != 2 {
		t.Fatalf("%d containers, %v, expected 2", len(all), err)
	}
	containers.Sort(all)
	sandbox, app := all[0], all[1]
	if sandbox.Type != containers.Sandbox || sandbox.Handler != "kata-qat" || sandbox.Name != "" || sandbox.String() != "5a0000000000 (sandbox of default/p)" {
		t.Errorf("sandbox: %+v", sandbox)
	}
	if app.Type != containers.Workload || app.SandboxID != sandboxID || app.PodUID != "uid-of-p" || app.Runtime != "io.containerd.kata-qat.v2" || app.String() != "a90000000000 (default/p/app)" {
		t.Errorf("container: %+v", app)
	}
	f, err := app.Facts()
	if err != nil || len(f.Linux.Devices) != 1 || f.Linux.Devices[0].Minor != 7 {
		t.Errorf("facts: %+v, %v", f, err)
	}
}

func TestStoppingEarlyEndsTheCall(t *testing.T) {
	s := containerstest.Serve(t, containerstest.Root(t), containerstest.Sandbox(sandboxID, "default", "p", "{}"), containerstest.Sandbox(appID, "default", "q", "{}"))
	client, err := s.Node().Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	n := 0
	for range client.All(t.Context()) {
		n++
		break
	}
	for range client.All(t.Context()) {
		n++
	}
	if n != 3 || s.Connections.Load() != 1 {
		t.Errorf("%d containers over %d connections, expected 3 over 1", n, s.Connections.Load())
	}
}

func TestContainerdThatCannotBeAsked(t *testing.T) {
	missing := containerstest.NodeAt(containerstest.Root(t))
	noSocket := containerstest.NodeAt(containerstest.Root(t))
	path := filepath.Join(noSocket.Root, noSocket.Address)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]containers.Node{"connect: no such file or directory": missing, "connect: connection refused": noSocket} {
		_, err := list(t, n)
		var e *containers.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "rpc error") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, expected a containers.Error that says %q", err, want)
		}
	}
}

func TestContainerdThatIsTooSlow(t *testing.T) {
	s := containerstest.Serve(t, containerstest.Root(t))
	client, err := s.Node().Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for _, err := range client.All(ctx) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, expected that the deadline is exceeded", err)
		}
		return
	}
	t.Error("no error, expected that the deadline is exceeded")
}

func TestBundleSaysWhoseItIs(t *testing.T) {
	root := containerstest.Root(t)
	dir := containerstest.WriteBundle(t, root, appID, "config.json", strings.Replace(spec, "SANDBOX", sandboxID, 1))
	containerstest.WriteBundle(t, root, sandboxID, "shim-binary-path", "/opt/kata/bin/containerd-shim-kata-qat-v2\n")
	c, err := containers.ReadBundle(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.String() != "a90000000000 (default/p/app)" || c.PodUID != "u" || c.SandboxID != sandboxID || c.Runtime != "io.containerd.kata-qat.v2" || c.Source != containers.FromBundle {
		t.Errorf("%+v", c)
	}
}

// An annotation is as good as who wrote it: it must not lead out of the
// directory of bundles.
func TestBundleOfAHostileSandboxID(t *testing.T) {
	root := containerstest.Root(t)
	dir := containerstest.WriteBundle(t, root, appID, "config.json", strings.Replace(spec, "SANDBOX", "../../../outside", 1))
	outside := filepath.Join(filepath.Dir(dir), "../../../outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "shim-binary-path"), []byte("containerd-shim-evil-v2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := containers.ReadBundle(dir); err != nil || c.Runtime != "" {
		t.Errorf("%+v, %v: expected no runtime", c, err)
	}
}

func TestRunningContainersHaveABundle(t *testing.T) {
	n := containerstest.NodeAt(containerstest.Root(t))
	if _, known := n.Bundles().Running(appID); known {
		t.Error("known without a directory of bundles")
	}
	containerstest.WriteBundle(t, n.Root, appID, "config.json", "{}")
	for id, want := range map[string]bool{appID: true, sandboxID: false, "../k8s.io": false} {
		if running, known := n.Bundles().Running(id); running != want || !known {
			t.Errorf("%s: running %v, known %v, expected %v", id, running, known, want)
		}
	}
}

func TestSpecFromBundle(t *testing.T) {
	n := containerstest.NodeAt(containerstest.Root(t))
	dir := containerstest.WriteBundle(t, n.Root, appID, "config.json", spec)
	c := containers.Container{ID: appID, Source: containers.FromContainerd, Spec: []byte("{}")}
	if _, err := c.Facts(); err != nil {
		t.Fatal(err)
	}
	if ok, err := n.Bundles().Spec(&c); !ok || err != nil || c.Bundle != dir || c.Source != containers.FromBundle {
		t.Errorf("%v, %v, %+v", ok, err, c)
	}
	if f, err := c.Facts(); err != nil || len(f.Linux.Devices) != 1 {
		t.Errorf("facts %+v, %v: expected those of the bundle", f, err)
	}
	gone := containers.Container{ID: sandboxID, Source: containers.FromContainerd}
	if ok, err := n.Bundles().Spec(&gone); ok || err != nil || gone.Source != containers.FromContainerd {
		t.Errorf("%v, %v, %+v: expected it to be left alone", ok, err, gone)
	}
	if _, err := n.Bundles().Spec(&containers.Container{ID: "../" + appID}); err == nil {
		t.Error("an id with a path in it: expected an error")
	}
}

func TestOriginal(t *testing.T) {
	dir := containerstest.WriteBundle(t, containerstest.Root(t), appID, "config.json", "{}")
	if b, err := containers.Original(dir); b != nil || err != nil {
		t.Errorf("%s, %v: expected none", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, containers.OriginalFile), []byte(`{"a":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := containers.Original(dir); string(b) != `{"a":1}` || err != nil {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := containers.Original(""); b != nil || err != nil {
		t.Errorf("no bundle: %s, %v: expected none", b, err)
	}
}
