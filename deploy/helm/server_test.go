//go:build kube

package helm

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/provision/cluster"
	"github.com/kata-qat/kata-qat/test/bed/apiserver"
)

// TestServer has one API server for all.
func TestServer(t *testing.T) {
	s := apiserver.ForTest(t)
	t.Run("takes the manifests", func(t *testing.T) { testManifests(t, s) })
	t.Run("takes the chart with all values", func(t *testing.T) { testCharts(t, s) })
	t.Run("lets a pod label its own node only", func(t *testing.T) { testPolicy(t, s) })
}

func kubectl(t *testing.T, s *apiserver.Server, stdin string, args ...string) string {
	t.Helper()
	out, err := s.Kubectl(t, apiserver.Admin, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(out)
}

func testManifests(t *testing.T, s *apiserver.Server) {
	for _, file := range []string{"kata-qat.yaml", "uninstall.yaml"} {
		b, err := os.ReadFile("../manifests/" + file)
		if err != nil {
			t.Fatal(err)
		}
		// Strict validation is kubectl's default: a field that there is not is an
		// error.
		kubectl(t, s, string(b), "apply", "--server-side", "-f", "-")
		if out := kubectl(t, s, string(b), "diff", "--server-side", "-f", "-"); out != "" {
			t.Errorf("%s: the server has something else than was applied:\n%s", file, out)
		}
	}
}

func testCharts(t *testing.T, s *apiserver.Server) {
	for i, file := range valuesFiles(t) {
		release := fmt.Sprintf("r%d", i)
		out, err := helm(t, withValues(file, "template", release, chart, "--namespace", "kata-qat", "--set", "namespace.create=false", "--set", "runtimeClass.create=false")...)
		if err != nil {
			t.Fatalf("%s: %v: %s", file, err, out)
		}
		kubectl(t, s, out, "apply", "--server-side", "-f", "-")
	}
}

// testPolicy acts as the daemon's pod on n1, with a token as kubelet would give
// it.
func testPolicy(t *testing.T, s *apiserver.Server) {
	for _, n := range []string{"n1", "n2"} {
		kubectl(t, s, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q, "labels": {"zone": "a"}}}`, n), "create", "-f", "-")
	}
	kubectl(t, s, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "kata-qat"}, "spec": {"nodeName": "n1", "serviceAccountName": "kata-qat", "containers": [{"name": "c", "image": "i"}]}}`, "create", "-f", "-")
	uid := kubectl(t, s, "", "get", "pod", "-n", "kata-qat", "p", "-o", "jsonpath={.metadata.uid}")
	token := kubectl(t, s, "", "create", "token", "kata-qat", "-n", "kata-qat", "--bound-object-kind", "Pod", "--bound-object-name", "p", "--bound-object-uid", uid)
	pod, err := cluster.Connect(cluster.Access{Kubeconfig: s.KubeconfigOf(t, "pod", token)})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{cluster.NodeLabel: "true", "kata-qat.io/family.4xxx": "true"}
	// The server takes its time to know a policy that is new.
	apiserver.Eventually(t, func() error {
		_, err := pod.LabelNode(t.Context(), "n2", map[string]string{cluster.NodeLabel: "true"})
		if err == nil || !strings.Contains(err.Error(), "may change the node that it runs on, and no other") {
			return fmt.Errorf("the label of another pod's node: %w", err)
		}
		return nil
	})
	if _, err := pod.LabelNode(t.Context(), "n1", labels); err != nil {
		t.Errorf("the pod's own node: %v", err)
	}
	if out, err := pod.LabelNode(t.Context(), "n1", nil); err != nil || !out.Changed {
		t.Errorf("taking the labels off the pod's own node: %+v, %v", out, err)
	}
	pod.Force = true
	for name, labels := range map[string]map[string]string{
		"a label of another":     {"zone": "b"},
		"a label for kubernetes": {"node-role.kubernetes.io/control-plane": ""},
	} {
		if _, err := pod.LabelNode(t.Context(), "n1", labels); err == nil || !strings.Contains(err.Error(), "labels of kata-qat.io only") {
			t.Errorf("%s: %v", name, err)
		}
	}
	file := s.KubeconfigOf(t, "pod", token)
	for name, args := range map[string][]string{
		"nothing of a node but labels": {"patch", "node", "n1", "-p", `{"spec": {"unschedulable": true}}`},
		"cannot list resource":         {"get", "nodes"},
		"cannot delete resource":       {"delete", "node", "n1"},
		"cannot get resource":          {"get", "secret", "-n", "kata-qat", "s"},
	} {
		out, err := s.Kubectl(t, apiserver.Admin, "", append(args, "--kubeconfig", file)...)
		if err == nil || !strings.Contains(out, name) {
			t.Errorf("kubectl %q as the pod: %v: %s, expected %q", args, err, out, name)
		}
	}
}
