package plan

import (
	"context"
	"errors"
	"fmt"
)

// Outliner is a step that can say what it does before it can be checked: behind a
// closed Gate, or while something that it relies on is not there yet.
type Outliner interface {
	// Outline is what Apply does once all is there that the step relies on: as it
	// will be, so far as that is known by now, and the rest in general. It refuses
	// nothing and changes nothing.
	Outline(context.Context) []Change
}

// Absent marks an error about what has to be there before a step is possible, and
// that no step brings: a card, Kata. A plan shows what comes behind it.
func Absent(err error) error {
	if err == nil {
		return nil
	}
	return &absent{err}
}

type absent struct{ error }

func (a *absent) Unwrap() error { return a.error }

// OnlyAbsent tells whether all that is wrong was marked by Absent.
func OnlyAbsent(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case *absent:
		return true
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if !OnlyAbsent(one) {
				return false
			}
		}
		return true
	}
	return OnlyAbsent(errors.Unwrap(err))
}

// After is an error of Check about what another step makes first. In a plan that
// is nothing wrong.
func After(step string) error { return &after{step} }

type after struct{ step string }

func (a *after) Error() string { return fmt.Sprintf("it needs what the step %s makes first", a.step) }

// outline is a step that cannot be checked before another one, or what it waits
// for, is done.
func outline(ctx context.Context, s Step, after string) Result {
	r := Result{Step: s.Name(), Status: Skipped}
	if o, ok := s.(Outliner); ok {
		r.Status, r.After, r.Changes = Later, after, o.Outline(ctx)
	}
	return r
}
