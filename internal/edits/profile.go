// Package edits turns the VFs that a container or a sandbox holds into changes
// of its OCI spec. The changes are computed once, as CDI ContainerEdits and the
// few things that CDI cannot say, and then given to NRI, written into a spec,
// or written as CDI files, so that the three cannot drift apart. It reads no
// file and asks nobody.
package edits

import "fmt"

// Profile says who in the guest takes a VF.
type Profile string

// The profiles.
const (
	// ProfileVFIO gives the container the VF as a VFIO group of the guest, for
	// qatlib and DPDK. It needs vfio_mode = "vfio" and an IOMMU in the guest.
	ProfileVFIO Profile = "vfio"
	// ProfileGuestKernel leaves the VF to a driver of the guest's kernel.
	ProfileGuestKernel Profile = "guest-kernel"
)

// ParseProfile checks a profile's name.
func ParseProfile(s string) (Profile, error) {
	switch p := Profile(s); p {
	case ProfileVFIO, ProfileGuestKernel:
		return p, nil
	}
	return "", fmt.Errorf("profile %q: expected %q or %q", s, ProfileVFIO, ProfileGuestKernel)
}
