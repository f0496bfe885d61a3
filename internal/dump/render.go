package dump

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/output"
)

const (
	// wide is how much JSON stands on one line before it is broken up.
	wide = 110
	// glimpse is how much of a line of context is shown.
	glimpse = 76
)

// row is one line of text that is safe to print, and how it is painted.
type row struct {
	text  string
	paint func(output.Colours, string) string // nil: not at all
}

// section is a hunk as it is shown: a header that names the place, and then what
// was added and removed there.
type section struct {
	path string
	rows []row
}

// block is a difference as it is shown: a heading, and the sections in the order of
// their places.
type block struct {
	head     []row
	sections []section
}

// block breaks up what is wider than width, if that can be.
func (d *Difference) block(width int) block {
	b := block{head: []row{
		{output.Text(d.Container.String()), output.Colours.Bold},
		{"--- " + d.Against, output.Colours.Red},
		{"+++ " + d.after(), output.Colours.Green},
	}}
	for _, m := range d.Missing {
		b.head = append(b.head, row{output.Text("! injected, but no longer in the spec: " + m), output.Colours.Red})
	}
	for _, h := range d.Hunks {
		path := h.Path
		if path == "" {
			path = "(top level)"
		}
		s := section{h.Path, []row{{"@@ " + output.Text(path) + " @@", output.Colours.Cyan}}}
		for _, l := range h.Lines {
			s.rows = append(s.rows, l.rows(width)...)
		}
		b.sections = append(b.sections, s)
	}
	return b
}

func (d *Difference) after() string {
	if d.Container.Source == containers.FromBundle {
		return "config.json of the bundle, which the runtime got"
	}
	return "containerd's record"
}

// writeDiffs writes differences for people. Where there is room for it, those of a
// pod are beside each other: see columns.
func writeDiffs(w io.Writer, ds []Difference, colours output.Colours, width int) error {
	out := bufio.NewWriter(w)
	for i := 0; i < len(ds); {
		pod, sandbox := 1, ds[i].Container.PodSandbox()
		for i+pod < len(ds) && sandbox != "" && ds[i+pod].Container.PodSandbox() == sandbox {
			pod++
		}
		if i > 0 && (ds[i].Against != "" || ds[i-1].Against != "") {
			fmt.Fprintln(out)
		}
		if n := columns(ds[i:i+pod], width); n > 1 {
			writeBeside(out, ds[i:i+pod], n, colours, width)
		} else {
			writeBelow(out, ds[i:i+pod], colours)
		}
		i += pod
	}
	return out.Flush()
}

// writeBelow writes the differences of a pod one below the other.
func writeBelow(w io.Writer, ds []Difference, colours output.Colours) {
	for i := range ds {
		if i > 0 && (ds[i].Against != "" || ds[i-1].Against != "") {
			fmt.Fprintln(w)
		}
		if ds[i].Against == "" {
			fmt.Fprintf(w, "%s: nothing injected\n", output.Text(ds[i].Container.String()))
			continue
		}
		b := ds[i].block(wide)
		for _, r := range b.head {
			r.write(w, colours, 0)
		}
		for _, s := range b.sections {
			for _, r := range s.rows {
				r.write(w, colours, 0)
			}
		}
	}
}

// write writes a row, filled up to a width.
func (r row) write(w io.Writer, colours output.Colours, width int) {
	io.WriteString(w, r.painted(colours))
	if fill := width - utf8.RuneCountInString(r.text); fill > 0 {
		io.WriteString(w, strings.Repeat(" ", fill))
	}
	if width == 0 {
		io.WriteString(w, "\n")
	}
}

func (r row) painted(colours output.Colours) string {
	if r.paint == nil || r.text == "" {
		return r.text
	}
	return r.paint(colours, r.text)
}

// rows are the line as JSON: context in one line that is cut, what changed in as
// many as it takes.
func (l *Line) rows(width int) (rows []row) {
	var paint func(output.Colours, string) string
	switch l.Op {
	case Added:
		paint = output.Colours.Green
	case Removed:
		paint = output.Colours.Red
	}
	for _, text := range l.text(width) {
		rows = append(rows, row{strings.TrimRight(string(l.Op)+" "+output.Text(text), " "), paint})
	}
	return rows
}

func (l *Line) text(width int) []string {
	prefix := ""
	if l.Key != "" {
		prefix = compact(l.Key) + ": "
	}
	if l.Op == Context {
		runes := []rune(prefix + compact(l.Value))
		if most := min(glimpse, width); len(runes) > most {
			runes = append(runes[:most-1], '…')
		}
		return []string{string(runes)}
	}
	return pretty(prefix, l.Value, "", "", width)
}

// pretty breaks a value up into lines until each is narrow enough, with sorted
// keys.
func pretty(prefix string, value any, suffix, indent string, width int) []string {
	text := indent + prefix + compact(value) + suffix
	if len(text) <= width || size(value) <= 0 {
		return []string{text}
	}
	open, end := "{", "}"
	var inner []string
	n := size(value)
	comma := func(i int) string {
		if i < n-1 {
			return ","
		}
		return ""
	}
	switch v := value.(type) {
	case object:
		for i, k := range slices.Sorted(maps.Keys(v)) {
			inner = append(inner, pretty(compact(k)+": ", v[k], comma(i), indent+"  ", width)...)
		}
	case []any:
		open, end = "[", "]"
		for i, e := range v {
			inner = append(inner, pretty("", e, comma(i), indent+"  ", width)...)
		}
	}
	return slices.Concat([]string{indent + prefix + open}, inner, []string{indent + end + suffix})
}

func compact(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // v came out of the JSON decoder
	return strings.TrimSuffix(b.String(), "\n")
}

// Changes is a difference for programs.
type Changes struct {
	ID        string          `json:"id"`
	Namespace string          `json:"namespace,omitempty"`
	Pod       string          `json:"pod,omitempty"`
	Name      string          `json:"container,omitempty"`
	Type      containers.Type `json:"type,omitempty"`
	Injected  bool            `json:"injected"`
	Against   string          `json:"against,omitempty"`
	Added     []Change        `json:"added"`   // paths are those of the spec as it is
	Removed   []Change        `json:"removed"` // paths are those of the spec before
	Missing   []string        `json:"missing,omitempty"`
}

// Change is one value that one of the two specs does not have.
type Change struct {
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// Changes returns the difference for programs.
func (d *Difference) Changes() Changes {
	c := Changes{
		ID: d.Container.ID, Namespace: d.Container.Namespace, Pod: d.Container.Pod, Name: d.Container.Name, Type: d.Container.Type,
		Injected: d.Against != "", Against: d.Against, Missing: d.Missing, Added: []Change{}, Removed: []Change{},
	}
	for _, h := range d.Hunks {
		for _, l := range h.Lines {
			switch l.Op {
			case Added:
				c.Added = append(c.Added, Change{l.Path, l.Value})
			case Removed:
				c.Removed = append(c.Removed, Change{l.Path, l.Value})
			}
		}
	}
	return c
}
