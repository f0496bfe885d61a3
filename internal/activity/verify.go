package activity

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Target is a PF that a pod has VFs of.
type Target struct {
	PF  qat.Address   `json:"pf"`
	VFs []qat.Address `json:"vfs"` // the pod's
	// SharedWith are the others who hold VFs of the PF, and can have sent it
	// what it got.
	SharedWith []string `json:"sharedWith,omitempty"`
}

// Targets finds the PFs of the VFs that a pod holds.
func Targets(inv *qat.Inventory, holders Holders, pod string) []Target {
	var all []Target
	for i := range inv.PFs {
		pf := &inv.PFs[i]
		t := Target{PF: pf.Address}
		for _, vf := range pf.VFs {
			for _, h := range holders[vf.Address] {
				switch {
				case h != pod:
					if !slices.Contains(t.SharedWith, h) {
						t.SharedWith = append(t.SharedWith, h)
					}
				case !slices.Contains(t.VFs, vf.Address):
					t.VFs = append(t.VFs, vf.Address)
				}
			}
		}
		if len(t.VFs) > 0 {
			slices.Sort(t.SharedWith)
			all = append(all, t)
		}
	}
	return all
}

// PFs are those of the targets.
func PFs(inv *qat.Inventory, targets []Target) []qat.PF {
	pfs := make([]qat.PF, len(targets))
	for i, t := range targets {
		pfs[i] = *inv.PF(t.PF)
	}
	return pfs
}

// Answer is whether a pod uses the hardware.
type Answer string

// The answers.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Perhaps Answer = "perhaps" // only PFs that others hold VFs of, too, got requests
)

// Verdict is the answer and what it stands on.
type Verdict struct {
	Pod     string  `json:"pod"`
	InUse   Answer  `json:"hardwareInUse"`
	Why     string  `json:"why"`
	Seconds float64 `json:"seconds"`
	PFs     []Use   `json:"pfs"`
}

// Use is what a PF got in the meantime.
type Use struct {
	Target
	Health    qat.Health `json:"health"`
	State     string     `json:"state,omitempty"`
	Requests  uint64     `json:"requests"`
	Responses uint64     `json:"responses"`
	Problem   string     `json:"problem,omitempty"` // why that is not known
}

// Judge compares two samples of the PFs of a pod.
func Judge(pod string, targets []Target, before, after *Sample) Verdict {
	v := Verdict{Pod: pod, InUse: No, Seconds: after.Time.Sub(before.Time).Seconds()}
	for _, t := range targets {
		v.PFs = append(v.PFs, use(t, before.pf(t.PF), after.pf(t.PF)))
	}
	var alone, shared, wrong []string
	for _, u := range v.PFs {
		switch {
		case u.Requests > 0 && len(u.SharedWith) == 0:
			alone = append(alone, u.gained())
		case u.Requests > 0:
			shared = append(shared, fmt.Sprintf("%s, shared with %s", u.gained(), strings.Join(u.SharedWith, ", ")))
		case u.Problem != "":
			wrong = append(wrong, fmt.Sprintf("PF %s: %s", u.PF, u.Problem))
		case u.Health == qat.HealthDead:
			wrong = append(wrong, fmt.Sprintf("PF %s does not answer its heartbeat", u.PF))
		}
	}
	switch {
	case len(targets) == 0:
		v.Why = "the pod holds no QAT VF of this node"
	case len(alone) > 0:
		v.InUse, v.Why = Yes, strings.Join(append(alone, shared...), "; ")
	case len(shared) > 0:
		v.InUse, v.Why = Perhaps, strings.Join(shared, "; ")
	case len(wrong) > 0:
		v.Why = strings.Join(wrong, "; ")
	default:
		v.Why = fmt.Sprintf("%s got no request in %s", v.list(), span(v.Seconds))
	}
	return v
}

func use(t Target, before, after *PF) Use {
	u := Use{Target: t}
	switch {
	case before == nil || after == nil:
		u.Problem = "it is gone"
		return u
	case before.Problem != "":
		u.Problem = before.Problem
	case after.Problem != "":
		u.Problem = after.Problem
	}
	u.Health, u.State = after.Health, after.State
	switch {
	case u.Problem != "":
	case after.restarted(before):
		// It counts from 0 since then.
		u.Requests, u.Responses = after.Requests, after.Responses
	default:
		u.Requests, u.Responses = after.Requests-before.Requests, after.Responses-before.Responses
	}
	return u
}

func (u *Use) gained() string { return fmt.Sprintf("PF %s: +%s requests", u.PF, Count(u.Requests)) }

func (v *Verdict) list() string {
	names := make([]string, len(v.PFs))
	for i, u := range v.PFs {
		names[i] = string(u.PF)
	}
	if len(names) == 1 {
		return "PF " + names[0]
	}
	return "PFs " + strings.Join(names, ", ")
}

func span(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// advice is what to look at, by answer.
var advice = map[Answer][]string{
	No: {
		"Is there load on the pod? Run this while it serves, or give it longer with --for.",
		"Does the application use the engine? A TLS server without qatengine computes in software and says so in its log.",
		"Does the VM have the device? kata-qat dump --diff shows what the pod was given, kata-qat doctor what is wrong with the node.",
	},
	Perhaps: {
		"The counters are a PF's and do not tell its VFs apart: have the others idle, or give the pod a PF of its own.",
	},
}

// Write writes the verdict: the answer on one line and what it stands on below,
// or all of it as data.
func (v *Verdict) Write(w io.Writer, f output.Format, colours output.Colours) error {
	if f != output.Table {
		return output.Data(w, f, v)
	}
	paint := map[Answer]func(string) string{Yes: colours.Green, No: colours.Red, Perhaps: colours.Yellow}[v.InUse]
	var b strings.Builder
	fmt.Fprintf(&b, "hardware in use: %s (%s)\n", paint(string(v.InUse)), output.Text(v.Why))
	for _, u := range v.PFs {
		fmt.Fprintf(&b, "  PF %s: %s\n", u.PF, output.Text(u.describe()))
	}
	for _, line := range advice[v.InUse] {
		fmt.Fprintf(&b, "%s\n", line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (u *Use) describe() string {
	vfs := make([]string, len(u.VFs))
	for i, a := range u.VFs {
		vfs[i] = string(a)
	}
	parts := []string{"the pod's VFs " + strings.Join(vfs, ", ")}
	if len(vfs) == 1 {
		parts[0] = "the pod's VF " + vfs[0]
	}
	if u.Problem == "" {
		parts = append(parts, fmt.Sprintf("+%s requests, +%s responses", Count(u.Requests), Count(u.Responses)))
	}
	if u.State != "" {
		parts = append(parts, u.State)
	}
	return strings.Join(append(parts, "health "+string(u.Health)), "; ")
}
