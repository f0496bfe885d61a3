// Package edits turns the VFs that a container or a sandbox holds into changes
// of its OCI spec. The changes are computed once, as CDI ContainerEdits and the
// few things that CDI cannot say, and then given to NRI, written into a spec,
// or written as CDI files, so that the three cannot drift apart. It reads no
// file and asks nobody.
package edits

import "github.com/kata-qat/kata-qat/internal/profile"

// Profile says who in the guest takes a VF. It is here under the name that whoever
// edits a spec uses; package profile is for who must not be linked with NRI.
type Profile = profile.Profile

// The profiles.
const (
	ProfileVFIO        = profile.VFIO
	ProfileGuestKernel = profile.GuestKernel
)

// ParseProfile checks a profile's name.
func ParseProfile(s string) (Profile, error) { return profile.Parse(s) }
