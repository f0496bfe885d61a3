// Package profile knows the two ways in which a guest takes a VF. It is on its
// own for programs that read the configuration and never touch a spec.
package profile

import "fmt"

// Profile says who in the guest takes a VF.
type Profile string

// The profiles.
const (
	// VFIO gives the container the VF as a VFIO group of the guest, for qatlib
	// and DPDK. It needs vfio_mode = "vfio" and an IOMMU in the guest.
	VFIO Profile = "vfio"
	// GuestKernel leaves the VF to a driver of the guest's kernel.
	GuestKernel Profile = "guest-kernel"
)

// Parse checks a profile's name.
func Parse(s string) (Profile, error) {
	switch p := Profile(s); p {
	case VFIO, GuestKernel:
		return p, nil
	}
	return "", fmt.Errorf("profile %q: expected %q or %q", s, VFIO, GuestKernel)
}
