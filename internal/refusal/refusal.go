// Package refusal knows for which reasons a pod is refused its devices: few
// words that stay the same, so that metrics, alerts and events can be made of
// them. What an error says to a person it leaves as it is.
package refusal

import (
	"context"
	"errors"
)

// Reason is why something was refused. It is part of the metrics' interface.
type Reason string

// The reasons.
const (
	DeviceUnready Reason = "device_unready" // the VF or its PF is not as it must be
	DeviceHeld    Reason = "device_held"    // another pod has it, or a device of its IOMMU group
	DeviceGone    Reason = "device_gone"    // the pod was given a VF that is not on this node, or not by these numbers
	Shortage      Reason = "shortage"       // the pool has too few
	Request       Reason = "request"        // the pod asks for what cannot be
	Kubelet       Reason = "kubelet"        // kubelet did not say what the pod holds
	Configuration Reason = "configuration"  // of the device, or of the runtime handler
	Undone        Reason = "undone"         // what was asked for is not in the container's spec
	Timeout       Reason = "timeout"        // the runtime or the shim waits no longer
	Other         Reason = "other"
)

// Reasons are all of them.
var Reasons = []Reason{DeviceUnready, DeviceHeld, DeviceGone, Shortage, Request, Kubelet, Configuration, Undone, Timeout, Other}

// because is an error and its reason.
type because struct {
	error
	reason Reason
}

func (b *because) Unwrap() error { return b.error }

// Because gives an error its reason and leaves its text alone. nil stays nil.
func Because(r Reason, err error) error {
	if err == nil {
		return nil
	}
	return &because{err, r}
}

// Of returns the reason of an error: the outermost that it was given, Timeout
// for a deadline that was given none, else Other.
func Of(err error) Reason {
	var b *because
	switch {
	case errors.As(err, &b):
		return b.reason
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Timeout
	}
	return Other
}
