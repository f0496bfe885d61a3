// Package node provisions a whole machine: host, guest and runtime, one after the
// other. It knows what of one the next needs; the steps are theirs.
package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
	"github.com/kata-qat/kata-qat/provision/runtime"
)

// Options say what the parts are to make of the machine.
type Options struct {
	Root   string
	Config *config.Config // its profiles are those that get a guest
	Host   host.Options
	// Guest is what all guests have in common. Without families they serve those
	// of the machine's cards, without a base they are made from Kata's own root.
	Guest    guest.Options
	Runtime  runtime.Options
	Progress plan.Progress
	Fault    func(point string) error // see plan.Engine
}

// Part is what came of host, guest or runtime.
type Part struct {
	Name    string        `json:"part"`
	Outcome *plan.Outcome `json:"outcome"`
	Error   string        `json:"error,omitempty"`
	Err     error         `json:"-"`
}

// Plan says what each part would do. It changes nothing, and goes on behind a part
// that cannot be done: what comes after it is shown as far as it is known.
func Plan(ctx context.Context, o Options) iter.Seq[Part] {
	return func(yield func(Part) bool) {
		run := func(e *plan.Engine) (*plan.Outcome, error) { return e.Plan(ctx) }
		if !yield(o.run("host", o.hostSteps(), run)) {
			return
		}
		steps := o.guestSteps()
		if !yield(o.run("guest", planSteps(steps), run)) {
			return
		}
		o.Runtime.Planned = map[edits.Profile]*guest.Manifest{}
		for _, s := range steps {
			o.Runtime.Planned[s.Options.Profile] = s.Planned()
		}
		yield(o.runtime(run))
	}
}

// Apply does one part after the other. It ends with the first that fails, or that
// the machine must be rebooted for.
func Apply(ctx context.Context, o Options) iter.Seq[Part] {
	return func(yield func(Part) bool) {
		run := func(e *plan.Engine) (*plan.Outcome, error) { return e.Apply(ctx) }
		for _, part := range []func() Part{
			func() Part { return o.run("host", o.hostSteps(), run) },
			func() Part { return o.run("guest", planSteps(o.guestSteps()), run) },
			func() Part { return o.runtime(run) },
		} {
			if p := part(); !yield(p) || p.Err != nil || p.Outcome.Reboot {
				return
			}
		}
	}
}

// Undo takes the parts back, the last first. It ends with the first that fails.
func Undo(ctx context.Context, o Options) iter.Seq[Part] {
	return func(yield func(Part) bool) {
		run := func(e *plan.Engine) (*plan.Outcome, error) { return e.Undo(ctx) }
		for _, part := range []func() Part{
			func() Part { return o.runtime(run) },
			func() Part { return o.run("guest", planSteps(o.stepsOf(o.Guest, nil)), run) },
			func() Part { return o.run("host", o.hostSteps(), run) },
		} {
			if p := part(); !yield(p) || p.Err != nil {
				return
			}
		}
	}
}

func failed(name string, err error) Part {
	return Part{Name: name, Outcome: &plan.Outcome{Steps: []plan.Result{}}, Error: err.Error(), Err: err}
}

func (o Options) run(name string, steps []plan.Step, run func(*plan.Engine) (*plan.Outcome, error)) Part {
	p := Part{Name: name}
	p.Outcome, p.Err = run(&plan.Engine{Root: o.Root, Steps: steps, Progress: o.Progress, Fault: o.Fault})
	if p.Err != nil {
		p.Error = p.Err.Error()
	}
	return p
}

func (o Options) hostSteps() []plan.Step {
	h := o.Host
	h.Root, h.Config, h.AllowNoIOMMU = o.Root, o.Config.Provision, o.Config.AllowNoIOMMU
	return host.Steps(h)
}

func (o Options) runtime(run func(*plan.Engine) (*plan.Outcome, error)) Part {
	r := o.Runtime
	r.Root, r.Config = o.Root, o.Config
	steps, err := runtime.Steps(r)
	if err != nil {
		return failed("runtime", err)
	}
	return o.run("runtime", steps, run)
}

// guestSteps are a guest for each profile of the configuration. What the machine
// does not have yet that they are made from is for their plan to say.
func (o Options) guestSteps() []*guest.Step {
	g := o.Guest
	var noFamilies, noBase error
	if len(g.Families) == 0 {
		g.Families, noFamilies = familiesOf(o.Root)
	}
	if g.Base == "" {
		g.Base, noBase = KatasRoot(o.Root)
	}
	return o.stepsOf(g, errors.Join(noFamilies, noBase))
}

func familiesOf(root string) ([]guest.Family, error) {
	inv, err := qat.Discover(root)
	if err != nil {
		return nil, err
	}
	families := guest.FamiliesOf(inv)
	if len(families) == 0 {
		return nil, plan.Absent(errors.New("this machine has no QAT device: name the families that the guest is to serve with --families"))
	}
	return families, nil
}

func (o Options) stepsOf(g guest.Options, unknown error) (steps []*guest.Step) {
	profiles := []edits.Profile{o.Config.Profile}
	for _, p := range o.Config.Profiles {
		if !slices.Contains(profiles, p) {
			profiles = append(profiles, p)
		}
	}
	slices.Sort(profiles)
	for _, p := range profiles {
		g.Root, g.Profile, g.Out = o.Root, p, filepath.Join(o.Root, guest.DefaultOut, string(p))
		steps = append(steps, &guest.Step{Options: g, Unknown: unknown})
	}
	return steps
}

func planSteps(all []*guest.Step) []plan.Step {
	steps := make([]plan.Step, len(all))
	for i, s := range all {
		steps[i] = s
	}
	return steps
}

// katasRoots are where Kata's initrd or image is: kata-deploy's and the release's
// place, and that of distributions.
var katasRoots = []string{
	"/opt/kata/share/kata-containers/kata-containers-initrd.img", "/opt/kata/share/kata-containers/kata-containers.img",
	"/usr/share/kata-containers/kata-containers-initrd.img", "/usr/share/kata-containers/kata-containers.img",
	"/var/cache/kata-containers/kata-containers-initrd.img", "/var/cache/kata-containers/kata-containers.img",
}

// KatasRoot returns the initrd, or else the image, of the Kata that is installed
// below root.
func KatasRoot(root string) (string, error) {
	for _, file := range katasRoots {
		if _, err := os.Stat(filepath.Join(root, file)); err == nil {
			return filepath.Join(root, file), nil
		}
	}
	return "", plan.Absent(fmt.Errorf("no initrd or image of Kata's is there (looked for %s and the like): install Kata Containers, or name one with --base", katasRoots[0]))
}
