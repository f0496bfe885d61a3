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

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/output"
)

const (
	// wide is how much JSON stands on one line before it is broken up.
	wide = 110
	// glimpse is how much of a line of context is shown.
	glimpse = 76
)

// writeDiffs writes differences for people: a heading for each container, a
// header that names the place for each hunk, and then what was added and
// removed there.
func writeDiffs(w io.Writer, ds []Difference, colours output.Colours) error {
	out := bufio.NewWriter(w)
	for i, d := range ds {
		if i > 0 && (d.Against != "" || ds[i-1].Against != "") {
			fmt.Fprintln(out)
		}
		d.write(out, colours)
	}
	return out.Flush()
}

func (d *Difference) write(w io.Writer, colours output.Colours) {
	title := output.Text(d.Container.String())
	if d.Against == "" {
		fmt.Fprintf(w, "%s: nothing injected\n", title)
		return
	}
	fmt.Fprintln(w, colours.Bold(title))
	fmt.Fprintln(w, colours.Red("--- "+d.Against))
	fmt.Fprintln(w, colours.Green("+++ "+d.after()))
	for _, m := range d.Missing {
		fmt.Fprintln(w, colours.Red(output.Text("! injected, but no longer in the spec: "+m)))
	}
	for _, h := range d.Hunks {
		path := h.Path
		if path == "" {
			path = "(top level)"
		}
		fmt.Fprintln(w, colours.Cyan("@@ "+output.Text(path)+" @@"))
		for _, l := range h.Lines {
			l.write(w, colours)
		}
	}
}

func (d *Difference) after() string {
	if d.Container.Source == containers.FromBundle {
		return "config.json of the bundle, which the runtime got"
	}
	return "containerd's record"
}

func (l *Line) write(w io.Writer, colours output.Colours) {
	paint := func(s string) string { return s }
	switch l.Op {
	case Added:
		paint = colours.Green
	case Removed:
		paint = colours.Red
	}
	for _, text := range l.text() {
		fmt.Fprintln(w, paint(strings.TrimRight(string(l.Op)+" "+output.Text(text), " ")))
	}
}

// text is the line as JSON: context in one line that is cut, what changed in as
// many as it takes.
func (l *Line) text() []string {
	prefix := ""
	if l.Key != "" {
		prefix = compact(l.Key) + ": "
	}
	if l.Op == Context {
		runes := []rune(prefix + compact(l.Value))
		if len(runes) > glimpse {
			runes = append(runes[:glimpse-1], '…')
		}
		return []string{string(runes)}
	}
	return pretty(prefix, l.Value, "", "")
}

// pretty breaks a value up into lines until each is narrow enough, with sorted
// keys.
func pretty(prefix string, value any, suffix, indent string) []string {
	text := indent + prefix + compact(value) + suffix
	if len(text) <= wide || size(value) <= 0 {
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
			inner = append(inner, pretty(compact(k)+": ", v[k], comma(i), indent+"  ")...)
		}
	case []any:
		open, end = "[", "]"
		for i, e := range v {
			inner = append(inner, pretty("", e, comma(i), indent+"  ")...)
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
