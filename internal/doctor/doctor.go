// Package doctor finds out what keeps a node from giving QAT devices to Kata
// pods. It holds a table of checks, each of one condition, and for every one that
// is not met says where that stands and which command mends it. It only reads: it
// writes no file, starts no program, and asks daemons nothing that changes them.
package doctor

import (
	"cmp"
	"context"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containers"
)

// State is what a check found.
type State string

// The states, the better first.
const (
	OK   State = "ok"
	Skip State = "skip" // it does not apply here, or another check says why it cannot be made
	Warn State = "warn" // pods get their devices, but something could be better
	Fail State = "fail" // pods do not get their devices, or not as they should
)

// Area is what a group of checks is about.
type Area string

// The areas, in the order in which one depends on another.
const (
	Settings Area = "settings"
	Host     Area = "host"
	Devices  Area = "devices"
	Daemon   Area = "daemon"
	Runtime  Area = "containerd"
	Kata     Area = "kata"
)

// Evidence is something that was looked at.
type Evidence struct {
	Path  string `json:"path"`           // a file of the host, or what else was asked
	Value string `json:"value"`          // what is there
	Want  string `json:"want,omitempty"` // what is expected there, if it is something else
}

// Result is what came of one check.
type Result struct {
	Check string `json:"check"` // the check's ID
	Area  Area   `json:"area"`
	State State  `json:"state"`
	// About says what the check is about, in a few words.
	About    string     `json:"about"`
	Reason   string     `json:"reason,omitempty"` // why it is not OK
	Evidence []Evidence `json:"evidence,omitempty"`
	Mend     string     `json:"mend,omitempty"` // the command that mends it; perhaps several, joined for a shell
}

// Summary counts results by their state.
type Summary struct {
	OK   int `json:"ok"`
	Warn int `json:"warn"`
	Fail int `json:"fail"`
	Skip int `json:"skip"`
}

// Report is all of it.
type Report struct {
	Summary Summary  `json:"summary"`
	Checks  []Result `json:"checks"`
}

// Worst is the state of the worst result, OK if nothing is wrong.
func (r *Report) Worst() State {
	switch {
	case r.Summary.Fail > 0:
		return Fail
	case r.Summary.Warn > 0:
		return Warn
	}
	return OK
}

// Result returns what came of a check, or nil for one that there is not.
func (r *Report) Result(check string) *Result {
	for i := range r.Checks {
		if r.Checks[i].Check == check {
			return &r.Checks[i]
		}
	}
	return nil
}

// Options say which node is looked at, and what it is to be like.
type Options struct {
	Root   string // of the host; everything is read below it
	Config *config.Config
	// ConfigFile is where Config is from, and ConfigErr why it could not be read;
	// Config is the default then.
	ConfigFile string
	ConfigErr  error
	// BootFlags are the flags that provision host was run with, which Config has
	// taken in.
	BootFlags []string
	// Containerd is where containerd is, and ContainerdConfig its configuration
	// file below Root; "" for where the distribution has it.
	Containerd       containers.Node
	ContainerdConfig string
}

// Check is one condition.
type Check struct {
	ID    string // a few words joined by "-", for programs and for the manual
	Area  Area
	About string
	run   func(context.Context, *patient) finding
}

// finding is a result, without what the check's entry in the table says.
type finding struct {
	state    State
	reason   string
	evidence []Evidence
	mend     string
}

func ok(e ...Evidence) finding { return finding{state: OK, evidence: e} }

func skip(reason string, e ...Evidence) finding {
	return finding{state: Skip, reason: reason, evidence: e}
}

func warn(reason, mend string, e ...Evidence) finding {
	return finding{state: Warn, reason: reason, mend: mend, evidence: e}
}

func fail(reason, mend string, e ...Evidence) finding {
	return finding{state: Fail, reason: reason, mend: mend, evidence: e}
}

// unknown is for what could not be looked at.
func unknown(path string, err error) finding {
	return fail("it cannot be read", "", Evidence{Path: path, Value: err.Error()})
}

// Run makes all checks, in the order of Checks. That something could not be
// looked at is among the results.
func Run(ctx context.Context, o Options) *Report {
	p := newPatient(ctx, o)
	defer p.close()
	r := &Report{}
	for _, c := range Checks {
		f := c.run(ctx, p)
		p.states[c.ID] = f.state
		r.Checks = append(r.Checks, Result{
			Check: c.ID, Area: c.Area, State: f.state, About: c.About,
			Reason: f.reason, Evidence: f.evidence, Mend: f.mend,
		})
		switch f.state {
		case OK:
			r.Summary.OK++
		case Warn:
			r.Summary.Warn++
		case Fail:
			r.Summary.Fail++
		default:
			r.Summary.Skip++
		}
	}
	return r
}

// worse returns the worse of two findings, with the evidence of the first if
// they are as bad.
func worse(a, b finding) finding {
	order := map[State]int{OK: 0, Skip: 1, Warn: 2, Fail: 3}
	if cmp.Compare(order[b.state], order[a.state]) > 0 {
		return b
	}
	return a
}
