// Package containers knows the containers of a node: which there are, which pod
// each belongs to, and the OCI spec of each, as containerd has recorded it and
// as the bundle on disk has it. It only reads, and it knows nothing of devices.
package containers

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// Node is where the containers are.
type Node struct {
	Root      string // root directory of the host
	Address   string // containerd's socket, below Root
	Namespace string // containerd's own, not a pod's: "k8s.io"
	State     string // containerd's state directory, below Root
}

// Bundles are the bundles of the node.
func (n Node) Bundles() Bundles { return NewBundles(n.Root, n.State, n.Namespace) }

// Client returns a client of the node's containerd.
func (n Node) Client() (*Client, error) {
	return NewClient(filepath.Join(n.Root, n.Address), n.Namespace)
}

// Type is what a container is to its pod.
type Type string

// The types. A container that CRI did not make has none.
const (
	Sandbox  Type = "sandbox"
	Workload Type = "container"
)

// Source is where a spec was read from.
type Source string

// The sources.
const (
	FromContainerd Source = "containerd" // what containerd was asked to create
	FromBundle     Source = "bundle"     // what the runtime got
)

// Container is one container or pod sandbox.
type Container struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace,omitempty"` // of the pod
	Pod       string `json:"pod,omitempty"`
	PodUID    string `json:"podUID,omitempty"`
	Name      string `json:"container,omitempty"` // empty for a sandbox
	Type      Type   `json:"type,omitempty"`
	SandboxID string `json:"sandboxID,omitempty"`
	Runtime   string `json:"runtime,omitempty"` // "io.containerd.kata.v2"
	Handler   string `json:"handler,omitempty"` // of the RuntimeClass; known of sandboxes only
	Source    Source `json:"source"`
	Bundle    string `json:"bundle,omitempty"` // directory of the bundle that the spec is from
	// Spec is the OCI spec, byte for byte.
	Spec json.RawMessage `json:"spec"`

	facts *Facts // of Spec, once they were asked for
}

// Facts is the little that is needed of most specs.
type Facts struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		Devices []specs.LinuxDevice `json:"devices"`
	} `json:"linux"`
}

// Annotations that containerd's CRI plugin writes into the specs it makes, and
// the labels that it gives to its containers (containerd 2.4,
// internal/cri/annotations and internal/cri/labels).
const (
	annotationType      = "io.kubernetes.cri.container-type"
	annotationSandboxID = "io.kubernetes.cri.sandbox-id"
	annotationPodUID    = "io.kubernetes.cri.sandbox-uid"
	annotationPod       = "io.kubernetes.cri.sandbox-name"
	annotationNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationName      = "io.kubernetes.cri.container-name"

	labelType      = "io.cri-containerd.kind"
	labelPodUID    = "io.kubernetes.pod.uid"
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelName      = "io.kubernetes.container.name"
)

// PodName is "namespace/pod", or empty for a container without a pod.
func (c *Container) PodName() string {
	if c.Pod == "" {
		return ""
	}
	return c.Namespace + "/" + c.Pod
}

// String names the container in a message: by its id and by where it belongs.
func (c *Container) String() string {
	switch {
	case c.Pod == "":
		return c.ShortID()
	case c.Name == "":
		return fmt.Sprintf("%s (sandbox of %s)", c.ShortID(), c.PodName())
	}
	return fmt.Sprintf("%s (%s/%s)", c.ShortID(), c.PodName(), c.Name)
}

// ShortID is as much of the id as people compare.
func (c *Container) ShortID() string { return c.ID[:min(len(c.ID), 12)] }

// Facts reads what is needed of the spec.
func (c *Container) Facts() (*Facts, error) {
	if c.facts != nil {
		return c.facts, nil
	}
	var f *Facts
	err := json.Unmarshal(c.Spec, &f)
	if err == nil && f == nil {
		err = errors.New("null")
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec of container %s from %s: %w: expected an OCI spec in JSON; is the container just being created or removed?", c, c.origin(), err)
	}
	c.facts = f
	return f, nil
}

func (c *Container) origin() string {
	if c.Bundle != "" {
		return filepath.Join(c.Bundle, configFile)
	}
	return string(c.Source)
}

// Sort orders containers by pod, every sandbox before its containers.
func Sort(cs []Container) {
	slices.SortFunc(cs, func(a, b Container) int {
		return cmp.Or(
			cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.PodSandbox(), b.PodSandbox()),
			cmp.Compare(b.Type, a.Type), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
}

// PodSandbox is the id of the sandbox that a container is in, or is; "" outside of
// pods.
func (c *Container) PodSandbox() string {
	if c.Type == Sandbox {
		return c.ID
	}
	return c.SandboxID
}

// identifier is what containerd takes as the id of a container or the name of
// a namespace (containerd 2.4, pkg/identifiers).
var identifier = lazyregexp.New(`^[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*$`)

// idPrefix is what such an identifier can begin with.
var idPrefix = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// ValidIDPrefix tells whether an id can begin with s.
func ValidIDPrefix(s string) bool { return idPrefix.MatchString(s) }

// Identify fills in, from the spec's annotations, what is not known of the
// container yet.
func (c *Container) Identify() error {
	f, err := c.Facts()
	if err != nil {
		return err
	}
	for _, known := range []struct {
		field *string
		key   string
	}{
		{&c.Namespace, annotationNamespace},
		{&c.Pod, annotationPod},
		{&c.PodUID, annotationPodUID},
		{&c.Name, annotationName},
		{&c.SandboxID, annotationSandboxID},
		{(*string)(&c.Type), annotationType},
	} {
		if *known.field == "" {
			*known.field = f.Annotations[known.key]
		}
	}
	return nil
}
