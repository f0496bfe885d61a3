//go:build bed

package examples

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

func find(t testing.TB, all []manifest, kind, name string) manifest {
	t.Helper()
	for _, m := range all {
		// kustomize appends a hash to the names of generated objects.
		if m.Kind == kind && (m.Metadata.Name == name || strings.HasPrefix(m.Metadata.Name, name+"-") && m.Data != nil) {
			return m
		}
	}
	t.Fatalf("no %s %s is rendered", kind, name)
	return manifest{}
}

// pod is a running pod, as kubelet would have made it.
type pod struct {
	*bed.Pod
	t          testing.TB
	dir        string // of its volumes, by their names
	containers map[string]*bed.Container
}

// volume is a file in a volume of the pod.
func (p *pod) volume(parts ...string) string {
	return filepath.Join(append([]string{p.dir}, parts...)...)
}

func (p *pod) log(container string) string {
	p.t.Helper()
	b, err := os.ReadFile(p.containers[container].LogPath())
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	return string(b)
}

// start runs the pod of a Deployment or Job: init containers one after the other,
// then all containers. A request for VFs becomes the annotation that asks for them on
// a node without a kubelet; env is laid over every container's own.
func start(t testing.TB, n *simnode.Node, all []manifest, kind, name string, env map[string]string) *pod {
	t.Helper()
	spec := find(t, all, kind, name).Spec.Template.Spec
	p := &pod{t: t, dir: t.TempDir(), containers: map[string]*bed.Container{}}
	for _, v := range spec.Volumes {
		makeVolume(t, filepath.Join(p.dir, v.Name), v, all)
	}
	hosts := filepath.Join(p.dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost web\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	asked := bed.PodSpec{Name: name, Handler: cmp.Or(spec.RuntimeClassName, "runc"), HostNetwork: true, Annotations: map[string]string{}}
	for _, c := range spec.Containers {
		for resource, count := range c.Resources.Limits {
			if service, ok := strings.CutPrefix(resource, "qat.intel.com/"); ok {
				asked.Annotations["kata-qat.io/request."+c.Name] = service + "=" + count
			}
		}
	}
	var err error
	if p.Pod, err = n.RunPod(t.Context(), asked); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	for _, c := range spec.InitContainers {
		ctr := p.run(c, spec, hosts, env)
		if code := exitCode(t, ctr); code != 0 {
			t.Fatalf("init container %s ended with %d: %s", c.Name, code, p.log(c.Name))
		}
	}
	for _, c := range spec.Containers {
		p.run(c, spec, hosts, env)
	}
	return p
}

func (p *pod) run(c container, pod podSpec, hosts string, env map[string]string) *bed.Container {
	p.t.Helper()
	spec := bed.ContainerSpec{
		Name: c.Name, Image: c.Image, Command: slices.Concat(c.Command, c.Args), User: c.user(pod),
		Mounts: []bed.Mount{{Host: hosts, Container: "/etc/hosts", ReadOnly: true}},
	}
	variables := map[string]string{}
	for _, e := range c.Env {
		variables[e.Name] = e.Value
	}
	maps.Copy(variables, env)
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		spec.Env = append(spec.Env, name+"="+variables[name])
	}
	for _, m := range c.VolumeMounts {
		spec.Mounts = append(spec.Mounts, bed.Mount{Host: filepath.Join(p.dir, m.Name), Container: m.MountPath, ReadOnly: m.ReadOnly})
	}
	ctr, err := p.RunContainer(p.t.Context(), spec)
	if err != nil {
		p.t.Fatal(err)
	}
	p.containers[c.Name] = ctr
	return ctr
}

func (c container) user(pod podSpec) *bed.User {
	uid, gid := cmp.Or(c.SecurityContext.RunAsUser, pod.SecurityContext.RunAsUser), cmp.Or(c.SecurityContext.RunAsGroup, pod.SecurityContext.RunAsGroup)
	if uid == nil {
		return nil
	}
	if gid == nil {
		gid = new(int64)
	}
	return &bed.User{UID: *uid, GID: *gid}
}

func makeVolume(t testing.TB, dir string, v volume, all []manifest) {
	t.Helper()
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil { // whatever the umask
		t.Fatal(err)
	}
	switch {
	case v.ConfigMap != nil:
		for name, text := range find(t, all, "ConfigMap", v.ConfigMap.Name).Data {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	case v.Secret != nil && v.Secret.Optional, v.EmptyDir != nil:
	default:
		t.Fatal(fmt.Errorf("volume %s: expected a ConfigMap, an emptyDir or an optional Secret", v.Name))
	}
}
