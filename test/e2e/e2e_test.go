//go:build bed

// Package e2e tests kata-qat as a node sees it: a real containerd, the real
// daemon, pods over CRI. Only the devices are simulated.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// Handlers are all runc: what a container got can then be looked at from inside.
var handlers = map[string]bed.Handler{
	"kata": {RuntimeType: bed.RuncType}, "kata-qat": {RuntimeType: bed.RuncType}, "runc": {RuntimeType: bed.RuncType},
}

// startNode starts a node whose containerd creates no container without our
// plugin.
func startNode(t *testing.T, change ...func(*simnode.Options)) *simnode.Node {
	t.Helper()
	o := simnode.Options{Bed: bed.Options{Handlers: handlers, RequiredPlugins: []string{"kata-qat"}}}
	for _, f := range change {
		f(&o)
	}
	n, err := simnode.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("containerd's log is in %s until now", n.Log())
		}
		if err := n.Stop(); err != nil {
			t.Errorf("the node left something behind: %v", err)
		}
	})
	return n
}

// startDaemon starts the daemon; it is stopped with the test if it still runs.
func startDaemon(t *testing.T, n *simnode.Node) *simnode.Daemon {
	t.Helper()
	d, err := n.StartDaemon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
		if d.Running() {
			if err := d.Stop(); err != nil {
				t.Errorf("stop the daemon: %v", err)
			}
		}
	})
	return d
}

// asking is a pod whose container "main" asks for VFs by annotation.
func asking(request string) bed.PodSpec {
	return bed.PodSpec{HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": request}}
}

func runPod(t *testing.T, n *simnode.Node, spec bed.PodSpec) *bed.Pod {
	t.Helper()
	spec.HostNetwork = true
	p, err := n.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func runContainer(t *testing.T, p *bed.Pod, spec bed.ContainerSpec) *bed.Container {
	t.Helper()
	c, err := p.RunContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func remove(t *testing.T, p *bed.Pod) {
	t.Helper()
	if err := p.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func inside(t *testing.T, c *bed.Container, script string) string {
	t.Helper()
	r, err := c.Exec(t.Context(), "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("%s: exit code %d: %s%s", script, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// refused creates a container that must not come to be, and returns the error.
func refused(t *testing.T, p *bed.Pod, spec bed.ContainerSpec) string {
	t.Helper()
	c, err := p.CreateContainer(t.Context(), spec)
	if err == nil {
		s, _ := c.OCISpec()
		t.Fatalf("the container was created, with devices %v", nodes(s))
	}
	return err.Error()
}

// nodes are the VFIO nodes of a spec.
func nodes(s *specs.Spec) []string {
	var out []string
	if s == nil || s.Linux == nil {
		return nil
	}
	for _, d := range s.Linux.Devices {
		if strings.HasPrefix(d.Path, "/dev/vfio/") {
			out = append(out, d.Path)
		}
	}
	slices.Sort(out)
	return out
}

func ociSpec(t *testing.T, c *bed.Container) *specs.Spec {
	t.Helper()
	s, err := c.OCISpec()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// held are the addresses of the VFs that somebody holds, by holder.
func held(t *testing.T, n *simnode.Node) map[string][]string {
	t.Helper()
	out, err := n.CLI("devices", "-o", "json").Output()
	if err != nil {
		t.Fatalf("kata-qat devices: %v", err)
	}
	var report struct {
		PFs []struct {
			VFs []struct {
				Address string
				Holders []struct{ Namespace, Pod, Container string }
			}
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	by := map[string][]string{}
	for _, pf := range report.PFs {
		for _, vf := range pf.VFs {
			for _, h := range vf.Holders {
				by[h.Namespace+"/"+h.Pod] = append(by[h.Namespace+"/"+h.Pod], vf.Address)
			}
		}
	}
	return by
}

// fails runs a command that must fail with one line, and returns that.
func fails(t *testing.T, n *simnode.Node, args ...string) string {
	t.Helper()
	cmd := n.CLI(args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil {
		t.Fatalf("kata-qat %s succeeded", strings.Join(args, " "))
	}
	line := strings.TrimSpace(stderr.String())
	if strings.Contains(line, "\n") {
		t.Errorf("kata-qat %s: more than one line:\n%s", strings.Join(args, " "), line)
	}
	return line
}

func mustContain(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: %q does not say %q", what, text, p)
		}
	}
}

func TestAContainerGetsItsVFs(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	for i, handler := range []string{"kata", "kata-qat"} {
		t.Run("handler "+handler, func(t *testing.T) {
			spec := asking("cy=2,dc=1")
			spec.Handler, spec.Name = handler, fmt.Sprintf("tls-%d", i)
			pod := runPod(t, n, spec)
			ctr := runContainer(t, pod, bed.ContainerSpec{User: &bed.User{UID: 1000, GID: 2000}})

			vfs := held(t, n)["default/"+spec.Name]
			if len(vfs) != 3 {
				t.Fatalf("it holds %v, expected three VFs", vfs)
			}
			s := ociSpec(t, ctr)
			if got := nodes(s); len(got) != 4 || got[3] != "/dev/vfio/vfio" {
				t.Errorf("nodes of the spec: %v", got)
			}
			for _, l := range s.Process.Rlimits {
				if want := uint64(3*16+64) << 20; l.Type == "RLIMIT_MEMLOCK" && (l.Soft != want || l.Hard != want) {
					t.Errorf("memlock %d/%d, expected %d", l.Soft, l.Hard, want)
				}
			}
			mustContain(t, "node modes", inside(t, ctr, "stat -c '%a %u:%g' /dev/vfio/*"), "660 1000:2000")
			mustContain(t, "environment", inside(t, ctr, "env"), "PCIDEVICE_QAT_INTEL_COM_CY="+vfs[0]+","+vfs[1], "PCIDEVICE_QAT_INTEL_COM_DC="+vfs[2])
			mustContain(t, "configuration of the third", inside(t, ctr, "cat /etc/4xxxvf_dev2.conf"), "ServicesEnabled", "= dc")
			if out := inside(t, ctr, "echo >> /etc/4xxxvf_dev0.conf 2>&1 || echo refused"); !strings.HasSuffix(out, "refused") {
				t.Errorf("the container can write its configuration: %s", out)
			}
			if !bed.RaisesLimits() {
				t.Log("this machine's root may not raise limits: memlock inside was not looked at")
			} else if got := inside(t, ctr, "ulimit -l"); got != "114688" {
				t.Errorf("ulimit -l says %s KiB, expected 114688", got)
			}
			remove(t, pod)
			if by := held(t, n); len(by) != 0 {
				t.Errorf("still held after the pod was removed: %v", by)
			}
		})
	}
}

// A kubelet puts the nodes that a device plugin names into the container's
// devices; init containers, which PodResources does not list, get them too.
func TestNodesThatKubeletGaveAreRecognised(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	pod := runPod(t, n, bed.PodSpec{Name: "plugin"})
	given := bed.ContainerSpec{Devices: []bed.Device{{Host: n.Tree.Root + "/dev/vfio/105", Container: "/dev/vfio/105"}}}
	for _, name := range []string{"init", "main"} {
		given.Name = name
		ctr := runContainer(t, pod, given)
		if diff := cmp.Diff([]string{"/dev/vfio/105", "/dev/vfio/vfio"}, nodes(ociSpec(t, ctr))); diff != "" {
			t.Errorf("%s: nodes (-want +got):\n%s", name, diff)
		}
		mustContain(t, name, inside(t, ctr, "cat /etc/4xxxvf_dev0.conf"), "sym;asym")
	}
	other := runPod(t, n, bed.PodSpec{Name: "thief"})
	mustContain(t, "the same VF for another pod", refused(t, other, given), "default/plugin", "default/thief")
	remove(t, pod)
	runContainer(t, other, given)
	remove(t, other)
}

// With the plugin or without, a pod of another handler has the same spec.
func TestAPodOfAnotherHandlerIsUntouched(t *testing.T) {
	n := startNode(t, func(o *simnode.Options) { o.Bed.RequiredPlugins = nil })
	container := func() map[string]any {
		spec := asking("cy=2")
		spec.Handler, spec.Name = "runc", "plain"
		pod := runPod(t, n, spec)
		defer remove(t, pod)
		ctr := runContainer(t, pod, bed.ContainerSpec{})
		b, err := json.Marshal(ociSpec(t, ctr))
		if err != nil {
			t.Fatal(err)
		}
		// What differs between any two containers is their ids and the
		// sandbox's process.
		text := strings.NewReplacer(pod.ID, "SANDBOX", ctr.ID, "CONTAINER").Replace(string(b))
		text = regexp.MustCompile(`/proc/[0-9]+/`).ReplaceAllString(text, "/proc/PID/")
		var out map[string]any
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	without := container()
	startDaemon(t, n)
	if diff := cmp.Diff(without, container()); diff != "" {
		t.Errorf("spec (-without +with the plugin):\n%s", diff)
	}
}
