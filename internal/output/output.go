// Package output writes what the commands found: as a table for people, as JSON
// or YAML for programs. Much of what it writes was chosen by somebody inside a
// pod, so it lets no control character through to a terminal.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// Format is how a command writes its result.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Formats are all formats, the default first.
var Formats = []Format{Table, JSON, YAML}

// ParseFormat checks the value of -o.
func ParseFormat(s string) (Format, error) {
	for _, f := range Formats {
		if s == string(f) {
			return f, nil
		}
	}
	return "", fmt.Errorf("output format %q: expected table, json or yaml", s)
}

// Data writes v as JSON or YAML. Numbers keep all their digits, and neither
// holds a control character.
func Data(w io.Writer, f Format, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode the result as JSON: %w", err)
	}
	b := buf.Bytes()
	switch f {
	case JSON:
		b = escape(b, json16, true)
	case YAML:
		var err error
		if b, err = yaml.JSONToYAML(escape(b, yaml32, true)); err != nil {
			return fmt.Errorf("encode the result as YAML: %w", err)
		}
	default:
		return fmt.Errorf("output format %q holds no data: expected json or yaml", f)
	}
	_, err := w.Write(b)
	return err
}

// Line writes v as JSON on one line, without control characters.
func Line(w io.Writer, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode as JSON: %w", err)
	}
	_, err := w.Write(escape(buf.Bytes(), json16, true))
	return err
}

// Rows writes a table: a header and rows of as many cells, in aligned columns.
// An empty cell is written as "-".
func Rows(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(cells []string) {
		safe := make([]string, len(cells))
		for i, c := range cells {
			if safe[i] = Text(c); safe[i] == "" {
				safe[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(safe, "\t"))
	}
	line(header)
	for _, r := range rows {
		line(r)
	}
	return tw.Flush()
}

// Text makes s safe to print on one line: what is not printable is written as
// an escape sequence.
func Text(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return string(escape([]byte(s), yaml32, false))
		}
	}
	return s
}

// How characters above U+FFFF are escaped: JSON has only pairs of 16 bits, and
// YAML does not know them.
type wideEscape func([]byte, rune) []byte

func json16(b []byte, r rune) []byte {
	high, low := utf16.EncodeRune(r)
	return fmt.Appendf(b, `\u%04x\u%04x`, high, low)
}

func yaml32(b []byte, r rune) []byte { return fmt.Appendf(b, `\U%08x`, r) }

// escape writes characters that are not printable as escape sequences. In a
// JSON document it leaves the line breaks: its encoder has already escaped what
// is below 0x20 inside of strings.
func escape(b []byte, wide wideEscape, document bool) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			out = fmt.Appendf(out, `\x%02x`, b[0])
		case unicode.IsPrint(r), document && r == '\n':
			out = append(out, b[:n]...)
		case r > 0xffff:
			out = wide(out, r)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}

// Terminal tells whether w is a terminal, and so whether a person reads it.
func Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Width is how many characters a line of a terminal has; 0 for what is none.
func Width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// Colours paints text, or leaves it alone.
type Colours struct{ on bool }

// ColoursFor paints what goes to a terminal, unless the environment says
// NO_COLOR (no-color.org).
func ColoursFor(w io.Writer) Colours {
	return Colours{on: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && Terminal(w)}
}

// Always paints, whatever the text is written to.
func Always() Colours { return Colours{on: true} }

// Green is for what was added.
func (c Colours) Green(s string) string { return c.paint("32", s) }

// Red is for what was removed and for what is wrong.
func (c Colours) Red(s string) string { return c.paint("31", s) }

// Yellow is for what could be better.
func (c Colours) Yellow(s string) string { return c.paint("33", s) }

// Cyan is for the places in a document.
func (c Colours) Cyan(s string) string { return c.paint("36", s) }

// Bold is for headings.
func (c Colours) Bold(s string) string { return c.paint("1", s) }

func (c Colours) paint(code, s string) string {
	if !c.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}
