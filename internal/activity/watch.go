package activity

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/kata-qat/kata-qat/internal/output"
)

// View shows samples as they are taken.
type View interface {
	Show(s *Sample, first bool) error
}

// Watch takes a sample, shows it, and does both again at every tick. It returns
// nil when the context ends.
func Watch(ctx context.Context, read func() (Sample, error), ticks <-chan time.Time, view View) error {
	var last *Sample
	for {
		s, err := read()
		if err != nil {
			return err
		}
		if last != nil {
			s.Rates(last)
		}
		if err := view.Show(&s, last == nil); err != nil {
			return err
		}
		last = &s
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
		}
	}
}

// Screen shows the newest sample on a terminal.
type Screen struct {
	output.Screen
	Engines  bool
	Interval time.Duration
}

// Show draws the sample.
func (v Screen) Show(s *Sample, first bool) error {
	var table bytes.Buffer
	if err := Write(&table, output.Table, s, v.Engines, v.Colours); err != nil {
		return err
	}
	return v.Draw(table.String(), fmt.Sprintf("as of %s, every %s; ^C ends it", s.Time.Format(time.TimeOnly), v.Interval), first)
}

// Lines shows a line for each PF and sample, in columns that stay where they are.
type Lines struct{ W io.Writer }

// Show writes the lines.
func (v Lines) Show(s *Sample, first bool) error {
	var b bytes.Buffer
	line := func(cells ...any) { fmt.Fprintf(&b, "%-8s  %-12s  %-8s %20s %20s %12s %14s\n", cells...) }
	if first {
		line("TIME", "PF", "HEALTH", "REQUESTS", "RESPONSES", "IN FLIGHT", "REQUESTS/S")
	}
	for _, p := range s.PFs {
		cells := []any{s.Time.Format(time.TimeOnly), p.Address, p.Health, "-", "-", "-", "-"}
		if p.Problem == "" {
			cells[3], cells[4], cells[5] = Count(p.Requests), Count(p.Responses), inFlight(p.Requests, p.Responses)
		}
		if p.Rate != nil {
			cells[6] = perSecond(p.Rate.Requests)
		}
		line(cells...)
	}
	_, err := v.W.Write(b.Bytes())
	return err
}

// JSONLines shows each sample as one object on a line.
type JSONLines struct{ W io.Writer }

// Show writes the line.
func (v JSONLines) Show(s *Sample, _ bool) error { return output.Line(v.W, s) }
