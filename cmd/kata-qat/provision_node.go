package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/guest"
	hostsetup "github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
	runtimesetup "github.com/kata-qat/kata-qat/provision/runtime"
)

func provisionNodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "node",
		Usage: "host, guest and runtime, one after the other",
		Description: `Does what provision host, provision guest (for every profile that the configuration
names) and provision runtime do. It stops at the first that fails, and before the
guest when the machine must be rebooted first; run it again then. --undo takes them
back in the other order. For settings of one of them, see its own --help and the
configuration.

Examples:
   kata-qat provision node --dry-run
   kata-qat provision node
   kata-qat provision node --base /opt/kata/share/kata-containers/kata-containers-initrd.img
   kata-qat provision node --undo

Exit codes: 0 all is as it should be; 1 it failed, or --dry-run found what would
make it fail; 2 with --dry-run: something would be changed; 3 the machine must be
rebooted to go on.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "say what is and what would change, and change nothing"},
			&cli.BoolFlag{Name: "undo", Usage: "put everything back as it was before the first run"},
			&cli.StringFlag{Name: "base", Usage: "Kata's initrd or raw disk image, a `FILE` (default: that of the installation)"},
			&cli.StringFlag{Name: "kernel", Usage: "installed `KERNEL` for the guest (default: the one that runs)"},
			&cli.StringSliceFlag{Name: "families", Usage: "QAT `FAMILY` that the guest serves (again for more; default: those of this machine)"},
			outputFlag(),
		},
		Action: provisionNode,
	}
}

// part is one of the commands that provision node is made of.
type part struct {
	name  string
	steps func() ([]plan.Step, error)
}

// partOutcome is what came of a part.
type partOutcome struct {
	Part    string        `json:"part"`
	Outcome *plan.Outcome `json:"outcome,omitempty"`
	Error   string        `json:"error,omitempty"`
	err     error
}

func provisionNode(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	format, err := output.ParseFormat(c.String("output"))
	if err != nil {
		return usage(err)
	}
	if c.Bool("dry-run") && c.Bool("undo") {
		return usage(errors.New("--dry-run and --undo: expected one of them"))
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	parts := nodeParts(c, cfg)
	if c.Bool("undo") {
		slices.Reverse(parts)
	}
	var done []partOutcome
	for _, p := range parts {
		o := p.run(c.Context, c)
		done = append(done, o)
		if format == output.Table {
			if err := writePart(c, o); err != nil {
				return err
			}
		}
		// A dry run shows the rest of the plan all the same.
		if !c.Bool("dry-run") && (o.err != nil || o.Outcome.Reboot) {
			break
		}
	}
	if format != output.Table {
		if err := output.Data(c.App.Writer, format, done); err != nil {
			return err
		}
	}
	return nodeExit(c, done)
}

func nodeParts(c *cli.Context, cfg *config.Config) []part {
	root := c.String("host-root")
	return []part{
		{"host", func() ([]plan.Step, error) {
			return hostsetup.Steps(hostsetup.Options{Root: root, Config: cfg.Provision, AllowNoIOMMU: cfg.AllowNoIOMMU}), nil
		}},
		{"guest", func() ([]plan.Step, error) { return guestSteps(c, cfg) }},
		{"runtime", func() ([]plan.Step, error) {
			return runtimesetup.Steps(runtimesetup.Options{Root: root, Config: cfg, HealthTimeout: runtimesetup.DefaultHealthTimeout})
		}},
	}
}

func (p part) run(ctx context.Context, c *cli.Context) partOutcome {
	o := partOutcome{Part: p.name}
	var steps []plan.Step
	if steps, o.err = p.steps(); o.err == nil {
		engine := plan.Engine{Root: c.String("host-root"), Steps: steps, Progress: plan.NewProgress(c.App.ErrWriter), Fault: provisionFault}
		run := engine.Apply
		switch {
		case c.Bool("dry-run"):
			run = engine.Plan
		case c.Bool("undo"):
			run = engine.Undo
		}
		o.Outcome, o.err = run(ctx)
	}
	if o.Outcome == nil {
		o.Outcome = &plan.Outcome{}
	}
	if o.err != nil {
		o.Error = o.err.Error()
	}
	return o
}

// guestSteps are a guest for each profile of the configuration.
func guestSteps(c *cli.Context, cfg *config.Config) ([]plan.Step, error) {
	root := c.String("host-root")
	o := guest.Options{Root: root, Kernel: c.String("kernel"), Base: c.String("base")}
	if c.Bool("undo") {
		o.Base = cmp.Or(o.Base, "none") // nothing is made
	} else {
		var err error
		if o.Base == "" {
			if o.Base, err = katasRoot(root); err != nil {
				return nil, err
			}
		}
		if o.Families, err = guestFamilies(c); err != nil {
			return nil, err
		}
	}
	profiles := []edits.Profile{cfg.Profile}
	for _, p := range cfg.Profiles {
		if !slices.Contains(profiles, p) {
			profiles = append(profiles, p)
		}
	}
	slices.Sort(profiles)
	var steps []plan.Step
	for _, p := range profiles {
		o.Profile = p
		o.Out = filepath.Join(root, guest.DefaultOut, string(p))
		steps = append(steps, &guest.Step{Options: o})
	}
	return steps, nil
}

func guestFamilies(c *cli.Context) ([]guest.Family, error) {
	var families []guest.Family
	for _, s := range c.StringSlice("families") {
		f, err := guest.ParseFamily(s)
		if err != nil {
			return nil, err
		}
		families = append(families, f)
	}
	if len(families) > 0 {
		return families, nil
	}
	inv, err := qat.Discover(c.String("host-root"))
	if err != nil {
		return nil, err
	}
	if families = guest.FamiliesOf(inv); len(families) == 0 {
		return nil, errors.New("this machine has no QAT device: name the families that the guest is to serve with --families")
	}
	return families, nil
}

// katasRoots are where Kata's initrd or image is: kata-deploy's and the release's
// place, and that of distributions.
var katasRoots = []string{
	"/opt/kata/share/kata-containers/kata-containers-initrd.img", "/opt/kata/share/kata-containers/kata-containers.img",
	"/usr/share/kata-containers/kata-containers-initrd.img", "/usr/share/kata-containers/kata-containers.img",
	"/var/cache/kata-containers/kata-containers-initrd.img", "/var/cache/kata-containers/kata-containers.img",
}

func katasRoot(root string) (string, error) {
	for _, file := range katasRoots {
		if _, err := os.Stat(filepath.Join(root, file)); err == nil {
			return filepath.Join(root, file), nil
		}
	}
	return "", fmt.Errorf("no initrd or image of Kata's is there (looked for %s and the like): install Kata Containers, or name one with --base", katasRoots[0])
}

func writePart(c *cli.Context, o partOutcome) error {
	w := c.App.Writer
	fmt.Fprintf(w, "%s\n", output.ColoursFor(w).Bold("== "+o.Part))
	if len(o.Outcome.Steps) > 0 {
		if err := plan.Write(w, o.Outcome, output.ColoursFor(w)); err != nil {
			return err
		}
	}
	if o.err == nil {
		fmt.Fprintln(w, summary(o.Outcome, c.Bool("dry-run"), c.Bool("undo")))
	} else if c.Bool("dry-run") {
		fmt.Fprintln(w, "Cannot be done as things are; the reason is on stderr.")
	}
	fmt.Fprintln(w)
	return nil
}

// nodeExit chooses the exit code: a failure counts more than a reboot, and that
// more than changes to come.
func nodeExit(c *cli.Context, done []partOutcome) error {
	var failures []error
	all := &plan.Outcome{}
	for _, o := range done {
		if o.err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", o.Part, o.err))
		}
		all.Pending = all.Pending || o.Outcome.Pending
		all.Reboot = all.Reboot || o.Outcome.Reboot
	}
	return provisionExit(c, all, errors.Join(failures...))
}
