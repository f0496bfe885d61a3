//go:build !entry

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/activity"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// shortest is the least time between two samples: each asks the firmware.
const shortest = 100 * time.Millisecond

func countersCommand() *cli.Command {
	return &cli.Command{
		Name:  "counters",
		Usage: "show what the firmware of the QAT devices has counted, and their heartbeat",
		Description: `Shows for each physical function its state, its heartbeat, and how many requests
its firmware has got and answered since the device was started. They are read from
debugfs, which Linux has from 6.6 on, and the vendor's driver always. A PF that is
down has none. Counters are the whole device's: they do not tell its VFs apart.

With --watch it goes on until it is interrupted, and then exits with 0: on a
terminal a table with rates is kept up to date, in a pipe there is a line for each
PF and sample, and with -o json one object for each sample.

Examples:
   kata-qat counters
   kata-qat counters --engines
   kata-qat counters --watch --interval 1s
   kata-qat counters --watch -o json | jq -c '.pfs[] | {address, rate}'
   kata-qat verify default/ingress       # does this pod use the hardware?`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "engines", Aliases: []string{"e"}, Usage: "a line for each acceleration engine, too"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "go on, and show rates"},
			&cli.DurationFlag{Name: "interval", Value: 2 * time.Second, Usage: "`TIME` between two samples of --watch"},
			outputFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			read := func() (activity.Sample, error) { return takeSample(c.String("host-root")) }
			if c.Bool("watch") {
				return watchCounters(c, format, read)
			}
			s, err := read()
			if err != nil {
				return err
			}
			return activity.Write(c.App.Writer, format, &s, c.Bool("engines"), output.ColoursFor(c.App.Writer))
		},
	}
}

// takeSample finds the PFs and asks each.
func takeSample(root string) (activity.Sample, error) {
	inv, err := qat.Discover(root)
	if err != nil {
		return activity.Sample{}, err
	}
	return activity.Read(root, inv.PFs, time.Now()), nil
}

func watchCounters(c *cli.Context, format output.Format, read func() (activity.Sample, error)) error {
	interval := c.Duration("interval")
	if interval < shortest {
		return usage(fmt.Errorf("--interval %s: expected at least %s", interval, shortest))
	}
	view, err := countersView(c.App.Writer, format, c.Bool("engines"), interval)
	if err != nil {
		return usage(err)
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	return activity.Watch(c.Context, read, ticker.C, view)
}

func countersView(w io.Writer, format output.Format, engines bool, interval time.Duration) (activity.View, error) {
	switch {
	case format == output.JSON:
		return activity.JSONLines{W: w}, nil
	case format != output.Table:
		return nil, errors.New("--watch: expected -o table, or -o json for an object for each sample")
	case output.Terminal(w):
		return activity.Screen{Screen: output.ScreenOf(w), Engines: engines, Interval: interval}, nil
	}
	return activity.Lines{W: w}, nil
}

// wait lets time pass, and returns early with an error when it is interrupted.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.New("interrupted")
	}
}
