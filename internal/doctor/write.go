package doctor

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/kata-qat/kata-qat/internal/output"
)

// Write writes a report: for people by area, or as data. With problems only, the
// table leaves out what is well and what does not apply.
func Write(w io.Writer, f output.Format, r *Report, problems bool, colours output.Colours) error {
	if f != output.Table {
		return output.Data(w, f, r)
	}
	width := 0
	for _, c := range Checks {
		width = max(width, len(c.ID))
	}
	out := bufio.NewWriter(w)
	var area Area
	for i := range r.Checks {
		c := &r.Checks[i]
		if problems && (c.State == OK || c.State == Skip) {
			continue
		}
		if c.Area != area {
			area = c.Area
			fmt.Fprintln(out, colours.Bold(string(area)))
		}
		c.write(out, width, colours)
	}
	s := r.Summary
	fmt.Fprintf(out, "%d ok, %d warnings, %d failures, %d skipped\n", s.OK, s.Warn, s.Fail, s.Skip)
	return out.Flush()
}

// marks are the states as the table shows them.
var marks = map[State]struct {
	text  string
	paint func(output.Colours, string) string
}{
	OK:   {"ok  ", output.Colours.Green},
	Skip: {"skip", func(_ output.Colours, s string) string { return s }},
	Warn: {"WARN", output.Colours.Yellow},
	Fail: {"FAIL", output.Colours.Red},
}

// shown is how much evidence the table has for a check.
const shown = 3

func (r *Result) write(w io.Writer, width int, colours output.Colours) {
	mark := marks[r.State]
	head := fmt.Sprintf("  %s  %-*s  ", mark.paint(colours, mark.text), width, r.Check)
	indent := strings.Repeat(" ", len("  ok    ")+width+2)
	lines := make([]string, 0, shown+1)
	for i, e := range r.Evidence {
		if i == shown {
			lines = append(lines, fmt.Sprintf("and %d more", len(r.Evidence)-shown))
			break
		}
		if r.State == OK && i == 1 && len(r.Evidence) > 2 {
			lines = append(lines, fmt.Sprintf("and %d more", len(r.Evidence)-1))
			break
		}
		lines = append(lines, e.String())
	}
	switch r.State {
	case Fail, Warn:
		lines = append([]string{cmp.Or(r.Reason, "not: "+r.About)}, lines...)
	case Skip:
		lines = []string{r.Reason}
	case OK:
		if len(lines) == 0 {
			lines = []string{r.About}
		}
	}
	for i, line := range lines {
		if i > 0 {
			head = indent
		}
		fmt.Fprintln(w, head+output.Text(line))
	}
	if r.Mend != "" {
		fmt.Fprintln(w, indent+colours.Bold("> "+output.Text(r.Mend)))
	}
}

// String is the evidence as a line.
func (e Evidence) String() string {
	s := e.Path + ": " + e.Value
	if e.Want != "" {
		s += ", expected " + e.Want
	}
	return s
}
