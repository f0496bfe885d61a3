// Package tomledit changes single values of TOML files that belong to somebody
// else: every byte that is not part of the change, comments and white space
// included, stays as it is. It knows TOML; it does not know what the keys mean.
package tomledit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Document is a TOML file. Its methods that change it leave it as it was when
// they return an error.
type Document struct {
	name    string
	data    []byte
	tree    map[string]any
	entries []entry
}

// entry is a table's header or a key with its value.
type entry struct {
	path   []string // from the root
	header bool
	line   int // offset of the start of the line it begins in
	end    int // offset behind it, before a comment and the end of the line
	// Of a value: where it is, and where the last element of an array ends, or
	// its opening bracket does.
	value, last int
	array, some bool
}

// Parse reads a document; name is for errors.
func Parse(name string, data []byte) (*Document, error) {
	d := &Document{name: name, data: data}
	if err := toml.Unmarshal(data, &d.tree); err != nil {
		return nil, parseError(name, err)
	}
	if err := d.scan(); err != nil {
		return nil, parseError(name, err)
	}
	return d, nil
}

func parseError(name string, err error) error {
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return fmt.Errorf("%s:%d:%d: %s", name, row, col, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "toml: "))
}

func (d *Document) scan() error {
	p := &unstable.Parser{}
	p.Reset(d.data)
	var table []string
	for p.NextExpression() {
		n := p.Expression()
		var e entry
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			var first, last unstable.Range
			table, first, last = keys(n.Key())
			e = entry{path: table, header: true, line: d.lineStart(int(first.Offset))}
			e.end = int(last.Offset+last.Length) + bytes.IndexByte(d.data[last.Offset+last.Length:], ']') + 1
			if n.Kind == unstable.ArrayTable {
				e.end++
			}
		case unstable.KeyValue:
			key, _, last := keys(n.Key())
			e = entry{path: slices.Concat(table, key), line: d.lineStart(int(n.Raw.Offset)), end: int(n.Raw.Offset + n.Raw.Length)}
			behind := int(last.Offset + last.Length)
			e.value = behind + bytes.IndexByte(d.data[behind:], '=') + 1
			e.value += len(d.data[e.value:]) - len(bytes.TrimLeft(d.data[e.value:], " \t"))
			if v := n.Value(); v.Kind == unstable.Array {
				e.array, e.last = true, e.value+1
				for it := v.Children(); it.Next(); {
					if r := it.Node().Raw; r.Length > 0 {
						e.last, e.some = int(r.Offset+r.Length), true
					}
				}
			}
		}
		d.entries = append(d.entries, e)
	}
	return p.Error()
}

func keys(it unstable.Iterator) (path []string, first, last unstable.Range) {
	for it.Next() {
		n := it.Node()
		if path == nil {
			first = n.Raw
		}
		path, last = append(path, string(n.Data)), n.Raw
	}
	return path, first, last
}

func (d *Document) lineStart(offset int) int {
	return bytes.LastIndexByte(d.data[:offset], '\n') + 1
}

// lineEnd is behind the line's end.
func (d *Document) lineEnd(offset int) int {
	if n := bytes.IndexByte(d.data[offset:], '\n'); n >= 0 {
		return offset + n + 1
	}
	return len(d.data)
}

// Bytes returns the document as it is now.
func (d *Document) Bytes() []byte { return d.data }

// Name is the name that the document was parsed by.
func (d *Document) Name() string { return d.name }

// Get returns a value as package toml decodes it.
func (d *Document) Get(path ...string) (any, bool) {
	var v any = d.tree
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[key]; !ok {
			return nil, false
		}
	}
	return v, true
}

// Strings returns the strings of an array; nil if there is no such array.
func (d *Document) Strings(path ...string) (all []string) {
	v, _ := d.Get(path...)
	elements, _ := v.([]any)
	for _, e := range elements {
		if s, ok := e.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// Line is the number of the line in which a table or key, or else the first thing
// in it, is; 1 if it is in no line of its own.
func (d *Document) Line(path ...string) int {
	for _, e := range d.entries {
		if within(e.path, path) || !e.header && within(path, e.path) {
			return bytes.Count(d.data[:e.line], []byte("\n")) + 1
		}
	}
	return 1
}

func within(path, prefix []string) bool {
	return len(path) >= len(prefix) && slices.Equal(path[:len(prefix)], prefix)
}

// Set gives a key a value, which is written in TOML: see String and Strings.
func (d *Document) Set(value string, path ...string) error {
	for _, e := range d.entries {
		if !e.header && slices.Equal(e.path, path) {
			return d.replace(e.value, e.end, value)
		}
	}
	table, line := path[:len(path)-1], Key(path[len(path)-1:]...)+" = "+value+"\n"
	if len(table) == 0 {
		return d.insertAtRoot(line)
	}
	for _, e := range d.entries {
		if e.header && slices.Equal(e.path, table) {
			indent := d.data[e.line : len(d.data)-len(bytes.TrimLeft(d.data[e.line:], " \t"))]
			return d.insertLine(d.lineEnd(e.end), string(indent)+"  "+line)
		}
	}
	return d.Append("\n[" + Key(table...) + "]\n" + line)
}

// insertAtRoot puts a line behind the last key of the root, or first.
func (d *Document) insertAtRoot(line string) error {
	at := 0
	for _, e := range d.entries {
		if e.header {
			break
		}
		at = d.lineEnd(e.end)
	}
	return d.insertLine(at, line)
}

func (d *Document) insertLine(at int, line string) error {
	if at > 0 && d.data[at-1] != '\n' {
		line = "\n" + line
	}
	return d.replace(at, at, line)
}

// Add appends a value, written in TOML, to an array, which it makes if there is
// none.
func (d *Document) Add(value string, path ...string) error {
	for _, e := range d.entries {
		if e.header || !slices.Equal(e.path, path) {
			continue
		}
		switch {
		case !e.array:
			return d.refuse(path, "is no array")
		case e.some:
			value = ", " + value
		}
		return d.replace(e.last, e.last, value)
	}
	return d.Set("["+value+"]", path...)
}

// Remove takes a table out of the document with everything that is in it. It
// refuses one that is not written as tables with headers.
func (d *Document) Remove(path ...string) error {
	out := *d
	for {
		i := slices.IndexFunc(out.entries, func(e entry) bool { return e.header && within(e.path, path) })
		if i < 0 {
			break
		}
		from, to := out.entries[i].line, out.lineEnd(out.entries[i].end)
		for _, e := range out.entries[i+1:] {
			if e.header { // the comments before it are about it
				break
			}
			to = out.lineEnd(e.end)
		}
		if err := out.replace(from, to, ""); err != nil {
			return d.refuse(path, "cannot be taken out")
		}
	}
	if _, left := out.Get(path...); left {
		return d.refuse(path, "is not written as a table with a header of its own")
	}
	*d = out
	return nil
}

// Append puts text at the end of the document.
func (d *Document) Append(text string) error {
	return d.insertLine(len(d.data), text)
}

// replace changes a range of bytes, and reads what it becomes.
func (d *Document) replace(from, to int, text string) error {
	changed, err := Parse(d.name, slices.Concat(d.data[:from], []byte(text), d.data[to:]))
	if err != nil {
		return fmt.Errorf("change %w: change it by hand", err)
	}
	*d = *changed
	return nil
}

func (d *Document) refuse(path []string, why string) error {
	return fmt.Errorf("change %s:%d: %s %s: change it by hand", d.name, d.Line(path...), Key(path...), why)
}
