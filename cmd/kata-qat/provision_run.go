package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// The exit codes of provision beside those of all commands.
const (
	exitPending = 2 // --dry-run: something would be changed
	exitReboot  = 3 // all is done that can be before a reboot
)

// provisionFault stops a run as if it were killed. Only builds for tests set it.
var provisionFault func(point string) error

func dryRunFlag() cli.Flag {
	return &cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "say what is and what would change, and change nothing"}
}

func undoFlag() cli.Flag {
	return &cli.BoolFlag{Name: "undo", Usage: "put everything back as it was before the first run"}
}

// provisionRun is what all commands below provision that have steps are told by
// their flags and the configuration.
type provisionRun struct {
	format       output.Format
	config       *config.Config
	dryRun, undo bool
}

// parseRun reads the flags. Of --dry-run, --undo and the other modes of the
// command there may be one.
func parseRun(c *cli.Context, modes ...string) (*provisionRun, error) {
	if err := noArguments(c); err != nil {
		return nil, err
	}
	r := &provisionRun{dryRun: c.Bool("dry-run"), undo: c.Bool("undo")}
	var err error
	if r.format, err = output.ParseFormat(c.String("output")); err != nil {
		return nil, usage(err)
	}
	var given []string
	for _, mode := range append([]string{"dry-run", "undo"}, modes...) {
		if c.Bool(mode) {
			given = append(given, "--"+mode)
		}
	}
	if len(given) > 1 {
		return nil, usage(fmt.Errorf("%s: expected one of them", strings.Join(given, " and ")))
	}
	r.config, err = loadConfig(c)
	return r, err
}

// steps plans, applies or undoes steps and shows what came of it.
func (r *provisionRun) steps(c *cli.Context, steps []plan.Step) error {
	engine := plan.Engine{Root: c.String("host-root"), Steps: steps, Progress: plan.NewProgress(c.App.ErrWriter), Fault: provisionFault}
	run := engine.Apply
	switch {
	case r.dryRun:
		run = engine.Plan
	case r.undo:
		run = engine.Undo
	}
	out, err := run(c.Context)
	if werr := r.write(c, out, err); werr != nil {
		return errors.Join(err, werr)
	}
	return provisionExit(r, out, err)
}

// write shows what came of a run, which may have failed.
func (r *provisionRun) write(c *cli.Context, out *plan.Outcome, failure error) error {
	w := c.App.Writer
	if r.format != output.Table {
		return output.Data(w, r.format, out)
	}
	if err := plan.Write(w, out, output.ColoursFor(w)); err != nil || failure != nil {
		return err
	}
	_, err := fmt.Fprintln(w, summary(out, r.dryRun, r.undo))
	return err
}

// summary is one line about a run.
func summary(out *plan.Outcome, dryRun, undo bool) string {
	switch {
	case undo && out.Changed:
		return "Everything is as it was before."
	case undo:
		return "Nothing to undo: there is no journal."
	case out.Reboot && dryRun:
		return "Nothing was changed. The machine must be rebooted in between: what waits for that is done after it."
	case out.Reboot:
		return "Reboot this machine to go on."
	case out.Pending && dryRun:
		return "Nothing was changed."
	case out.Pending:
		return "Not all is as it should be."
	case out.Changed:
		return "All is as it should be now."
	}
	return "Nothing to do: all is as it should be."
}

// provisionExit chooses the exit code.
func provisionExit(r *provisionRun, out *plan.Outcome, err error) error {
	switch {
	case err != nil && errors.Is(err, context.Canceled):
		return errors.Join(plan.ErrInterrupted, err)
	case err != nil:
		return err
	case r.dryRun && out.Pending:
		return cli.Exit("", exitPending)
	case out.Reboot:
		return cli.Exit("", exitReboot)
	}
	return nil
}
