package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// Plan says what Apply would change. The API server is asked for a dry run, so
// that conflicts and missing rights are found, too.
func (c *Client) Plan(ctx context.Context, objects []Object) (*plan.Outcome, error) {
	return c.each(objects, func(o Object) (plan.Result, error) { return c.one(ctx, o, true) })
}

// Apply makes the cluster have the objects. It tries a dry run of all before it
// changes the first, and stops at the first that fails.
func (c *Client) Apply(ctx context.Context, objects []Object) (*plan.Outcome, error) {
	planned, err := c.Plan(ctx, objects)
	if err != nil || !planned.Pending {
		return planned, err
	}
	return c.each(objects, func(o Object) (plan.Result, error) { return c.one(ctx, o, false) })
}

// each runs a function over objects until one fails; of a dry run the rest is
// still of interest, so an error does not end it.
func (c *Client) each(objects []Object, f func(Object) (plan.Result, error)) (*plan.Outcome, error) {
	out := &plan.Outcome{Steps: []plan.Result{}}
	var errs []error
	for _, o := range objects {
		r, err := f(o)
		r.Step = o.String()
		if err != nil {
			r.Status, r.Error = plan.Failed, err.Error()
			errs = append(errs, err)
		}
		out.Add(r)
		if err != nil && unreachable(err) {
			break // each would wait for its time-out
		}
	}
	return out, errors.Join(errs...)
}

func (c *Client) one(ctx context.Context, o Object, dryRun bool) (plan.Result, error) {
	was, err := c.live(ctx, o)
	if err != nil {
		return plan.Result{}, err
	}
	if dryRun && was == nil && o.GetNamespace() != "" && c.namespaceLacks(ctx, o) {
		// The server makes nothing in a namespace that there is not yet.
		return plan.Result{Status: plan.Pending, Is: "not there", Changes: changes(o, nil, &o)}, nil
	}
	is, err := c.apply(ctx, o, dryRun)
	if err != nil {
		return plan.Result{}, err
	}
	r := plan.Result{Status: plan.Done, Is: "as it should be", Changes: changes(o, was, is)}
	if was != nil && owns(was) && len(r.Changes) == 0 {
		return r, nil
	}
	switch {
	case was == nil:
		r.Is = "not there"
	case len(r.Changes) == 0:
		r.Is = "there, but not ours"
		r.Changes = []plan.Change{{Object: "its fields", From: "others'", To: "ours, too", Why: "--undo must know what to give up"}}
	default:
		r.Is = "not as it should be"
	}
	if r.Status = plan.Pending; !dryRun {
		r.Status, r.Is = plan.Changed, "as it should be"
	}
	return r, nil
}

func (c *Client) namespaceLacks(ctx context.Context, o Object) bool {
	ns, err := c.live(ctx, object("v1", "namespaces", "Namespace", o.GetNamespace(), map[string]any{}, nil))
	return err == nil && ns == nil
}

// owns tells whether we have applied something to an object.
func owns(o *Object) bool {
	return slices.ContainsFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == Manager && m.Operation == metav1.ManagedFieldsOperationApply
	})
}

// changes are the fields of ours that differ between what was and what is.
func changes(ours Object, was, is *Object) []plan.Change {
	before, after, wanted := map[string]string{}, map[string]string{}, map[string]string{}
	if was != nil {
		flatten("", was.Object, before)
	}
	flatten("", is.Object, after)
	flatten("", ours.Object, wanted)
	var all []plan.Change
	for _, field := range slices.Sorted(maps.Keys(wanted)) {
		if field == ".apiVersion" || field == ".kind" || field == ".metadata.name" || field == ".metadata.namespace" || field == ".metadata.uid" {
			continue
		}
		if before[field] != after[field] {
			all = append(all, plan.Change{Object: field, From: before[field], To: after[field], Why: "applied by " + Manager})
		}
	}
	if was == nil && len(all) == 0 {
		all = []plan.Change{{Object: ".metadata.name", To: ours.GetName(), Why: "it is not there"}}
	}
	return all
}

// flatten writes the leaves of an object by their path; a list is a leaf.
func flatten(path string, v any, into map[string]string) {
	if m, ok := v.(map[string]any); ok {
		for k, e := range m {
			flatten(path+"."+k, e, into)
		}
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		b = fmt.Append(nil, v)
	}
	if s, ok := v.(string); ok {
		b = []byte(s)
	}
	into[path] = string(b)
}

// Undo takes away what Apply made: objects that are ours are deleted, of others
// our fields are given up. A namespace stays, with what others have in it.
func (c *Client) Undo(ctx context.Context, objects []Object) (*plan.Outcome, error) {
	objects = slices.Clone(objects)
	slices.Reverse(objects)
	return c.each(objects, func(o Object) (plan.Result, error) { return c.undo(ctx, o) })
}

func (c *Client) undo(ctx context.Context, o Object) (plan.Result, error) {
	was, err := c.live(ctx, o)
	if err != nil {
		return plan.Result{}, err
	}
	if was == nil || !owns(was) {
		return plan.Result{Status: plan.Done, Is: map[bool]string{true: "not there", false: "not ours: left as it is"}[was == nil]}, nil
	}
	if was.GetLabels()[managedBy] == Manager && o.GetKind() != "Namespace" {
		uid, version := was.GetUID(), was.GetResourceVersion()
		err := c.of(o).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
		if err != nil && !apierrors.IsNotFound(err) {
			return plan.Result{}, c.explain("delete", o, err)
		}
		return plan.Result{Status: plan.Undone, Is: "deleted"}, nil
	}
	if err := c.giveUp(ctx, *was); err != nil {
		return plan.Result{}, err
	}
	r := plan.Result{Status: plan.Undone, Is: "our fields are given up"}
	if o.GetKind() == "Namespace" {
		r.Notes = []string{"the namespace stays, because all that is in it would go with it: kubectl delete namespace " + o.GetName()}
	}
	return r, nil
}

// giveUp applies nothing, which takes away the fields that we alone own. The UID
// keeps the server from making an object that has gone in the meantime.
func (c *Client) giveUp(ctx context.Context, was Object) error {
	_, err := c.apply(ctx, bare(was.Resource, was.GetAPIVersion(), was.GetKind(), was.GetName(), was.GetNamespace(), was.GetUID()), false)
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func bare(r schema.GroupVersionResource, apiVersion, kind, name, namespace string, uid types.UID) Object {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"name": name}}}
	if namespace != "" {
		u.SetNamespace(namespace)
	}
	if uid != "" {
		u.SetUID(uid)
	}
	return Object{Resource: r, Unstructured: u}
}
