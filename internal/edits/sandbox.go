package edits

import (
	"slices"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"
)

// KernelModulesAnnotation names the modules that the Kata agent loads in the
// guest before any container, separated by ";" and each with its parameters
// (kata-containers, docs/how-to/how-to-set-sandbox-config-kata.md).
const KernelModulesAnnotation = "io.katacontainers.config.agent.kernel_modules"

// SandboxEdits are the changes to the spec of a pod's sandbox.
type SandboxEdits struct {
	// CDI has the group nodes of all VFs of the pod, in the order in which
	// the guest is to see them. Kata plugs each into a root port of its own
	// before the VM boots, and has no use for VFIO's control node.
	CDI         cdi.ContainerEdits
	Annotations map[string]string
	NumVFs      int // of the pod
}

// Sandbox returns the changes that have the VFs of a pod in its VM when that
// boots. The annotations are those that the sandbox has; what the user wants
// loaded stays. No VFs, no changes: the result is nil.
func Sandbox(vfs []VF, profile Profile, annotations map[string]string) *SandboxEdits {
	if len(vfs) == 0 {
		return nil
	}
	// The sandbox's process is root's, and Kata opens the host's node itself.
	root := Options{}.nodes()
	e := &SandboxEdits{Annotations: map[string]string{DevicesAnnotation: summary(vfs)}, NumVFs: len(vfs)}
	for _, v := range vfs {
		if !hasNode(e.CDI.DeviceNodes, v.Group) {
			e.CDI.DeviceNodes = append(e.CDI.DeviceNodes, root(v.Group))
		}
	}
	if profile == ProfileGuestKernel {
		if modules := withModules(annotations[KernelModulesAnnotation], vfs); modules != "" {
			e.Annotations[KernelModulesAnnotation] = modules
		}
	}
	return e
}

// withModules adds the VFs' modules to a list of modules, each once.
func withModules(list string, vfs []VF) string {
	var entries []string
	var names []string
	for _, entry := range strings.Split(list, ";") {
		if fields := strings.Fields(entry); len(fields) > 0 {
			entries, names = append(entries, strings.TrimSpace(entry)), append(names, fields[0])
		}
	}
	for _, v := range vfs {
		if v.Module != "" && !slices.Contains(names, v.Module) {
			entries, names = append(entries, v.Module), append(names, v.Module)
		}
	}
	return strings.Join(entries, ";")
}
