// Package plan changes a machine in steps that can be shown before, interrupted
// at any time, repeated, and undone. It knows the order of things: check, plan,
// write down what was, change. What the steps do is theirs; nothing here knows
// what a device is.
package plan

import (
	"context"
	"encoding/json"
	"fmt"
)

// Step is one change to a machine. Its methods may be called any number of
// times and see the machine as it is at that moment.
type Step interface {
	// Name tells the step from all others, also those of other engines, with
	// which it shares the journal: a few words joined by "-".
	Name() string
	// Check says what is. It changes nothing. An error says what keeps the step
	// from being possible at all; then no step is applied.
	Check(context.Context) (State, error)
	// Plan says what Apply would change, and why. There is nothing to apply
	// when it returns nothing.
	Plan(context.Context) ([]Change, error)
	// Apply makes the changes. Before each it saves to the journal what Undo
	// needs. It must be able to go on from wherever an earlier run was killed.
	Apply(context.Context, *Journal) error
	// Undo restores what records of this step say was there before, which are
	// in the order in which they were saved. It must not mind what is restored
	// already.
	Undo(context.Context, []Record) error
}

// Interruptible marks a step that takes long and stops when its context is
// cancelled. What it had done is undone then, and when it fails: the same run
// would only fail again. Any other step is finished.
type Interruptible interface{ Interruptible() }

// Gate marks a step without which the others make no sense: when it finds an
// error they are not even checked.
type Gate interface{ Gate() }

// State is what a step found.
type State struct {
	// Is describes it in one line: "4 PFs, 64 VFs on vfio-pci".
	Is string
	// Notes are what an administrator should know although no step changes it.
	Notes []string
	// Wait says why the step can only be applied after the next boot; "" when
	// it can be applied now.
	Wait string
}

// Change is one thing that a step would change.
type Change struct {
	Object string `json:"object"` // a path or a device
	From   string `json:"from"`   // "" for what is not there
	To     string `json:"to"`     // "" for what is taken away
	Why    string `json:"why"`
}

// Record is what was there before a change.
type Record struct {
	Step   string `json:"step"`
	Kind   string `json:"kind"` // how the step reads Before: "file", "attribute"
	Object string `json:"object"`
	// Before is what Undo restores. Of a thing that is changed twice the
	// journal keeps what was before the first change.
	Before json.RawMessage `json:"before"`
	// After is what the last change made of it, if the step wants to know.
	After json.RawMessage `json:"after,omitempty"`
}

// NewRecord makes a record; before and after must be values that JSON can hold,
// and after may be nil.
func NewRecord(step, kind, object string, before, after any) (Record, error) {
	r := Record{Step: step, Kind: kind, Object: object}
	var err error
	if r.Before, err = json.Marshal(before); err != nil {
		return r, fmt.Errorf("record %s %s: %w", kind, object, err)
	}
	if after != nil {
		if r.After, err = json.Marshal(after); err != nil {
			return r, fmt.Errorf("record %s %s: %w", kind, object, err)
		}
	}
	return r, nil
}

// Status is what became of a step.
type Status string

// What becomes of a step.
const (
	Done    Status = "done"    // as it should be; nothing was changed
	Pending Status = "pending" // would be changed
	Changed Status = "changed" // was changed
	Waiting Status = "waiting" // cannot go on before the next boot
	Undone  Status = "undone"  // is as it was before
	Failed  Status = "failed"  // see the error
	Skipped Status = "skipped" // not come to, because of an error or a signal
	Later   Status = "later"   // can be checked only after another step
	Missing Status = "missing" // needs what is not there, and no step brings
)

// Result is a step in the outcome of a run.
type Result struct {
	Step    string   `json:"step"`
	Status  Status   `json:"status"`
	Is      string   `json:"is,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Wait    string   `json:"wait,omitempty"`
	After   string   `json:"after,omitempty"` // the step that comes first, if Later
	Changes []Change `json:"changes,omitempty"`
	Error   string   `json:"error,omitempty"`
	Seconds float64  `json:"seconds,omitempty"`
}

// Outcome is what came of a run over all steps.
type Outcome struct {
	Steps []Result `json:"steps"`
	// Pending is set when something is still to be changed, be it after a reboot.
	Pending bool `json:"pending"`
	// Changed is set when something was changed.
	Changed bool `json:"changed"`
	// Reboot is set when a step waits for the next boot.
	Reboot bool `json:"reboot"`
}

// Add takes in what became of a step.
func (o *Outcome) Add(r Result) {
	o.Steps = append(o.Steps, r)
	o.Pending = o.Pending || r.Status == Pending || r.Status == Waiting || r.Status == Later || r.Status == Missing
	o.Changed = o.Changed || r.Status == Changed || r.Status == Undone
	o.Reboot = o.Reboot || r.Status == Waiting
}
