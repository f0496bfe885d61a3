// Package allocation knows which container holds which QAT virtual functions,
// and who says so: the container's own spec, kubelet, or the standalone pool.
// It never gives a VF to two pods, and it does not know what holding one means
// for a container's spec.
package allocation

import "github.com/kata-qat/kata-qat/internal/vfio"

// RequestAnnotation is the prefix of the pod annotations that ask the
// standalone pool for VFs: kata-qat.io/request.<container>: "cy=2".
const RequestAnnotation = "kata-qat.io/request."

// Pod identifies a pod sandbox.
type Pod struct {
	ID          string            `json:"id"` // of the sandbox
	UID         string            `json:"uid,omitempty"`
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	Annotations map[string]string `json:"-"` // the pod's own: written by the user, trusted for nothing but requests in standalone mode
}

// String names the pod as kubectl does: "namespace/name".
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Container is what has to be known of a container to tell what it holds.
type Container struct {
	ID      string
	Name    string
	Devices []SpecDevice // linux.devices of its spec
}

// PodContainer is a container of the sandbox PodID. Without a name it stands
// for the sandbox itself, whose spec has the devices that were cold-plugged.
type PodContainer struct {
	PodID string
	Container
}

// SpecDevice is a character device of a container's spec.
type SpecDevice struct {
	Path         string
	Major, Minor int64
}

// Source is who says that a container holds its VFs.
type Source string

// The sources, in the order in which they are asked.
const (
	SourceSpec         Source = "spec"
	SourcePodResources Source = "podresources"
	SourcePool         Source = "pool"
)

// Assignment says which VFs a container holds. Its VFs are shared with whoever
// asked before: they are read, not written.
type Assignment struct {
	Pod         Pod    `json:"pod"`
	ContainerID string `json:"containerID,omitempty"` // empty for what a pod reserves for a container that does not exist yet
	Container   string `json:"container"`             // empty for what a pod keeps of containers that are gone
	Source      Source `json:"source,omitempty"`      // empty when it holds nothing
	VFs         []Held `json:"vfs"`
}

// Held is one VF of an assignment.
type Held struct {
	Device *vfio.Device
	// Resource is the full extended resource name under which it was
	// allocated, "qat.intel.com/cy".
	Resource string
	// Index is N of the guest's <device>_dev<N>.conf: the number of VFs with
	// the same configuration name that the pod holds before this one, in the
	// order in which they came to the VM. It stays what it is for the life of
	// the pod, and is -1 as long as the VF is only set aside.
	Index int
}
