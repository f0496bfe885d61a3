package cluster

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var daemonSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}

// waitPoll is how often a DaemonSet is looked at.
const waitPoll = time.Second

// WaitReady returns when a DaemonSet is ready on every node that it is for. It
// waits until the context ends, and then says on how many nodes it is not.
func (c *Client) WaitReady(ctx context.Context, namespace, name string) error {
	o := bare(daemonSets, "apps/v1", "DaemonSet", name, namespace, "")
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	state := "not seen yet"
	for {
		ds, err := c.live(ctx, o)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("wait for %s: %s: %w", o, state, context.Cause(ctx))
		case err != nil && !unreachable(err):
			return err
		case err != nil:
			state = err.Error()
		case ds == nil:
			return fmt.Errorf("wait for %s: there is none such", o)
		default:
			var ready bool
			if ready, state = rolledOut(ds.Object); ready {
				return nil
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// rolledOut tells whether a DaemonSet runs everywhere, and as it is now.
func rolledOut(o map[string]any) (bool, string) {
	number := func(fields ...string) int64 {
		n, _, _ := unstructured.NestedInt64(o, fields...)
		return n
	}
	wanted, ready := number("status", "desiredNumberScheduled"), number("status", "numberReady")
	if number("status", "observedGeneration") < number("metadata", "generation") {
		return false, "the controller has not seen it yet"
	}
	return ready >= wanted && number("status", "updatedNumberScheduled") >= wanted, fmt.Sprintf("it is ready on %d of %d nodes", ready, wanted)
}
