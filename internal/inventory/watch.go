package inventory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/kata-qat/kata-qat/internal/output"
)

// View shows reports as they come.
type View interface {
	// Show shows a report, which is the first if before is nil.
	Show(before, after *Report) error
}

// Watch reads a report, shows it, and does both again for everything that an
// event announces. It returns nil when the context ends, and an error when there
// will be no more events, or a report cannot be read or shown.
func Watch(ctx context.Context, read func(context.Context) (*Report, error), events <-chan error, view View) error {
	var last *Report
	for {
		now, err := read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := view.Show(last, now); err != nil {
			return err
		}
		last = now
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("watch the devices: the kernel's events have ended: run the command again")
			}
		}
	}
}

// Lines shows one line for each change, and nothing of what was there before.
type Lines struct{ W io.Writer }

// Show writes the lines.
func (l Lines) Show(before, after *Report) error {
	if before == nil {
		return nil
	}
	var b bytes.Buffer
	for _, c := range Compare(before, after) {
		fmt.Fprintln(&b, output.Text(c.String()))
	}
	_, err := l.W.Write(b.Bytes())
	return err
}

// JSONLines shows one JSON object on a line for each change, and before the first
// one for each function that is there, so that nothing can be missed in between.
type JSONLines struct{ W io.Writer }

// Show writes the lines.
func (l JSONLines) Show(before, after *Report) error {
	var b bytes.Buffer
	for _, c := range Compare(before, after) {
		if err := output.Line(&b, c); err != nil {
			return err
		}
	}
	_, err := l.W.Write(b.Bytes())
	return err
}

// Screen shows the newest report, and only it, on a terminal.
type Screen struct {
	output.Screen
	Now func() time.Time
}

// Show draws the report.
func (s Screen) Show(before, after *Report) error {
	var table bytes.Buffer
	if err := Write(&table, output.Table, after, s.Colours); err != nil {
		return err
	}
	foot := fmt.Sprintf("as of %s; this changes when the devices do; ^C ends it", s.Now().Format(time.TimeOnly))
	return s.Draw(table.String(), foot, before == nil)
}
