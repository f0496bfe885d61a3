//go:build kube

package examples

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/test/bed/apiserver"
)

// kustomizations are the directories of deploy/examples that can be applied: all
// that are not part of another.
func kustomizations(t *testing.T) []string {
	t.Helper()
	root := filepath.Join(moduleRoot(t), "deploy", "examples")
	var all []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "kustomization.yaml" {
			name, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			if filepath.Base(name) != "base" && name != "web" && name != "qat-tls" && name != "certificate" {
				all = append(all, name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("only %q are found", all)
	}
	return all
}

// startServer starts an API server that warns of pods which need more rights than
// the restricted profile of the Pod Security Standards allows.
func startServer(t *testing.T) *apiserver.Server {
	t.Helper()
	s := apiserver.ForTest(t)
	mustApply(t, s, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  labels: {pod-security.kubernetes.io/warn: restricted}\n---\n"+
		"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: haproxy-qat\n  labels: {pod-security.kubernetes.io/warn: restricted}\n", "-f", "-")
	return s
}

func mustApply(t *testing.T, s *apiserver.Server, stdin string, args ...string) string {
	t.Helper()
	out, err := s.Kubectl(t, apiserver.Admin, stdin, append([]string{"apply", "--server-side", "--validate=strict"}, args...)...)
	if err != nil {
		t.Fatalf("kubectl apply %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestTheAPIServerTakesEveryOverlay(t *testing.T) {
	s := startServer(t)
	for _, name := range kustomizations(t) {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(moduleRoot(t), "deploy", "examples", name)
			out := mustApply(t, s, "", "--force-conflicts", "-k", dir)
			if strings.Contains(out, "Warning:") {
				t.Errorf("warnings:\n%s", out)
			}
			for _, m := range render(t, name) {
				args := []string{"get", m.Kind, m.Metadata.Name, "--output=name"}
				if m.Metadata.Namespace != "" {
					args = append(args, "--namespace="+m.Metadata.Namespace)
				}
				if out, err := s.Kubectl(t, apiserver.Admin, "", args...); err != nil {
					t.Errorf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
				}
			}
		})
	}
}

// With QAT a pod has a Kata VM and a request for VFs; without it has neither.
func TestOnlyOverlaysWithQATNeedIt(t *testing.T) {
	for _, name := range kustomizations(t) {
		want := !strings.HasSuffix(name, "/software") && !strings.HasSuffix(name, "/demo")
		has := false
		for _, m := range render(t, name) {
			spec := m.Spec.Template.Spec
			vfs := 0
			for _, c := range spec.Containers {
				for resource, limit := range c.Resources.Limits {
					if strings.HasPrefix(resource, "qat.intel.com/") {
						vfs++
						if c.Resources.Requests[resource] != limit {
							t.Errorf("%s: %s of %s: the request is not the limit, which kubelet wants of an extended resource", name, resource, c.Name)
						}
						if c.Resources.Limits["memory"] == "" {
							t.Errorf("%s: %s has no limit of memory", name, c.Name)
						}
					}
				}
			}
			if (vfs > 0) != (spec.RuntimeClassName == "kata-qat") {
				t.Errorf("%s: %s asks for %d resources with runtimeClassName %q", name, m.Metadata.Name, vfs, spec.RuntimeClassName)
			}
			has = has || vfs > 0
		}
		if has != want {
			t.Errorf("%s: asks for VFs: %t", name, has)
		}
	}
}

// No key is anybody's but his own.
func TestThereIsNoPrivateKeyInTheRepository(t *testing.T) {
	root := filepath.Join(moduleRoot(t), "deploy")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), "PRIVATE KEY") {
			t.Errorf("%s has a private key", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

const remote = "https://github.com/kata-qat/kata-qat//"

// written is what a user writes for an accelerated ingress, as a document shows it.
type written struct {
	text, kustomization, ingress string
}

func userWrites(t *testing.T, file string) (all []written) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(moduleRoot(t), file))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllStringSubmatch(string(b), -1) {
		kustomization, ingress, found := strings.Cut(m[1], "---\n")
		if found && strings.Contains(kustomization, remote) {
			all = append(all, written{strings.TrimSpace(m[1]), kustomization, ingress})
		}
	}
	return all
}

// An accelerated ingress takes 20 lines by the user, wherever they are shown.
func TestTheUserWritesTwentyLines(t *testing.T) {
	root := moduleRoot(t)
	s := startServer(t)
	shown := 0
	for _, file := range []string{"README.md", "docs/tutorial.md", "deploy/examples/README.md"} {
		for _, w := range userWrites(t, file) {
			shown++
			if lines := strings.Count(w.text, "\n") + 1; lines > 20 {
				t.Errorf("%s shows %d lines", file, lines)
			}
			dir := t.TempDir()
			local, err := filepath.Rel(dir, root)
			if err != nil {
				t.Fatal(err)
			}
			kustomization := strings.ReplaceAll(w.kustomization, remote, local+"/")
			if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization), 0o644); err != nil {
				t.Fatal(err)
			}
			rendered := string(kustomize(t, dir))
			mustContain(t, file, rendered, "image: registry.yours/haproxy-qat:", "runtimeClassName: kata-qat")
			if strings.Contains(rendered, "registry.example") {
				t.Errorf("%s: an image is still that of nobody", file)
			}
			mustApply(t, s, rendered, "-f", "-")
			mustApply(t, s, w.ingress, "-f", "-")
		}
	}
	if shown == 0 {
		t.Error("nowhere")
	}
}

// Envoy has no package; its API definitions say what it takes.
func TestEnvoyTakesItsConfiguration(t *testing.T) {
	check := filepath.Join(moduleRoot(t), "build", "tools", "envoycheck")
	if _, err := os.Stat(check); err != nil {
		t.Fatalf("%v: run make examples-setup", err)
	}
	for overlay, provider := range map[string]bool{"software": false, "qat": true} {
		dir := t.TempDir()
		for _, m := range render(t, "envoy/"+overlay) {
			for name, text := range m.Data {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if out, err := exec.Command(check, filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "sds.yaml")).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", overlay, err, out)
		}
		sds, err := os.ReadFile(filepath.Join(dir, "sds.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(sds), "provider_name: qat") && strings.Contains(string(sds), "fallback: true"); got != provider {
			t.Errorf("%s: has the provider with a fallback: %t", overlay, got)
		}
	}
}
