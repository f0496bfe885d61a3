// Package cluster holds what a cluster has to know of kata-qat: a RuntimeClass
// for each runtime handler, labels on the nodes that can run such pods, and the
// rights that the node daemon needs. Everything is written by server-side apply
// under a field manager of our own, so that the API server itself knows which
// fields are ours: what others own is never changed without being told to, and
// undoing needs no journal. It decides nothing about a node; whether one is fit
// is doctor's to say.
package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kata-qat/kata-qat/internal/qat"
)

const (
	// Manager is the field manager of everything that is applied.
	Manager = "kata-qat"
	// NodeLabel is "true" on a node that can run pods with QAT devices.
	NodeLabel = labelDomain + "node"
	// DefaultNamespace is that of the node daemon.
	DefaultNamespace = "kata-qat"

	labelDomain  = "kata-qat.io/"
	managedBy    = "app.kubernetes.io/managed-by"
	partOf       = "app.kubernetes.io/part-of"
	account      = "kata-qat"
	accountNodes = "kata-qat-node"
)

// The pod overhead of a VM, as kata-deploy has it for QEMU.
const (
	DefaultMemory = "160Mi"
	DefaultCPU    = "250m"
)

// Options say what a cluster is to have.
type Options struct {
	Namespace string   // of the node daemon
	Handlers  []string // runtime handlers; each gets a RuntimeClass of its name
	// Memory and CPU are what a VM costs beside its containers.
	Memory, CPU string
	// NodeSelector are the labels of the nodes that can run these pods.
	NodeSelector map[string]string
}

// Object is one object of the API as it is to be.
type Object struct {
	Resource schema.GroupVersionResource
	*unstructured.Unstructured
}

// String names the object for a person: "RuntimeClass kata-qat".
func (o Object) String() string {
	if ns := o.GetNamespace(); ns != "" {
		return o.GetKind() + " " + ns + "/" + o.GetName()
	}
	return o.GetKind() + " " + o.GetName()
}

// Objects returns what a cluster is to have, in the order in which one needs the
// other. It refuses what the API server would.
func Objects(o Options) ([]Object, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	objects := []Object{
		// The daemon's pods mount directories of the node, which the stricter
		// Pod Security Standards forbid.
		object("v1", "namespaces", "Namespace", o.Namespace, map[string]any{}, map[string]any{
			"pod-security.kubernetes.io/enforce": "privileged",
		}),
		object("v1", "serviceaccounts", "ServiceAccount", account, map[string]any{"automountServiceAccountToken": false}, nil),
		object("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", accountNodes, map[string]any{
			"rules": []any{map[string]any{"apiGroups": []any{""}, "resources": []any{"nodes"}, "verbs": []any{"get", "patch"}}},
		}, nil),
		object("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", accountNodes, map[string]any{
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": accountNodes},
			"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": account, "namespace": o.Namespace}},
		}, nil),
	}
	objects[1].SetNamespace(o.Namespace)
	for _, h := range o.Handlers {
		objects = append(objects, runtimeClass(h, o))
	}
	return objects, nil
}

func runtimeClass(handler string, o Options) Object {
	selector := make(map[string]any)
	for k, v := range o.NodeSelector {
		selector[k] = v
	}
	return object("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", handler, map[string]any{
		"handler":    handler,
		"overhead":   map[string]any{"podFixed": map[string]any{"memory": o.Memory, "cpu": o.CPU}},
		"scheduling": map[string]any{"nodeSelector": selector},
	}, nil)
}

// object makes an object with our labels and some more.
func object(apiVersion, resource, kind, name string, content map[string]any, labels map[string]any) Object {
	all := map[string]any{managedBy: Manager, partOf: "kata-qat"}
	maps.Copy(all, labels)
	content["apiVersion"], content["kind"] = apiVersion, kind
	content["metadata"] = map[string]any{"name": name, "labels": all}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		panic("a constant: " + err.Error())
	}
	return Object{Resource: gv.WithResource(resource), Unstructured: &unstructured.Unstructured{Object: content}}
}

func (o *Options) check() error {
	if problems := validation.IsDNS1123Label(o.Namespace); len(problems) > 0 {
		return fmt.Errorf("namespace %q: %s", o.Namespace, problems[0])
	}
	if len(o.Handlers) == 0 {
		return fmt.Errorf("no runtime handler is named: expected at least one")
	}
	for i, h := range o.Handlers {
		if problems := validation.IsDNS1123Label(h); len(problems) > 0 {
			return fmt.Errorf("runtime handler %q: %s", h, problems[0])
		}
		if slices.Contains(o.Handlers[:i], h) {
			return fmt.Errorf("runtime handler %q is named twice", h)
		}
	}
	for name, value := range map[string]string{"memory": o.Memory, "CPU": o.CPU} {
		if q, err := resource.ParseQuantity(value); err != nil || q.Sign() < 0 {
			return fmt.Errorf("overhead of %s %q: expected an amount as in a pod's resources, for example %s or %s", name, value, DefaultMemory, DefaultCPU)
		}
	}
	for k, v := range o.NodeSelector {
		if problems := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)...); len(problems) > 0 {
			return fmt.Errorf("node selector %q=%q: %s", k, v, problems[0])
		}
	}
	return nil
}

// ParseSelector reads labels of a command line: "name=value".
func ParseSelector(words []string) (map[string]string, error) {
	selector := make(map[string]string)
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("node selector %q: expected name=value", w)
		}
		selector[k] = v
	}
	return selector, nil
}

// Labels are what a node with these devices is to be labelled with when it can
// run pods with them: the families of its VFs, and the services as the names of
// the extended resources have them.
func Labels(inv *qat.Inventory) map[string]string {
	labels := map[string]string{NodeLabel: "true"}
	for i := range inv.PFs {
		for _, vf := range inv.PFs[i].VFs {
			labels[labelDomain+"family."+vf.Family.Name] = "true"
			labels[labelDomain+"service."+vf.Services.ResourceName()] = "true"
		}
	}
	return labels
}
