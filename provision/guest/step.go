package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// Step makes a guest as one step of a plan.
type Step struct {
	Options Options
	// Unknown says why some of the options could not be found out, such as by
	// plan.Absent: then there is only an outline.
	Unknown error

	design *Design // by the last Check
}

var (
	_ plan.Step          = (*Step)(nil)
	_ plan.Interruptible = (*Step)(nil)
)

// Name is "guest-" and the profile.
func (s *Step) Name() string { return "guest-" + string(s.Options.Profile) }

// Interruptible is because a kernel may have to be built.
func (s *Step) Interruptible() {}

// Check looks at all that the guest is made from.
func (s *Step) Check(ctx context.Context) (plan.State, error) {
	if s.Unknown != nil {
		return plan.State{}, errors.Join(s.Unknown, s.checkKernel())
	}
	var err error
	if s.design, err = Prepare(ctx, s.Options, false); err != nil {
		return plan.State{}, err
	}
	state := plan.State{Is: "no guest of these inputs in " + s.design.options.Out, Notes: s.design.Notes}
	if s.design.Unchanged {
		state.Is = s.design.Manifest.Summary()
	}
	return state, nil
}

// Plan says what would be made, as the last Check found it.
func (s *Step) Plan(ctx context.Context) ([]plan.Change, error) {
	if s.design == nil {
		if _, err := s.Check(ctx); err != nil {
			return nil, err
		}
	}
	d := s.design
	if d.Unchanged {
		return nil, nil
	}
	change := plan.Change{Object: filepath.Join(d.options.Out, Current), Why: "profile " + string(d.options.Profile) + " needs a kernel and a root with what QAT needs"}
	if m, err := ReadManifest(change.Object); err == nil {
		change.From = m.Summary()
	}
	if len(d.Commands) > 0 {
		change.To = "a kernel that is built from " + d.options.Source + d.options.DriverArchive
		return []plan.Change{change}, nil
	}
	change.To = fmt.Sprintf("Linux %s and %s from %s with %d files more", d.Manifest.Kernel.Release, d.Manifest.Root.File, d.Manifest.Root.Base.Name, len(d.Manifest.Files))
	return []plan.Change{change}, nil
}

const kindGuest = "guest" // by Options.Out: the ID of the guest that was there

// Apply makes the guest.
func (s *Step) Apply(ctx context.Context, j *plan.Journal) error {
	d, err := Prepare(ctx, s.Options, true)
	if err != nil {
		return err
	}
	s.design = nil
	was := ""
	if m, err := ReadManifest(filepath.Join(d.options.Out, Current)); err == nil {
		was = m.ID
	}
	r, err := plan.NewRecord(s.Name(), kindGuest, d.options.Out, was, d.Manifest.ID)
	if err != nil {
		return err
	}
	if err := j.Save(r); err != nil {
		return err
	}
	_, err = d.Make(ctx)
	return err
}

// Undo makes the guest current that was there before, or none.
func (s *Step) Undo(_ context.Context, records []plan.Record) error {
	for _, r := range records {
		if r.Kind != kindGuest {
			return fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
		}
		var was string
		if err := json.Unmarshal(r.Before, &was); err != nil {
			return err
		}
		if err := goBack(r.Object, was); err != nil {
			return err
		}
	}
	s.design = nil
	return nil
}

// goBack undoes guests until the one with the ID is current, or none is. One
// that is no longer kept cannot come back: then the last that is kept stays.
func goBack(out, id string) error {
	for {
		m, err := ReadManifest(filepath.Join(out, Current))
		if err != nil || m.ID == id {
			return nil // nothing is there, or what was
		}
		back, err := Undo(out)
		if err != nil {
			return err
		}
		if back == nil && id != "" {
			return fmt.Errorf("undo the guest in %s: the guest %s is no longer kept: make it again", out, id)
		}
	}
}
