//go:build !entry

package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	daemon "github.com/kata-qat/kata-qat/internal/node"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/node"
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

With --dry-run the plan of all three is shown, also of what can only be done after
something else: what is not there yet, such as a card or Kata, is marked "missing",
what comes after it "later".

Exit codes: 0 all is as it should be; 1 it failed, or --dry-run found what would
make it fail; 2 with --dry-run: something would be changed, or has to be there
first; 3 the machine must be rebooted to go on.`,
		Flags: []cli.Flag{
			dryRunFlag(),
			undoFlag(),
			&cli.StringFlag{Name: "base", Usage: "Kata's initrd or raw disk image, a `FILE` (default: that of the installation)"},
			&cli.StringFlag{Name: "kernel", Usage: "installed `KERNEL` for the guest (default: the one that runs)"},
			&cli.StringSliceFlag{Name: "families", Usage: "QAT `FAMILY` that the guest serves (again for more; default: those of this machine)"},
			outputFlag(),
		},
		Action: provisionNode,
	}
}

func provisionNode(c *cli.Context) error {
	limitMemory()
	run, err := parseRun(c)
	if err != nil {
		return err
	}
	o := node.Options{
		Root: c.String("host-root"), Config: run.config, Progress: plan.NewProgress(c.App.ErrWriter), Fault: provisionFault,
		Guest:   guest.Options{Kernel: c.String("kernel"), Base: c.String("base")},
		Runtime: runtimesetup.Options{HealthTimeout: runtimesetup.DefaultHealthTimeout},
	}
	if o.Guest.Families, err = families(c); err != nil {
		return usage(err)
	}
	parts := node.Apply(c.Context, o)
	switch {
	case run.dryRun:
		parts = node.Plan(c.Context, o)
	case run.undo:
		parts = node.Undo(c.Context, o)
	}
	var done []node.Part
	for p := range parts {
		done = append(done, p)
		if run.format == output.Table {
			if err := writePart(c, run, p); err != nil {
				return err
			}
		}
	}
	if run.format != output.Table {
		if err := output.Data(c.App.Writer, run.format, done); err != nil {
			return err
		}
	}
	if err := nodeExit(c, run, done); err != nil || !run.undo {
		return err
	}
	return daemon.Leave(o.Root, run.config)
}

func writePart(c *cli.Context, run *provisionRun, p node.Part) error {
	w := c.App.Writer
	fmt.Fprintf(w, "%s\n", output.ColoursFor(w).Bold("== "+p.Name))
	if err := plan.Write(w, p.Outcome, output.ColoursFor(w)); err != nil {
		return err
	}
	switch {
	case p.Err == nil:
		fmt.Fprintln(w, summary(p.Outcome, run.dryRun, run.undo))
	case run.dryRun && plan.OnlyAbsent(p.Err):
		fmt.Fprintln(w, "Nothing was changed. What is missing has to be there first.")
	case run.dryRun:
		fmt.Fprintln(w, "Cannot be done as things are; the reason is on stderr.")
	}
	_, err := fmt.Fprintln(w)
	return err
}

// nodeExit chooses the exit code: a failure counts more than a reboot, and that
// more than changes to come. That something has to be there first is no failure of
// a plan.
func nodeExit(c *cli.Context, run *provisionRun, done []node.Part) error {
	var failures []error
	all := &plan.Outcome{}
	for _, p := range done {
		if p.Err != nil && !(run.dryRun && plan.OnlyAbsent(p.Err)) {
			failures = append(failures, fmt.Errorf("%s: %w", p.Name, p.Err))
		}
		all.Pending = all.Pending || p.Outcome.Pending
		all.Reboot = all.Reboot || p.Outcome.Reboot
	}
	return provisionExit(run, all, errors.Join(failures...))
}
