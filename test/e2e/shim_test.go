//go:build bed

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/shim"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

const (
	standin = "containerd-shim-kata-v2"
	runc    = "containerd-shim-runc-v2"
)

// behindOurShim starts a node whose handler kata-qat is a real shim behind ours.
func behindOurShim(t *testing.T, version, real string, change ...func(*simnode.Options)) *simnode.Node {
	t.Helper()
	return startNode(t, append([]func(*simnode.Options){func(o *simnode.Options) {
		handler := bed.Handler{RuntimeType: bed.RuncType}
		if real == standin {
			handler = bed.Handler{RuntimeType: bed.KataType, ConfigPath: "/opt/kata/configuration.toml"}
		}
		o.Bed.Handlers = map[string]bed.Handler{"kata-qat": handler, "runc": {RuntimeType: bed.RuncType}}
		o.Bed.ContainerdVersion = version
		if version == "1.7" { // has no validator to require a plugin
			o.Bed.RequiredPlugins = nil
		}
		o.Shims = map[string]string{"kata-qat": real}
	}}, change...)...)
}

func onEveryRuntime(t *testing.T, f func(t *testing.T, version, real string)) {
	for _, version := range []string{"2.4", "1.7"} {
		for _, real := range []string{standin, runc} {
			t.Run("containerd "+version+", "+real, func(t *testing.T) { f(t, version, real) })
		}
	}
}

// A pod lives its whole life behind our shim: its sandbox has the VFs of all its
// containers when the real shim sees it first, and everything that CRI can do
// with a container works.
func TestTheSandboxHasThePodsVFs(t *testing.T) {
	onEveryRuntime(t, func(t *testing.T, version, real string) {
		n := behindOurShim(t, version, real)
		d := startDaemon(t, n)
		pod := runPod(t, n, bed.PodSpec{Name: "tls", Annotations: map[string]string{
			"kata-qat.io/request.main": "cy=2", "kata-qat.io/request.side": "dc=1", "kata-qat.io/note": "a <b> & c",
		}})
		sandbox, err := pod.OCISpec()
		if err != nil {
			t.Fatal(err)
		}
		groups := []string{"/dev/vfio/100", "/dev/vfio/101", "/dev/vfio/200"}
		if diff := cmp.Diff(groups, nodes(sandbox)); diff != "" {
			t.Errorf("nodes of the sandbox (-want +got):\n%s", diff)
		}
		if real == standin {
			event, err := n.ShimCreate(pod.ID)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range event.Devices {
				got = append(got, d.Path)
			}
			if diff := cmp.Diff(groups, got); diff != "" {
				t.Errorf("nodes that the Kata shim got with the sandbox (-want +got):\n%s", diff)
			}
		}

		main := runContainer(t, pod, bed.ContainerSpec{Command: []string{"/bin/sh", "-c", "echo started; trap 'exit 7' TERM; while :; do sleep 1000 & wait; done"}})
		side := runContainer(t, pod, bed.ContainerSpec{Name: "side"})
		if diff := cmp.Diff([]string{"/dev/vfio/100", "/dev/vfio/101", "/dev/vfio/vfio"}, nodes(ociSpec(t, main))); diff != "" {
			t.Errorf("nodes of the container (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"/dev/vfio/200", "/dev/vfio/vfio"}, nodes(ociSpec(t, side))); diff != "" {
			t.Errorf("nodes of the other container (-want +got):\n%s", diff)
		}
		out, err := n.CLI("dump", "--diff", "default/tls").CombinedOutput()
		if err != nil {
			t.Fatalf("kata-qat dump --diff: %v: %s", err, out)
		}
		mustContain(t, "dump --diff", string(out), "(sandbox of default/tls)", "config.json.kata-qat-orig", "(default/tls/main)", "(default/tls/side)", "/dev/vfio/200")

		if err := n.KillContainerd(); err != nil {
			t.Fatal(err)
		}
		if err := n.RestartContainerd(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.WaitLog(t.Context(), simnode.Synchronized, 2); err != nil {
			t.Fatal(err)
		}
		if got := inside(t, main, "ls /dev/vfio"); got != "100\n101\nvfio" {
			t.Errorf("inside after containerd's restart: %q", got)
		}
		if _, err := main.Stats(t.Context()); err != nil {
			t.Errorf("stats: %v", err)
		}
		if log, err := os.ReadFile(main.LogPath()); err != nil || !strings.Contains(string(log), "started") {
			t.Errorf("log %q, %v", log, err)
		}
		if err := main.Stop(t.Context(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if status, err := main.Status(t.Context()); err != nil || status.GetExitCode() != 7 {
			t.Errorf("exit code %d, %v, expected 7", status.GetExitCode(), err)
		}
		remove(t, pod)
		if _, err := os.Stat(n.Bundle(pod.ID)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the sandbox's bundle is still there: %v", err)
		}
		if by := held(t, n); len(by) != 0 {
			t.Errorf("still held: %v", by)
		}
	})
}

func TestASandboxWithoutVFsIsNotTouched(t *testing.T) {
	n := behindOurShim(t, "2.4", standin)
	startDaemon(t, n)
	pod := runPod(t, n, bed.PodSpec{})
	entries, err := filepath.Glob(filepath.Join(n.Bundle(pod.ID), "*kata-qat*"))
	if err != nil || len(entries) != 0 {
		t.Errorf("files of ours in the bundle: %v, %v", entries, err)
	}
	remove(t, pod)
}

// A sandbox keeps its VFs over a crash of the daemon before any container says
// that it has them.
func TestASandboxKeepsItsVFsOverACrash(t *testing.T) {
	n := behindOurShim(t, "2.4", standin)
	d := startDaemon(t, n)
	first := runPod(t, n, asking("cy=10"))
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, n)
	if _, err := n.RunPod(t.Context(), asking("cy=10")); err == nil {
		t.Fatal("VFs that a sandbox has were given away")
	} else {
		mustContain(t, "error", err.Error(), "cy", first.Spec.Name)
	}
	ctr := runContainer(t, first, bed.ContainerSpec{})
	sandbox, err := first.OCISpec()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := nodes(ociSpec(t, ctr)), append(nodes(sandbox), "/dev/vfio/vfio"); !slices.Equal(got, want) {
		t.Errorf("the container has %v, its sandbox %v", got, want)
	}
	remove(t, first)
	remove(t, runPod(t, n, asking("cy=10")))
}

// What goes wrong fails the pod with a line that says what to do, and leaves
// nothing behind.
func TestASandboxThatCannotBePreparedFails(t *testing.T) {
	onEveryRuntime(t, func(t *testing.T, version, real string) {
		n := behindOurShim(t, version, real)
		fails := func(what string, says ...string) {
			t.Helper()
			start := time.Now()
			spec := asking("cy=2")
			if strings.HasPrefix(what, "refused") {
				spec = asking("cy=99")
			}
			_, err := n.RunPod(t.Context(), spec)
			if err == nil {
				t.Fatalf("%s: the pod was started", what)
			}
			mustContain(t, what, err.Error(), says...)
			if took := time.Since(start); took > 8*time.Second {
				t.Errorf("%s: it took %v to fail", what, took)
			}
			for _, id := range bundles(t, n) {
				t.Errorf("%s: bundle %s was left", what, id)
			}
		}
		fails("no daemon", "node.sock", "is kata-qat nri-plugin running")
		d := startDaemon(t, n)
		fails("refused", "default/pod-", "at most 16")
		if err := d.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		fails("slow daemon", "did not answer within 2s")
		if err := d.Kill(); err != nil {
			t.Fatal(err)
		}
		startDaemon(t, n)

		good := filepath.Join(filepath.Dir(filepath.Dir(n.Binary)), "build", "tools", real)
		if version == "1.7" {
			good = filepath.Join(filepath.Dir(good), "1.7", real)
		}
		plain := filepath.Join(t.TempDir(), "shim")
		if err := os.WriteFile(plain, []byte("#!/bin/true\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for what, tc := range map[string]struct {
			runtimes map[string]string
			says     string
		}{
			"real shim missing":        {map[string]string{"kata-qat": "/nonexistent/shim"}, "no such file or directory"},
			"real shim not executable": {map[string]string{"kata-qat": plain}, "is no executable file"},
			"another handler's":        {map[string]string{"kata": good}, `names no shim for runtime handler "kata-qat"`},
		} {
			if err := n.ConfigureShim(map[string]any{"runtimes": tc.runtimes}); err != nil {
				t.Fatal(err)
			}
			fails(what, tc.says, n.ShimConfig())
		}
		if err := n.ConfigureShim(map[string]any{"runtimes": map[string]string{"kata-qat": good}}); err != nil {
			t.Fatal(err)
		}
		pod := runPod(t, n, asking("cy=16"))
		remove(t, pod)
	})
}

func bundles(t *testing.T, n *simnode.Node) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(n.Bundle("x")))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

// A hundred pods at once for the VFs of thirty-two.
func TestAHundredPodsAtOnce(t *testing.T) {
	machine := qattest.Node{}
	for i, address := range []qat.Address{"0000:6b:00.0", "0000:70:00.0", "0000:e8:00.0", "0000:ed:00.0"} {
		machine.PFs = append(machine.PFs, qattest.PF{
			Address: address, Family: "4xxx", NUMA: i / 2, Services: "sym;asym", State: qat.StateUp,
			Group: i + 1, VFs: 16, VFDriver: "vfio-pci", FirstGroup: 100 * (i + 1),
		})
	}
	n := behindOurShim(t, "2.4", standin, func(o *simnode.Options) { o.Machine = &machine })
	startDaemon(t, n)

	var mu sync.Mutex
	var winners []*bed.Pod
	var losers []string
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for i := range 100 {
		wg.Go(func() {
			spec := asking("cy=2")
			spec.Name = fmt.Sprintf("many-%d", i)
			pod, err := n.RunPod(ctx, spec)
			if err == nil {
				_, err = pod.RunContainer(ctx, bed.ContainerSpec{})
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				losers = append(losers, err.Error())
			} else {
				winners = append(winners, pod)
			}
		})
	}
	wg.Wait()
	if len(winners) != 32 || len(losers) != 68 {
		t.Errorf("%d pods run and %d failed, expected 32 and 68", len(winners), len(losers))
	}
	for _, l := range losers {
		if !strings.Contains(l, "qat.intel.com/cy") || !strings.Contains(l, "free") {
			t.Errorf("a loser does not say what is missing: %s", l)
		}
	}
	holder := map[string]string{}
	for _, pod := range winners {
		s, err := pod.OCISpec()
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range nodes(s) {
			if other, twice := holder[node]; twice {
				t.Errorf("%s is in the sandboxes of %s and %s", node, other, pod.Spec.Name)
			}
			holder[node] = pod.Spec.Name
		}
	}
	if len(holder) != 64 {
		t.Errorf("%d VFs are held, expected 64", len(holder))
	}
	for _, pod := range winners {
		remove(t, pod)
	}
	for range 4 { // all of them are free again
		remove(t, runPod(t, n, asking("cy=16")))
	}
	if as := assignments(t, n); len(as) != 0 {
		t.Errorf("the daemon still has %d assignments", len(as))
	}
}

func assignments(t *testing.T, n *simnode.Node) []*nodev1.Assignment {
	t.Helper()
	c, err := api.Dial(t.Context(), n.APISocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.Assignments(t.Context(), &nodev1.AssignmentsRequest{Client: api.Self()})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetAssignments()
}

func TestTheAPIIsRootsAlone(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	if info, err := os.Stat(n.APISocket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v, expected 0600", info, err)
	}
	// Even with a socket that everybody may connect to, the peer is asked.
	if err := os.Chmod(n.APISocket(), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{n.RunDir(), filepath.Dir(n.RunDir())} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(n.Binary), "containerd-shim-kata-qat-v2"), "start")
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "shim.toml")
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(config, fmt.Sprintf("socket = %q\n[runtimes]\nkata-qat = \"/bin/true\"\n", n.APISocket()))
	write(filepath.Join(dir, "config.json"), `{"annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "1",
		"io.kubernetes.cri.sandbox-namespace": "default", "io.kubernetes.cri.sandbox-name": "thief", "kata-qat.io/request.main": "cy=1"}}`)
	cmd.Dir, cmd.Env = dir, []string{shim.ConfigEnv + "=" + config}
	cmd.Args[0] = "containerd-shim-kata-qat-v2"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("another user was served: %s", out)
	}
	mustContain(t, "error", string(out), "it serves root only")
	if as := assignments(t, n); len(as) != 0 {
		t.Errorf("another user got %v", as)
	}
}

// CDI specs let a runtime find the VFs without the shim.
func TestCDISpecsAreKeptInStep(t *testing.T) {
	n := startNode(t, func(o *simnode.Options) {
		o.Config = map[string]any{"cdi": map[string]any{"dir": "/var/run/cdi", "remove_on_stop": true}}
	})
	d := startDaemon(t, n)
	dir := filepath.Join(n.Tree.Root, "var/run/cdi")
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	mustContain(t, "cy", read("qat.intel.com-cy.json"), `"qat.intel.com/cy"`, `"0000:6b:00.1"`, `/dev/vfio/100`)
	mustContain(t, "dc", read("qat.intel.com-dc.json"), `"0000:e8:00.1"`, `/dev/vfio/200`)
	if err := n.Tree.Rebind("0000:6b:00.1", ""); err != nil {
		t.Fatal(err)
	}
	// A simulated kernel sends no uevents.
	if err := d.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := d.WaitLog(t.Context(), "devices read again", 1); err != nil {
		t.Fatal(err)
	}
	if text := read("qat.intel.com-cy.json"); strings.Contains(text, `"0000:6b:00.1"`) {
		t.Error("a VF that is no longer on vfio is still in the CDI spec")
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 0 {
		t.Errorf("left after the stop: %v", files)
	}
}
