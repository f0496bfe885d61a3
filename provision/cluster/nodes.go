package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kata-qat/kata-qat/provision/plan"
)

var nodes = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}

// node returns a node with labels of ours. It must be there: its UID is in what
// is applied, so that no node is ever made.
func (c *Client) node(ctx context.Context, name string, labels map[string]string) (Object, error) {
	was, err := c.live(ctx, bare(nodes, "v1", "Node", name, "", ""))
	if err != nil {
		return Object{}, err
	}
	if was == nil {
		return Object{}, fmt.Errorf("label Node %s: there is no such node: say which it is with --node", name)
	}
	o := bare(nodes, "v1", "Node", name, "", was.GetUID())
	o.SetLabels(labels)
	return o, nil
}

// PlanNode says what LabelNode would change.
func (c *Client) PlanNode(ctx context.Context, name string, labels map[string]string) (*plan.Outcome, error) {
	return c.label(ctx, name, labels, true)
}

// LabelNode makes a node have exactly these of our labels; none takes ours away.
// Labels of others stay.
func (c *Client) LabelNode(ctx context.Context, name string, labels map[string]string) (*plan.Outcome, error) {
	return c.label(ctx, name, labels, false)
}

func (c *Client) label(ctx context.Context, name string, labels map[string]string, dryRun bool) (*plan.Outcome, error) {
	wanted, err := c.node(ctx, name, labels)
	if err != nil {
		return &plan.Outcome{Steps: []plan.Result{}}, err
	}
	return c.each([]Object{wanted}, func(o Object) (plan.Result, error) {
		was, err := c.live(ctx, o)
		if err != nil {
			return plan.Result{}, err
		}
		if was == nil {
			return plan.Result{}, fmt.Errorf("label %s: it has gone", o)
		}
		r := plan.Result{Status: plan.Done, Is: "labelled as it should be"}
		if len(labels) == 0 {
			r.Is = "without our labels"
		}
		if len(labels) == 0 && !owns(was) {
			return r, nil
		}
		is, err := c.apply(ctx, o, dryRun)
		if err != nil {
			return plan.Result{}, err
		}
		if r.Changes = labelChanges(was.GetLabels(), is.GetLabels()); len(r.Changes) == 0 {
			return r, nil
		}
		if r.Status = plan.Changed; dryRun {
			r.Status, r.Is = plan.Pending, "not labelled as it should be"
		}
		return r, nil
	})
}

func labelChanges(was, is map[string]string) (all []plan.Change) {
	both := maps.Clone(was)
	if both == nil {
		both = make(map[string]string)
	}
	maps.Copy(both, is)
	for _, k := range slices.Sorted(maps.Keys(both)) {
		if was[k] != is[k] {
			all = append(all, plan.Change{Object: k, From: was[k], To: is[k], Why: "what doctor and the devices say of the node"})
		}
	}
	return all
}

// UnlabelNodes takes our labels off all nodes.
func (c *Client) UnlabelNodes(ctx context.Context) (*plan.Outcome, error) {
	list, err := c.api.Resource(nodes).List(ctx, metav1.ListOptions{})
	if err != nil {
		return &plan.Outcome{Steps: []plan.Result{}}, c.explain("list", bare(nodes, "v1", "Node", "(all)", "", ""), err)
	}
	var ours []Object
	for i := range list.Items {
		if o := (Object{Resource: nodes, Unstructured: &list.Items[i]}); owns(&o) {
			ours = append(ours, o)
		}
	}
	return c.each(ours, func(o Object) (plan.Result, error) {
		return plan.Result{Status: plan.Undone, Is: "without our labels"}, c.giveUp(ctx, o)
	})
}
