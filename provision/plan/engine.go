package plan

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// Engine runs the steps of one machine.
type Engine struct {
	Steps []Step
	Root  string // of the machine
	// Progress hears of each step; nil for nobody.
	Progress Progress
	// Fault is called at every place where a run might be killed; an error of
	// its stops the run as if it were. Only for tests.
	Fault func(point string) error
}

// Progress hears how a run goes on.
type Progress interface {
	Begin(step string, n, of int)
	End(Result)
}

// ErrInterrupted says that a run was stopped between two steps. Another run goes
// on from there.
var ErrInterrupted = errors.New("interrupted: run this again to go on, or with --undo to go back")

// Plan checks all steps and says what would change. It changes nothing and takes
// no lock. The errors of all steps are joined; the outcome is whole
// nevertheless: of a step that cannot be checked yet it has the outline.
func (e *Engine) Plan(ctx context.Context) (*Outcome, error) {
	out := &Outcome{Steps: []Result{}}
	var errs []error
	closed := "" // by this gate
	for _, s := range e.Steps {
		if closed != "" {
			out.Add(outline(ctx, s, closed))
			continue
		}
		r, err := survey(ctx, s)
		errs = append(errs, err)
		out.Add(r)
		if _, gate := s.(Gate); gate && err != nil {
			closed = s.Name()
		}
	}
	return out, errors.Join(errs...)
}

// survey is what a step would do.
func survey(ctx context.Context, s Step) (Result, error) {
	r := Result{Step: s.Name(), Status: Done}
	state, err := s.Check(ctx)
	r.Is, r.Notes, r.Wait = state.Is, state.Notes, state.Wait
	if err == nil {
		r.Changes, err = s.Plan(ctx)
	}
	var first *after
	switch {
	case errors.As(err, &first):
		return outline(ctx, s, first.step), nil
	case OnlyAbsent(err):
		err = fmt.Errorf("%s: %w", s.Name(), err)
		r.Status, r.Error = Missing, err.Error()
		r.Changes = outline(ctx, s, "").Changes
	case err != nil:
		err = fmt.Errorf("%s: %w", s.Name(), err)
		r.Status, r.Error = Failed, err.Error()
	case len(r.Changes) > 0 && r.Wait != "":
		r.Status = Waiting
	case len(r.Changes) > 0:
		r.Status = Pending
	}
	return r, err
}

// Apply makes all steps true, in order. It refuses before anything is changed
// if one of them cannot be; it changes nothing, and leaves nothing, where all
// are true. When ctx is cancelled the step in hand is finished, or undone if it
// is Interruptible, and ErrInterrupted returned. An Interruptible step that fails
// is undone, too; what another has done by then stays for the next run.
func (e *Engine) Apply(ctx context.Context) (*Outcome, error) {
	dir := filepath.Join(e.Root, Directory)
	l, err := acquire(dir)
	if err != nil {
		return &Outcome{Steps: []Result{}}, err
	}
	out, err := e.applyLocked(ctx, dir)
	return out, errors.Join(err, l.release())
}

func (e *Engine) applyLocked(ctx context.Context, dir string) (*Outcome, error) {
	planned, err := e.Plan(ctx)
	if err != nil || !slices.ContainsFunc(planned.Steps, func(r Result) bool { return r.Status == Pending }) {
		return planned, err
	}
	j, err := openJournal(dir)
	if err != nil {
		return planned, err
	}
	j.fault = e.Fault
	return e.apply(ctx, j, planned)
}

func (e *Engine) apply(ctx context.Context, j *Journal, planned *Outcome) (*Outcome, error) {
	out := &Outcome{Steps: []Result{}}
	for i, s := range e.Steps {
		r := planned.Steps[i]
		err := e.reached("before " + s.Name())
		if err == nil && ctx.Err() != nil {
			err = ErrInterrupted
		}
		if err == nil && out.Changed { // what an earlier step changed may matter to this one
			r, err = survey(ctx, s)
		}
		if err == nil && r.Status == Pending {
			r, err = e.applyStep(ctx, s, j, r, i)
		}
		out.Add(r)
		if err == nil {
			err = e.reached("after " + s.Name())
		}
		if err != nil {
			for _, rest := range planned.Steps[i+1:] {
				out.Add(Result{Step: rest.Step, Status: Skipped})
			}
			out.Pending = true
			return out, err
		}
	}
	return out, nil
}

func (e *Engine) applyStep(ctx context.Context, s Step, j *Journal, r Result, n int) (Result, error) {
	e.begin(s, n)
	start := time.Now()
	_, interruptible := s.(Interruptible)
	stepCtx := ctx
	if !interruptible {
		stepCtx = context.WithoutCancel(ctx)
	}
	err := s.Apply(stepCtx, j)
	if err != nil && interruptible && !j.killed.Load() {
		if ctx.Err() != nil {
			err = ErrInterrupted
		}
		err = errors.Join(err, e.undoFresh(context.WithoutCancel(ctx), s, j))
	}
	r.Status = Changed
	if err == nil {
		var state State
		if state, err = s.Check(stepCtx); err == nil {
			r.Is, r.Notes = state.Is, state.Notes
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", s.Name(), err)
		r.Status, r.Error = Failed, err.Error()
	}
	r.Seconds = time.Since(start).Seconds()
	e.end(r)
	return r, err
}

// undoFresh undoes what a step has done in this run.
func (e *Engine) undoFresh(ctx context.Context, s Step, j *Journal) error {
	records := j.of(s.Name(), j.fresh)
	if len(records) == 0 {
		return nil
	}
	if err := s.Undo(ctx, records); err != nil {
		return err
	}
	return j.Forget(records...)
}

// Undo restores what the journal says was there before these steps, last step
// first; what it has of other engines' steps stays. When ctx is cancelled the
// step in hand is finished and ErrInterrupted returned; another Undo goes on from
// there. Without a journal there is nothing to undo.
func (e *Engine) Undo(ctx context.Context) (*Outcome, error) {
	out := &Outcome{Steps: []Result{}}
	dir := filepath.Join(e.Root, Directory)
	// Only to look: nothing is to be made on a machine that was never changed.
	j, err := openJournal(dir)
	if err != nil || !slices.ContainsFunc(e.Steps, func(s Step) bool { return len(j.Records(s.Name())) > 0 }) {
		return out, err
	}
	l, err := acquire(dir)
	if err != nil {
		return out, err
	}
	err = e.undo(ctx, dir, out)
	return out, errors.Join(err, l.release())
}

func (e *Engine) undo(ctx context.Context, dir string, out *Outcome) error {
	j, err := openJournal(dir)
	if err != nil {
		return err
	}
	j.fault = e.Fault
	for i, s := range slices.Backward(e.Steps) {
		records := j.Records(s.Name())
		if len(records) == 0 {
			continue
		}
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		if err := e.reached("before undo " + s.Name()); err != nil {
			return err
		}
		e.begin(s, len(e.Steps)-1-i)
		start := time.Now()
		r := Result{Step: s.Name(), Status: Undone, Is: fmt.Sprintf("%d things as they were", len(records))}
		err := s.Undo(context.WithoutCancel(ctx), records)
		if err == nil {
			err = e.reached("undone " + s.Name())
		}
		if err == nil {
			err = j.Forget(records...)
		}
		if err != nil {
			err = fmt.Errorf("undo %s: %w", s.Name(), err)
			r.Status, r.Error = Failed, err.Error()
		}
		r.Seconds = time.Since(start).Seconds()
		e.end(r)
		out.Add(r)
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) reached(point string) error {
	if e.Fault == nil {
		return nil
	}
	return e.Fault(point)
}

func (e *Engine) begin(s Step, n int) {
	if e.Progress != nil {
		e.Progress.Begin(s.Name(), n+1, len(e.Steps))
	}
}

func (e *Engine) end(r Result) {
	if e.Progress != nil {
		e.Progress.End(r)
	}
}
