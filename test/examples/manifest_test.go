//go:build bed || kube

package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// manifest is what is looked at of a Kubernetes object.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string // of a ConfigMap
	Spec     struct{ Template struct{ Spec podSpec } }
}

type podSpec struct {
	RuntimeClassName           string
	InitContainers, Containers []container
	SecurityContext            securityContext
	Volumes                    []volume
}

type container struct {
	Name, Image     string
	Command, Args   []string
	Env             []struct{ Name, Value string }
	SecurityContext securityContext
	Resources       struct{ Requests, Limits map[string]string }
	VolumeMounts    []struct {
		Name, MountPath string
		ReadOnly        bool
	}
}

type securityContext struct {
	RunAsUser, RunAsGroup  *int64
	RunAsNonRoot           *bool
	ReadOnlyRootFilesystem bool
}

type volume struct {
	Name      string
	ConfigMap *struct{ Name string }
	EmptyDir  *struct{}
	Secret    *struct {
		SecretName string
		Optional   bool
	}
}

// render builds a kustomization of deploy/examples.
func render(t testing.TB, name string) []manifest {
	t.Helper()
	return parse(t, kustomize(t, filepath.Join(moduleRoot(t), "deploy", "examples", name)))
}

func kustomize(t testing.TB, dir string) []byte {
	t.Helper()
	kubectl := filepath.Join(moduleRoot(t), "build", "tools", "kubernetes", "kubectl")
	if _, err := os.Stat(kubectl); err != nil {
		t.Fatalf("%s is missing: run make kube-tools", kubectl)
	}
	cmd := exec.Command(kubectl, "kustomize", dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kubectl kustomize %s: %v: %s", dir, err, stderr.String())
	}
	if stderr.Len() > 0 {
		t.Errorf("kubectl kustomize %s: %s", dir, stderr.String())
	}
	return out
}

func parse(t testing.TB, content []byte) []manifest {
	t.Helper()
	var all []manifest
	for document := range strings.SplitSeq("\n"+string(content), "\n---\n") {
		var m manifest
		if err := yaml.Unmarshal([]byte(document), &m); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		all = append(all, m)
	}
	return all
}

// moduleRoot is the directory of go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustContain(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: no %q in\n%s", what, p, text)
		}
	}
}
