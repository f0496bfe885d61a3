package guest_test

import (
	"os"
	"testing"

	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

func TestAGuestIsAStepOfAPlan(t *testing.T) {
	m := newMachine(t)
	engine := &plan.Engine{Steps: []plan.Step{&guest.Step{Options: m.o}}, Root: t.TempDir()}
	planned, err := engine.Plan(t.Context())
	m.must(err)
	if !planned.Pending || len(planned.Steps) != 1 || len(planned.Steps[0].Changes) != 1 {
		t.Fatalf("planned %+v", planned)
	}
	done, err := engine.Apply(t.Context())
	m.must(err)
	if !done.Changed || done.Pending {
		t.Errorf("applied %+v", done)
	}
	m.must(guest.Verify(t.Context(), m.o.Out))
	again, err := engine.Apply(t.Context())
	m.must(err)
	if again.Changed || again.Steps[0].Status != plan.Done {
		t.Errorf("applied again %+v", again)
	}
	undone, err := engine.Undo(t.Context())
	m.must(err)
	if !undone.Changed {
		t.Errorf("undone %+v", undone)
	}
	if _, err := os.Lstat(m.current()); !os.IsNotExist(err) {
		t.Errorf("the guest is still there: %v", err)
	}
}

func TestAStepUndoesToTheGuestThatWasThere(t *testing.T) {
	m := newMachine(t)
	first := m.mustMake()
	m.o.Plain = true
	engine := &plan.Engine{Steps: []plan.Step{&guest.Step{Options: m.o}}, Root: t.TempDir()}
	_, err := engine.Apply(t.Context())
	m.must(err)
	_, err = engine.Undo(t.Context())
	m.must(err)
	if now, err := guest.ReadManifest(m.current()); err != nil || now.ID != first.ID {
		t.Errorf("the guest is %+v, %v: expected %s", now, err, first.ID)
	}
}
