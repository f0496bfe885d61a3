package allocation

import (
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// CDI devices of Intel's DRA driver: one for each VF, "qatvf-0000-6b-00-1", and
// one for VFIO's control node, which comes with every claim
// (intel-resource-drivers-for-kubernetes, pkg/qat/device, deviceuid).
const (
	intelKind    = "intel.com/qat"
	intelPrefix  = "qatvf-"
	intelControl = "qatvf-vfio"
)

// named is a VF by the name that an allocator gave it.
type named struct {
	address  qat.Address
	resource string // full name; empty when the allocator did not say
}

// fromDeviceID understands the device id of an extended resource. Intel's
// device plugin and ours call a VF by its address
// (intel-device-plugins-for-kubernetes, cmd/qat_plugin/dpdkdrv).
func fromDeviceID(resource, id string) (named, error) {
	a, err := qat.ParseAddress(id)
	if err != nil {
		return named{}, fmt.Errorf("device %s of %s names no QAT VF: %w", quote(id), resource, err)
	}
	return named{a, resource}, nil
}

// fromCDI understands the fully qualified name of a CDI device: ours,
// "qat.intel.com/cy=0000:6b:00.1", or one of Intel's DRA driver. It returns
// false for a device that is none of QAT's, and for VFIO's control node.
func fromCDI(domain, name string) (named, bool, error) {
	kind, device, _ := strings.Cut(name, "=")
	switch {
	case strings.HasPrefix(kind, domain+"/"):
		n, err := fromDeviceID(kind, device)
		return n, err == nil, err
	case kind == intelKind && device == intelControl:
		return named{}, false, nil
	case kind == intelKind:
		n, err := fromIntelName(device)
		return n, err == nil, err
	}
	return named{}, false, nil
}

// fromIntelName understands the name that Intel's DRA driver gives a VF.
func fromIntelName(device string) (named, error) {
	parts := strings.Split(strings.TrimPrefix(device, intelPrefix), "-")
	if strings.HasPrefix(device, intelPrefix) && len(parts) == 4 {
		if a, err := qat.ParseAddress(parts[0] + ":" + parts[1] + ":" + parts[2] + "." + parts[3]); err == nil {
			return named{address: a}, nil
		}
	}
	return named{}, fmt.Errorf("device %s of %s names no QAT VF: expected a name such as qatvf-0000-6b-00-1", quote(device), intelKind)
}
