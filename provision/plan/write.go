package plan

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/output"
)

// marks are what a step's line begins with.
var marks = map[Status]string{
	Done: "=", Pending: "~", Changed: "+", Waiting: "…", Undone: "-", Failed: "!", Skipped: " ", Later: "~", Missing: "?",
}

// Write shows an outcome to a person: each step with what is, and what would
// change and why. Of what has been changed only the notes are left to be said:
// the rest was said when it was done.
func Write(w io.Writer, o *Outcome, c output.Colours) error {
	var b strings.Builder
	width := 0
	for _, r := range o.Steps {
		width = max(width, len(r.Step))
	}
	for _, r := range o.Steps {
		is := output.Text(r.Is)
		if r.After != "" {
			is = "after " + r.After
		}
		fmt.Fprintf(&b, "%s %s  %-8s %s\n", marks[r.Status], c.Bold(fmt.Sprintf("%-*s", width, r.Step)), r.Status, is)
		if r.Status != Changed {
			for _, ch := range r.Changes {
				writeChange(&b, ch, c)
			}
		}
		if r.Wait != "" && r.Status == Waiting {
			fmt.Fprintf(&b, "      waits: %s\n", output.Text(r.Wait))
		}
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "      note: %s\n", output.Text(n))
		}
		for _, line := range lines(r.Error) {
			fmt.Fprintf(&b, "      %s\n", c.Red(output.Text(line)))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeChange writes a change: a value of one line beside the one that it takes
// the place of, longer ones as the lines that go and come.
func writeChange(b *strings.Builder, ch Change, c output.Colours) {
	fmt.Fprintf(b, "      %s: %s\n", c.Cyan(output.Text(ch.Object)), output.Text(ch.Why))
	from, to := lines(ch.From), lines(ch.To)
	if len(from)+len(to) == 0 { // an outline, of what is not known
		return
	}
	if len(from) <= 1 && len(to) <= 1 {
		fmt.Fprintf(b, "          %s -> %s\n", c.Red(one(from)), c.Green(one(to)))
		return
	}
	for _, line := range from {
		if !slices.Contains(to, line) {
			fmt.Fprintf(b, "          %s\n", c.Red("- "+output.Text(line)))
		}
	}
	for _, line := range to {
		if !slices.Contains(from, line) {
			fmt.Fprintf(b, "          %s\n", c.Green("+ "+output.Text(line)))
		}
	}
}

func lines(value string) []string {
	if value == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(value, "\n"), "\n")
}

func one(lines []string) string {
	if len(lines) == 0 {
		return "(nothing)"
	}
	return output.Text(lines[0])
}

// NewProgress says how a run goes on: on a terminal with the step that is in
// hand, otherwise a line for each that is done.
func NewProgress(w io.Writer) Progress {
	return &progress{w: w, terminal: output.Terminal(w)}
}

type progress struct {
	w        io.Writer
	terminal bool
}

func (p *progress) Begin(step string, n, of int) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K[%d/%d] %s …", n, of, step)
	}
}

func (p *progress) End(r Result) {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	text := r.Is
	if r.Status == Failed {
		text = r.Error
	}
	fmt.Fprintf(p.w, "%s: %s in %.2f s: %s\n", r.Step, r.Status, r.Seconds, output.Text(text))
}
