package inventory

import (
	"cmp"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// Event says what became of a function.
type Event string

// The events.
const (
	Present Event = "present" // it was there when watching began
	Added   Event = "added"
	Changed Event = "changed"
	Removed Event = "removed"
)

// Change is what became of one function between two reports.
type Change struct {
	Event   Event       `json:"event"`
	Address qat.Address `json:"address"`
	// Before and After are a PF, without its VFs, or a VF; null for one that
	// was not there, or is not any more.
	Before *Function `json:"before"`
	After  *Function `json:"after"`
}

// Function is a PF or a VF: one of the two is set.
type Function struct {
	PF *qat.PF `json:"pf,omitempty"`
	VF *VF     `json:"vf,omitempty"`
}

// Compare says what changed from one report to another: the PFs in their order,
// each before its VFs, then orphans, and at the end what is gone. Before a first
// report there is nothing: nil.
func Compare(before, after *Report) []Change {
	old := make(map[qat.Address]*Function)
	var order []qat.Address
	if before != nil {
		for _, f := range before.functions() {
			old[f.address()] = f
			order = append(order, f.address())
		}
	}
	var changes []Change
	for _, f := range after.functions() {
		was := old[f.address()]
		delete(old, f.address())
		switch {
		case before == nil:
			changes = append(changes, Change{Present, f.address(), nil, f})
		case was == nil:
			changes = append(changes, Change{Added, f.address(), nil, f})
		case !reflect.DeepEqual(was.stable(), f.stable()):
			changes = append(changes, Change{Changed, f.address(), was, f})
		}
	}
	for _, a := range order {
		if f := old[a]; f != nil {
			changes = append(changes, Change{Removed, a, f, nil})
		}
	}
	return changes
}

func (r *Report) functions() (all []*Function) {
	for i := range r.PFs {
		pf := r.PFs[i].PF
		pf.VFs = nil
		all = append(all, &Function{PF: &pf})
		for j := range r.PFs[i].VFs {
			all = append(all, &Function{VF: &r.PFs[i].VFs[j]})
		}
	}
	for i := range r.Orphans {
		all = append(all, &Function{VF: &r.Orphans[i]})
	}
	return all
}

func (f *Function) address() qat.Address {
	if f.PF != nil {
		return f.PF.Address
	}
	return f.VF.Address
}

// field is what a line about a change can name.
type field struct{ name, value string }

// stable are the fields by which two states of a function differ. What follows
// from others, as the state of the other members of a group, is left out.
func (f *Function) stable() []field {
	if pf := f.PF; pf != nil {
		return []field{
			{"family", pf.Family.Name}, {"driver", pf.Driver}, {"services", string(pf.Services)},
			{"state", pf.State}, {"health", string(pf.Health)}, {"VFs", strconv.Itoa(pf.NumVFs)},
		}
	}
	vf, group, ready := f.VF, "", "yes"
	if vf.Group != nil {
		group = strconv.Itoa(vf.Group.ID)
	}
	if !vf.Ready {
		ready = "no"
	}
	return []field{
		{"family", vf.Family.Name}, {"PF", string(vf.PF)}, {"driver", vf.Driver}, {"group", group},
		{"services", string(vf.Services)}, {"ready", ready}, {"held by", vf.heldBy()}, {"", vf.Problem},
	}
}

// String is a line about the change: what is there now, or field by field what
// it was and is.
func (c Change) String() string {
	head, f := "VF ", c.After
	if f == nil {
		f = c.Before
	}
	if f.PF != nil {
		head = "PF "
	}
	var parts []string
	var was []field
	if c.Before != nil && c.After != nil {
		was = c.Before.stable()
	}
	for i, now := range f.stable() {
		switch {
		case c.After == nil:
		case was == nil && now.value != "", was != nil && was[i] != now && now.name == "" && now.value != "":
			parts = append(parts, strings.TrimSpace(now.name+" "+now.value))
		case was != nil && was[i] != now && now.name != "":
			parts = append(parts, fmt.Sprintf("%s %s -> %s", now.name, cmp.Or(was[i].value, "none"), cmp.Or(now.value, "none")))
		}
	}
	line := head + string(c.Address) + " " + string(c.Event)
	if len(parts) > 0 {
		line += ": " + strings.Join(parts, ", ")
	}
	return line
}
