//go:build kube

package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/cluster"
	"github.com/kata-qat/kata-qat/provision/plan"
	"github.com/kata-qat/kata-qat/test/bed/apiserver"
)

var (
	runtimeClasses = schema.GroupVersionResource{Group: "node.k8s.io", Version: "v1", Resource: "runtimeclasses"}
	nodes          = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
)

// fixture is a cluster, and who looks at it from outside.
type fixture struct {
	t      *testing.T
	server *apiserver.Server
	api    dynamic.Interface
}

// TestCluster has one API server for all: each test leaves it as it was.
func TestCluster(t *testing.T) {
	s := apiserver.ForTest(t)
	api, err := dynamic.NewForConfig(s.Config(apiserver.Admin))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"objects are applied once and undone", testApplyAndUndo},
		{"what belongs to others is refused and stays", testOthers},
		{"a handler that changes says what to do", testImmutable},
		{"missing rights are one line", testRights},
		{"a node is labelled and unlabelled", testNode},
		{"an unreachable server is said once", testUnreachable}, // the last: it stops the server
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fixture{t: t, server: s, api: api}
			t.Cleanup(func() {
				// There is no controller that would empty a namespace: it stays.
				_, _ = s.Kubectl(t, apiserver.Admin, "", "delete", "runtimeclass,node", "--all")
			})
			test.run(t, f)
		})
	}
}

func (f *fixture) client(user string) *cluster.Client {
	f.t.Helper()
	c, err := cluster.Connect(cluster.Access{Kubeconfig: f.server.Kubeconfig(f.t, user)})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

func (f *fixture) get(r schema.GroupVersionResource, name string) *unstructured.Unstructured {
	f.t.Helper()
	o, err := f.api.Resource(r).Get(f.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return o
}

// kubectl runs it as the administrator, who is somebody else than we.
func (f *fixture) kubectl(stdin string, args ...string) string {
	f.t.Helper()
	out, err := f.server.Kubectl(f.t, apiserver.Admin, stdin, args...)
	if err != nil {
		f.t.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
	return out
}

func (f *fixture) node(name string) {
	f.t.Helper()
	f.kubectl(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": %q, "labels": {"zone": "a"}}}`, name), "create", "-f", "-")
}

func options(handlers ...string) cluster.Options {
	return cluster.Options{
		Namespace: "kata-qat", Handlers: handlers, Memory: cluster.DefaultMemory, CPU: cluster.DefaultCPU,
		NodeSelector: map[string]string{cluster.NodeLabel: "true"},
	}
}

func objects(t *testing.T, o cluster.Options) []cluster.Object {
	t.Helper()
	all, err := cluster.Objects(o)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

type operation func(context.Context, []cluster.Object) (*plan.Outcome, error)

func do(t *testing.T, f operation, all []cluster.Object) *plan.Outcome {
	t.Helper()
	out, err := f(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused is the one line that an operation is refused with; nothing is changed.
func refused(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was not refused")
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	for _, p := range parts {
		if !strings.Contains(line, p) {
			t.Errorf("the error does not say %q: %s", p, line)
		}
	}
	t.Log(line)
}

func testApplyAndUndo(t *testing.T, f *fixture) {
	c := f.client(apiserver.Admin)
	all := objects(t, options("kata-qat", "kata-qat-gk"))
	if out := do(t, c.Plan, all); !out.Pending || out.Changed {
		t.Errorf("the plan for an empty cluster: %+v", out)
	}
	if out, err := f.server.Kubectl(t, apiserver.Admin, "", "get", "runtimeclass,namespace", "-o", "name"); err != nil || strings.Contains(out, "kata-qat") {
		t.Errorf("a plan left something behind: %v: %s", err, out)
	}
	if out := do(t, c.Apply, all); !out.Changed || len(out.Steps) != len(all) {
		t.Errorf("the first run: %+v", out)
	}
	rc := f.get(runtimeClasses, "kata-qat")
	memory, _, _ := unstructured.NestedString(rc.Object, "overhead", "podFixed", "memory")
	selector, _, _ := unstructured.NestedStringMap(rc.Object, "scheduling", "nodeSelector")
	if rc.Object["handler"] != "kata-qat" || memory != "160Mi" || selector[cluster.NodeLabel] != "true" {
		t.Errorf("the RuntimeClass is %v", rc.Object)
	}
	for _, run := range []operation{c.Apply, c.Plan} {
		if out := do(t, run, all); out.Changed || out.Pending {
			t.Errorf("a second run finds something to do: %+v", out)
		}
	}
	if again := f.get(runtimeClasses, "kata-qat"); again.GetResourceVersion() != rc.GetResourceVersion() {
		t.Error("a second run wrote the RuntimeClass")
	}
	// A change is told field by field, and made.
	o := options("kata-qat", "kata-qat-gk")
	o.Memory = "200Mi"
	if out := do(t, c.Plan, objects(t, o)); !strings.Contains(fmt.Sprintf("%+v", out.Steps), "{Object:.overhead.podFixed.memory From:160Mi To:200Mi") {
		t.Errorf("the plan for more memory: %+v", out.Steps)
	}
	do(t, c.Apply, objects(t, o))

	do(t, c.Undo, all)
	out := f.kubectl("", "get", "runtimeclass,clusterrole,clusterrolebinding,serviceaccount", "-A", "-o", "name")
	if strings.Contains(out, "kata-qat") {
		t.Errorf("after --undo there is still %s", out)
	}
	if out := do(t, c.Undo, all); out.Changed {
		t.Errorf("a second --undo did something: %+v", out)
	}
}

func testOthers(t *testing.T, f *fixture) {
	c := f.client(apiserver.Admin)
	const theirs = `{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "kata-qat"}, "handler": "kata-qat", "overhead": {"podFixed": {"memory": "1Gi"}}}`
	f.kubectl(theirs, "apply", "--server-side", "--field-manager", "helm", "-f", "-")
	o := options("kata-qat")
	o.Namespace = "elsewhere"
	all := objects(t, o)
	_, err := c.Apply(t.Context(), all)
	refused(t, err, "RuntimeClass kata-qat", ".overhead.podFixed.memory belongs to \"helm\"", "--force")
	if out, _ := f.server.Kubectl(t, apiserver.Admin, "", "get", "namespace", "elsewhere"); !strings.Contains(out, "NotFound") {
		t.Errorf("a run that was refused made the namespace: %s", out)
	}
	if out := do(t, c.Undo, all); out.Changed {
		t.Errorf("--undo of what is not ours did something: %+v", out)
	}
	f.get(runtimeClasses, "kata-qat")

	c.Force = true
	do(t, c.Apply, all)
	memory, _, _ := unstructured.NestedString(f.get(runtimeClasses, "kata-qat").Object, "overhead", "podFixed", "memory")
	if memory != cluster.DefaultMemory {
		t.Errorf("with --force the overhead is %s", memory)
	}
}

func testImmutable(t *testing.T, f *fixture) {
	c := f.client(apiserver.Admin)
	do(t, c.Apply, objects(t, options("kata-qat")))
	changed := objects(t, options("kata-qat"))
	changed[len(changed)-1].Object["handler"] = "kata"
	_, err := c.Apply(t.Context(), changed)
	refused(t, err, "RuntimeClass kata-qat", "immutable", "--undo")
}

func testRights(t *testing.T, f *fixture) {
	all := objects(t, options("kata-qat"))
	_, err := f.client(apiserver.Nobody).Apply(t.Context(), all)
	refused(t, err, "these credentials lack the right", "nobody", "docs/kubernetes.md")
	_, err = f.client("stranger").Apply(t.Context(), all)
	refused(t, err, "does not accept these credentials")

	_, err = cluster.Connect(cluster.Access{Kubeconfig: "/nowhere"})
	refused(t, err, "find the cluster", "/nowhere")
}

func testUnreachable(t *testing.T, f *fixture) {
	c := f.client(apiserver.Admin)
	f.server.Stop()
	_, err := c.Apply(t.Context(), objects(t, options("kata-qat")))
	refused(t, err, "cannot be reached", "connection refused", "--kubeconfig")
	if n := strings.Count(err.Error(), "cannot be reached"); n != 1 {
		t.Errorf("it is said %d times: %v", n, err)
	}
}

func testNode(t *testing.T, f *fixture) {
	c := f.client(apiserver.Admin)
	f.node("n1")
	f.node("n2")
	label := func(name string, labels map[string]string) *plan.Outcome {
		t.Helper()
		out, err := c.LabelNode(t.Context(), name, labels)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	labels := cluster.Labels(&qat.Inventory{PFs: []qat.PF{{VFs: []qat.VF{{Family: qat.FamilyByName("4xxx"), Services: "sym;asym"}}}}})
	if out, err := c.PlanNode(t.Context(), "n1", labels); err != nil || !out.Pending {
		t.Errorf("the plan: %+v, %v", out, err)
	}
	if out := label("n1", labels); !out.Changed {
		t.Errorf("the first run: %+v", out)
	}
	label("n2", labels)
	is := f.get(nodes, "n1").GetLabels()
	for _, l := range []string{"kata-qat.io/node", "kata-qat.io/family.4xxx", "kata-qat.io/service.cy"} {
		if is[l] != "true" {
			t.Errorf("n1 has no label %s: %v", l, is)
		}
	}
	if out := label("n1", labels); out.Changed || out.Pending {
		t.Errorf("a second run: %+v", out)
	}
	// Another family takes the place of the first.
	label("n1", map[string]string{cluster.NodeLabel: "true", "kata-qat.io/family.c62x": "true"})
	if is := f.get(nodes, "n1").GetLabels(); is["kata-qat.io/family.4xxx"] != "" || is["kata-qat.io/family.c62x"] != "true" {
		t.Errorf("with other devices n1 has the labels %v", is)
	}
	if out := label("n1", nil); !out.Changed {
		t.Errorf("taking labels off: %+v", out)
	}
	if is := f.get(nodes, "n1").GetLabels(); len(is) != 1 || is["zone"] != "a" {
		t.Errorf("without ours n1 has the labels %v", is)
	}
	if out := label("n1", nil); out.Changed {
		t.Errorf("taking labels off twice: %+v", out)
	}
	if out, err := c.UnlabelNodes(t.Context()); err != nil || !out.Changed || len(out.Steps) != 1 {
		t.Errorf("taking labels off all nodes: %+v, %v", out, err)
	}
	if is := f.get(nodes, "n2").GetLabels(); len(is) != 1 {
		t.Errorf("after that n2 has the labels %v", is)
	}

	_, err := c.LabelNode(t.Context(), "n3", labels)
	refused(t, err, "Node n3", "no such node", "--node")
	if out := f.kubectl("", "get", "nodes", "-o", "name"); strings.Contains(out, "n3") {
		t.Error("a node was made by labelling it")
	}
}
