package plan_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// setting is a step that gives settings of a machine, which is a map, values.
type setting struct {
	name    string
	machine map[string]string
	want    map[string]string
	check   error
	wait    string
	before  func() // is called before anything is applied
	fail    error  // of Apply, when all is applied
}

func (s *setting) Name() string { return s.name }

func (s *setting) Check(context.Context) (plan.State, error) {
	return plan.State{Is: fmt.Sprint(s.machine), Wait: s.wait}, s.check
}

func (s *setting) Plan(context.Context) (changes []plan.Change, _ error) {
	for _, k := range slices.Sorted(maps.Keys(s.want)) {
		if s.machine[k] != s.want[k] {
			changes = append(changes, plan.Change{Object: k, From: s.machine[k], To: s.want[k], Why: "the test says so"})
		}
	}
	return changes, nil
}

func (s *setting) Apply(ctx context.Context, j *plan.Journal) error {
	if s.before != nil {
		s.before()
	}
	changes, _ := s.Plan(ctx)
	for _, c := range changes {
		r, err := plan.NewRecord(s.name, "setting", c.Object, c.From, nil)
		if err != nil {
			return err
		}
		if err := j.Save(r); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s.machine[c.Object] = c.To
		if err := j.Reached("set " + c.Object); err != nil {
			return err
		}
	}
	return s.fail
}

func (s *setting) Undo(_ context.Context, records []plan.Record) error {
	for _, r := range slices.Backward(records) {
		var was string
		if err := json.Unmarshal(r.Before, &was); err != nil {
			return err
		}
		if was == "" {
			delete(s.machine, r.Object)
		} else {
			s.machine[r.Object] = was
		}
	}
	return nil
}

// slow is a setting that stops when it is told to.
type slow struct{ *setting }

func (slow) Interruptible() {}

// gate is a setting without which the others make no sense.
type gate struct{ *setting }

func (gate) Gate() {}

// bench is an engine with two steps and the machine that they change.
type bench struct {
	plan.Engine
	machine       map[string]string
	first, second *setting
}

func newBench(t *testing.T) *bench {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := map[string]string{"a": "1"}
	b := &bench{
		machine: m,
		first:   &setting{name: "first", machine: m, want: map[string]string{"a": "2", "b": "3"}},
		second:  &setting{name: "second", machine: m, want: map[string]string{"c": "4", "d": "5"}},
	}
	b.Engine = plan.Engine{Root: root, Steps: []plan.Step{b.first, b.second}}
	return b
}

var (
	original    = map[string]string{"a": "1"}
	provisioned = map[string]string{"a": "2", "b": "3", "c": "4", "d": "5"}
)

func (b *bench) expect(t *testing.T, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, b.machine); diff != "" {
		t.Errorf("machine (-want +got):\n%s", diff)
	}
}

// left are the files in the journal's directory.
func (b *bench) left(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.Root, plan.Directory))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func statuses(o *plan.Outcome) (all []plan.Status) {
	for _, r := range o.Steps {
		all = append(all, r.Status)
	}
	return all
}

func expectStatuses(t *testing.T, o *plan.Outcome, want ...plan.Status) {
	t.Helper()
	if diff := cmp.Diff(want, statuses(o)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

func must(t *testing.T, o *plan.Outcome, err error) *plan.Outcome {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAPlanSaysWhatWouldChangeAndChangesNothing(t *testing.T) {
	b := newBench(t)
	out, err := b.Plan(t.Context())
	must(t, out, err)
	b.expect(t, original)
	expectStatuses(t, out, plan.Pending, plan.Pending)
	if !out.Pending || out.Changed || len(b.left(t)) != 0 {
		t.Errorf("pending %t, changed %t, files %v", out.Pending, out.Changed, b.left(t))
	}
	want := plan.Change{Object: "a", From: "1", To: "2", Why: "the test says so"}
	if got := out.Steps[0].Changes[0]; got != want {
		t.Errorf("first change %+v, want %+v", got, want)
	}
}

func TestApplyThenAgainThenUndo(t *testing.T) {
	b := newBench(t)
	out, err := b.Apply(t.Context())
	expectStatuses(t, must(t, out, err), plan.Changed, plan.Changed)
	b.expect(t, provisioned)
	if out.Pending || !out.Changed {
		t.Errorf("pending %t, changed %t after all was applied", out.Pending, out.Changed)
	}
	journal, err := os.ReadFile(filepath.Join(b.Root, plan.Directory, "journal.json"))
	if err != nil {
		t.Fatal(err)
	}

	out, err = b.Apply(t.Context())
	expectStatuses(t, must(t, out, err), plan.Done, plan.Done)
	if again, err := os.ReadFile(filepath.Join(b.Root, plan.Directory, "journal.json")); err != nil || string(again) != string(journal) {
		t.Errorf("a run without changes changed the journal: %v", err)
	}

	out, err = b.Undo(t.Context())
	expectStatuses(t, must(t, out, err), plan.Undone, plan.Undone)
	if out.Steps[0].Step != "second" {
		t.Errorf("%s was undone first, want second", out.Steps[0].Step)
	}
	b.expect(t, original)
	if left := b.left(t); len(left) != 0 {
		t.Errorf("undo left %v", left)
	}
	out, err = b.Undo(t.Context())
	if must(t, out, err); out.Changed || len(b.left(t)) != 0 {
		t.Error("undo without a journal did something")
	}
}

func TestWhatWasBeforeTheFirstChangeCounts(t *testing.T) {
	b := newBench(t)
	_, err := b.Apply(t.Context())
	must(t, nil, err)
	b.first.want["a"] = "7"
	_, err = b.Apply(t.Context())
	must(t, nil, err)
	_, err = b.Undo(t.Context())
	must(t, nil, err)
	b.expect(t, original)
}

var errKilled = errors.New("killed")

// killAt stops a run at the n-th place where it might be killed.
func killAt(n int) func(string) error {
	return func(string) error {
		if n--; n == 0 {
			return errKilled
		}
		return nil
	}
}

// everywhere calls f with each place of run at which it might be killed.
func everywhere(t *testing.T, start func(t *testing.T) *bench, run func(*bench) error, after func(*bench)) {
	t.Helper()
	for n := 1; ; n++ {
		b := start(t)
		b.Fault = killAt(n)
		err := run(b)
		if err == nil {
			if n < 5 {
				t.Errorf("only %d places to be killed at", n-1)
			}
			return
		}
		if !errors.Is(err, errKilled) {
			t.Fatalf("place %d: %v", n, err)
		}
		b.Fault = nil
		after(b)
		if t.Failed() {
			t.Fatalf("killed at place %d", n)
		}
	}
}

func apply(b *bench) error { _, err := b.Apply(context.Background()); return err }
func undo(b *bench) error  { _, err := b.Undo(context.Background()); return err }

func TestAKilledRunIsCompletedByAnother(t *testing.T) {
	everywhere(t, newBench, apply, func(b *bench) {
		if err := apply(b); err != nil {
			t.Error(err)
		}
		b.expect(t, provisioned)
		if err := undo(b); err != nil {
			t.Error(err)
		}
		b.expect(t, original)
	})
}

func TestAKilledRunIsUndone(t *testing.T) {
	everywhere(t, newBench, apply, func(b *bench) {
		if err := undo(b); err != nil {
			t.Error(err)
		}
		b.expect(t, original)
	})
}

func TestAKilledUndoIsCompletedByAnother(t *testing.T) {
	start := func(t *testing.T) *bench {
		b := newBench(t)
		if err := apply(b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	kills := 0
	for n := 1; ; n++ {
		b := start(t)
		b.Fault = killAt(n)
		if err := undo(b); err == nil {
			break
		}
		kills++
		b.Fault = nil
		if err := undo(b); err != nil {
			t.Fatal(err)
		}
		b.expect(t, original)
	}
	if kills != 4 {
		t.Errorf("killed at %d places, want 4", kills)
	}
}

func TestNothingIsChangedIfAnyStepCannotBe(t *testing.T) {
	b := newBench(t)
	b.second.check = errors.New("no")
	out, err := b.Apply(t.Context())
	if err == nil || err.Error() != "second: no" {
		t.Errorf("error %v, want second: no", err)
	}
	expectStatuses(t, out, plan.Pending, plan.Failed)
	b.expect(t, original)
	if left := b.left(t); len(left) != 0 {
		t.Errorf("it left %v", left)
	}
}

func TestBehindAClosedGateNothingIsChecked(t *testing.T) {
	b := newBench(t)
	b.first.check = errors.New("no")
	b.second.check = errors.New("neither")
	b.Steps[0] = gate{b.first}
	out, err := b.Plan(t.Context())
	if err == nil || err.Error() != "first: no" {
		t.Errorf("error %v, want first: no", err)
	}
	expectStatuses(t, out, plan.Failed, plan.Skipped)
}

// outlined is a setting that can say what it does before it can be checked.
type outlined struct{ *setting }

func (o outlined) Outline(context.Context) []plan.Change {
	return []plan.Change{{Object: o.name, To: "set"}}
}

func TestAPlanShowsWhatComesLater(t *testing.T) {
	missing, wrong := plan.Absent(errors.New("no card")), errors.New("no")
	for name, tc := range map[string]struct {
		first, second error
		steps         func(*bench) []plan.Step
		statuses      []plan.Status
		after         string
		absent        bool
	}{
		"behind a gate": {first: missing, steps: func(b *bench) []plan.Step { return []plan.Step{gate{b.first}, outlined{b.second}} },
			statuses: []plan.Status{plan.Missing, plan.Later}, after: "first", absent: true},
		"behind a gate that failed": {first: wrong, steps: func(b *bench) []plan.Step { return []plan.Step{gate{b.first}, outlined{b.second}} },
			statuses: []plan.Status{plan.Failed, plan.Later}, after: "first"},
		"without its own": {second: missing, steps: func(b *bench) []plan.Step { return []plan.Step{b.first, outlined{b.second}} },
			statuses: []plan.Status{plan.Pending, plan.Missing}, absent: true},
		"without its own, and wrong": {second: errors.Join(missing, wrong), steps: func(b *bench) []plan.Step { return []plan.Step{b.first, outlined{b.second}} },
			statuses: []plan.Status{plan.Pending, plan.Failed}},
		"after a step of another engine": {second: plan.After("guest"), steps: func(b *bench) []plan.Step { return []plan.Step{b.first, outlined{b.second}} },
			statuses: []plan.Status{plan.Pending, plan.Later}, after: "guest"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.first.check, b.second.check = tc.first, tc.second
			b.Steps = tc.steps(b)
			out, err := b.Plan(t.Context())
			expectStatuses(t, out, tc.statuses...)
			if plan.OnlyAbsent(err) != tc.absent || !out.Pending {
				t.Errorf("error %v, pending %t", err, out.Pending)
			}
			second := out.Steps[1]
			if second.After != tc.after || second.Status != plan.Failed && len(second.Changes) != 1 {
				t.Errorf("the second step is %+v", second)
			}
			if err != nil {
				if _, err := b.Apply(t.Context()); err == nil {
					t.Error("it was applied")
				}
				b.expect(t, original)
			}
		})
	}
}

func TestAStepThatWaitsForTheNextBootIsLeftForIt(t *testing.T) {
	b := newBench(t)
	b.second.wait = "the IOMMU is off"
	out, err := b.Apply(t.Context())
	expectStatuses(t, must(t, out, err), plan.Changed, plan.Waiting)
	if !out.Reboot || !out.Pending {
		t.Errorf("reboot %t, pending %t", out.Reboot, out.Pending)
	}
	out, err = b.Apply(t.Context())
	expectStatuses(t, must(t, out, err), plan.Done, plan.Waiting)
	b.second.wait = ""
	out, err = b.Apply(t.Context())
	expectStatuses(t, must(t, out, err), plan.Done, plan.Changed)
	b.expect(t, provisioned)
}

func TestTwoRunsCannotMeet(t *testing.T) {
	b := newBench(t)
	var met error
	b.first.before = func() {
		other := plan.Engine{Root: b.Root, Steps: b.Steps}
		_, met = other.Apply(context.Background())
	}
	_, err := b.Apply(t.Context())
	must(t, nil, err)
	var locked *plan.LockedError
	if !errors.As(met, &locked) || locked.PID != os.Getpid() || !strings.Contains(met.Error(), fmt.Sprintf("process %d is provisioning", os.Getpid())) {
		t.Errorf("the other run got %v, want the lock's error with process %d", met, os.Getpid())
	}
}

func TestAnInterruptFinishesTheStepInHand(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.first.before = cancel
	out, err := b.Apply(ctx)
	if !errors.Is(err, plan.ErrInterrupted) {
		t.Fatalf("error %v, want %v", err, plan.ErrInterrupted)
	}
	expectStatuses(t, out, plan.Changed, plan.Pending)
	b.expect(t, map[string]string{"a": "2", "b": "3"})
	if err := apply(b); err != nil {
		t.Fatal(err)
	}
	b.expect(t, provisioned)
}

func TestAnInterruptUndoesALongStep(t *testing.T) {
	b := newBench(t)
	b.Steps[1] = slow{b.second}
	ctx, cancel := context.WithCancel(t.Context())
	b.second.before = cancel
	_, err := b.Apply(ctx)
	if !errors.Is(err, plan.ErrInterrupted) {
		t.Fatalf("error %v, want %v", err, plan.ErrInterrupted)
	}
	b.expect(t, map[string]string{"a": "2", "b": "3"})
	_, err = b.Undo(t.Context())
	must(t, nil, err)
	b.expect(t, original)
}

func TestALongStepThatFailsIsUndone(t *testing.T) {
	b := newBench(t)
	b.Steps[1] = slow{b.second}
	broken := errors.New("no space left")
	b.second.fail = broken
	_, err := b.Apply(t.Context())
	if !errors.Is(err, broken) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("error %v, want %v in one line", err, broken)
	}
	b.expect(t, map[string]string{"a": "2", "b": "3"})
	_, err = b.Undo(t.Context())
	must(t, nil, err)
	b.expect(t, original)
}

func TestAJournalThatIsNotOursIsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"broken":       {"{", "read the journal"},
		"of a version": {`{"version":9,"records":[]}`, "version 9, expected 1"},
	} {
		b := newBench(t)
		dir := filepath.Join(b.Root, plan.Directory)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "journal.json"), []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := undo(b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
}

func TestEnginesShareAJournalAndUndoTheirOwn(t *testing.T) {
	b := newBench(t)
	one := plan.Engine{Root: b.Root, Steps: b.Steps[:1]}
	two := plan.Engine{Root: b.Root, Steps: b.Steps[1:]}
	for _, e := range []plan.Engine{one, two} {
		out, err := e.Apply(t.Context())
		must(t, out, err)
	}
	out, err := one.Undo(t.Context())
	expectStatuses(t, must(t, out, err), plan.Undone)
	b.expect(t, map[string]string{"a": "1", "c": "4", "d": "5"})
	out, err = one.Undo(t.Context())
	if must(t, out, err); out.Changed {
		t.Error("it was undone twice")
	}
	out, err = two.Undo(t.Context())
	expectStatuses(t, must(t, out, err), plan.Undone)
	b.expect(t, original)
	if left := b.left(t); len(left) != 0 {
		t.Errorf("undo left %v", left)
	}
}

func TestAFileIsReplacedWholeAndNothingIsLeftBeside(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	for _, content := range []string{"one\n", "another\n"} {
		if err := plan.WriteFile(name, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(name)
		if err != nil || string(b) != content {
			t.Errorf("it holds %q, %v", b, err)
		}
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v; want 0640", info.Mode(), err)
	}
	if err := plan.WriteFile(filepath.Join(dir, "none", "file"), nil, 0o600); err == nil {
		t.Error("a file was written into a directory that is not there")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files, want one", len(entries))
	}
}

func TestAPlanIsWrittenForPeople(t *testing.T) {
	b := newBench(t)
	b.first.want["b"] = "x\ny\n"
	b.machine["b"] = "x\n\x1b[2Jz\n"
	b.second.wait = "the IOMMU is off"
	out, err := b.Plan(t.Context())
	must(t, out, err)
	var w strings.Builder
	if err := plan.Write(&w, out, output.Colours{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"~ first   pending  ", "      a: the test says so\n          1 -> 2\n",
		"      b: the test says so\n          - \\u001b[2Jz\n          + y\n",
		"… second  waiting  ", "          (nothing) -> 4\n", "      waits: the IOMMU is off\n",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("it lacks %q:\n%s", want, w.String())
		}
	}
}

func TestProgressInAPipeIsALineForEachStep(t *testing.T) {
	b := newBench(t)
	var w strings.Builder
	b.Progress = plan.NewProgress(&w)
	_, err := b.Apply(t.Context())
	must(t, nil, err)
	lines := strings.Split(strings.TrimSpace(w.String()), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "first: changed in ") || strings.ContainsAny(w.String(), "\r\x1b") {
		t.Errorf("progress is %q", w.String())
	}
}
