package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// subject is what of a provisioning step a check is about.
type subject struct {
	// concerns tells the changes that are its own.
	concerns func(plan.Change) bool
	// seen is what there is when nothing is to be changed.
	seen func(*patient) []Evidence
}

// planned makes a check of what a step of provision host would change: that
// there is nothing means that it is as it should be. So what doctor wants is by
// construction what provision host makes.
func planned(step string, s subject) func(context.Context, *patient) finding {
	return func(ctx context.Context, p *patient) finding {
		if len(p.pfs) == 0 {
			return skip("see pf")
		}
		changes, err := p.plan(ctx, step)
		if err != nil {
			return p.stepFailed(step, err)
		}
		var wrong []Evidence
		why := ""
		for _, c := range changes {
			// A step that has to take something away to change something else
			// puts it back as it was: no fault of this.
			if s.concerns(c) && (c.From != c.To || c.From == "") {
				wrong, why = append(wrong, evidence(c)), c.Why
			}
		}
		if len(wrong) > 0 {
			return fail(why, provisionHost, wrong...)
		}
		return ok(s.seen(p)...)
	}
}

// unless makes a check that is left out when another, of what it needs, has
// failed.
func unless(failed string, check func(context.Context, *patient) finding) func(context.Context, *patient) finding {
	return func(ctx context.Context, p *patient) finding {
		if p.failed(failed) {
			return skip("see " + failed)
		}
		return check(ctx, p)
	}
}

// stepFailed reports that a step cannot be planned, once.
func (p *patient) stepFailed(step string, err error) finding {
	for _, reported := range p.stepErrs {
		if reported.Error() == err.Error() {
			return skip("see the checks before")
		}
	}
	p.stepErrs = append(p.stepErrs, err)
	return fail("provision host cannot tell what to do", provisionHost+" --dry-run", Evidence{Path: "step " + step, Value: err.Error()})
}

// evidence of a change that would be made. A file is not shown as a whole.
func evidence(c plan.Change) Evidence {
	e := Evidence{Path: c.Object, Value: c.From, Want: c.To}
	if strings.Contains(c.From+c.To, "\n") {
		e.Value, e.Want = "other than expected", "what provision host --dry-run shows"
	}
	if c.From == "" {
		e.Value = "none"
	}
	return e
}

// aFile is a subject: a file that provision host writes.
func aFile(name string) subject {
	return subject{
		concerns: func(c plan.Change) bool { return c.Object == name },
		seen:     func(*patient) []Evidence { return []Evidence{{Path: name, Value: "as provision host writes it"}} },
	}
}

// anAttribute is a subject: an attribute of each PF. One that a PF's driver does
// not have is not shown.
func anAttribute(name string) subject {
	return subject{
		concerns: func(c plan.Change) bool {
			return strings.HasPrefix(c.Object, "/sys/") && strings.HasSuffix(c.Object, "/"+name)
		},
		seen: func(p *patient) (all []Evidence) {
			for _, pf := range p.pfs {
				if value, err := p.sys(device(pf.Address, name)); err == nil {
					all = append(all, Evidence{Path: device(pf.Address, name), Value: value})
				}
			}
			return all
		},
	}
}

// loadedModules is a subject: the modules that are to be loaded now.
var loadedModules = subject{
	concerns: func(c plan.Change) bool { return strings.HasPrefix(c.Object, "module ") && c.From == "not loaded" },
	seen: func(p *patient) (all []Evidence) {
		for _, m := range []string{"vfio", "vfio_pci", "vfio_iommu_type1"} {
			if p.loaded(m) {
				all = append(all, Evidence{Path: "/sys/module/" + m, Value: "loaded"})
			}
		}
		return all
	},
}

// boundVFs is a subject: what VFs are bound to.
var boundVFs = subject{
	concerns: func(c plan.Change) bool { return strings.HasSuffix(c.Object, "/driver") },
	seen: func(p *patient) (all []Evidence) {
		for _, pf := range p.pfs {
			if pf.NumVFs > 0 {
				all = append(all, Evidence{Path: device(pf.Address, "virtfn*/driver"), Value: boundTo(pf)})
			}
		}
		return all
	},
}

// boundTo counts a PF's VFs by driver: "16 on vfio-pci".
func boundTo(pf *qat.PF) string {
	count := make(map[string]int)
	for i := range pf.VFs {
		count[pf.VFs[i].Driver]++
	}
	var parts []string
	for _, driver := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d on %s", count[driver], driver))
	}
	return strings.Join(parts, ", ")
}

// preflight makes a check of what provision host finds out before anything else.
func preflight(name string) func(context.Context, *patient) finding {
	return func(_ context.Context, p *patient) finding {
		switch {
		case len(p.pfs) == 0:
			return skip("see pf")
		case p.preErr != nil:
			return unknown("preflight", p.preErr)
		}
		return p.found(name)
	}
}

// levels translate what the preflight says.
var levels = map[host.Level]State{host.OK: OK, host.Warning: Warn, host.Failure: Fail}

// found joins the findings of a preflight check; the worst of them counts. None
// at all means that there was nothing to find.
func (p *patient) found(name string) finding {
	all := skip("it does not apply here")
	for _, f := range p.preflight {
		if f.Check != name {
			continue
		}
		one := finding{state: levels[f.Level], evidence: []Evidence{{Path: f.Check, Value: f.Evidence}}}
		if one.state != OK {
			one.reason, one.mend = f.Fix, provisionHost+" --dry-run"
			if strings.Contains(f.Fix, "--driver packages") {
				one.mend = provisionHost + " --driver packages"
			}
		}
		switch {
		case all.state == Skip || one.state != all.state && worse(all, one).state == one.state:
			all = one
		case one.state == all.state:
			all.evidence = append(all.evidence, one.evidence...)
		}
	}
	return all
}
