package dump

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pmezard/go-difflib/difflib"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/edits"
)

// Difference is what an injection changed in the spec of one container.
type Difference struct {
	Container containers.Container
	// Against says what the spec was compared with; empty when nothing was
	// injected.
	Against string
	// Missing names what the record has and the spec has not.
	Missing []string
	Hunks   []Hunk
}

// Hunk holds the changes in one object or list of the spec.
type Hunk struct {
	Path  string // "linux.devices"; empty for the spec itself
	Lines []Line
}

// Line is a member of an object or an element of a list.
type Line struct {
	Op    Op
	Path  string // "linux.devices[3]"
	Key   string // of a member of an object
	Value any
}

// Op says what became of a line.
type Op byte

// The ops. Context stands beside a change and is the same in both specs.
const (
	Context Op = ' '
	Added   Op = '+'
	Removed Op = '-'
)

// Diff compares the spec of a container with what it was before the injection:
// with the file that the shim kept when it rewrote a sandbox's spec, and
// otherwise with the spec from which the record of the injection is taken back.
func Diff(e Entry) (Difference, error) {
	d := Difference{Container: e.Container}
	failed := func(err error) (Difference, error) {
		return d, fmt.Errorf("compare the spec of container %s: %w", &e.Container, err)
	}
	original, err := containers.Original(e.Bundle)
	if err != nil {
		return failed(err)
	}
	f, err := e.Facts()
	if err != nil {
		return failed(err)
	}
	annotation, recorded := f.Annotations[edits.RecordAnnotation]
	if original == nil && !recorded {
		return d, nil
	}
	after, err := Decode(e.Spec)
	if err != nil {
		return failed(fmt.Errorf("%w: expected an OCI spec in JSON", err))
	}
	if original != nil {
		before, err := Decode(original)
		if err != nil {
			return failed(fmt.Errorf("%s in bundle %s: %w: expected an OCI spec in JSON", containers.OriginalFile, e.Bundle, err))
		}
		d.Against, d.Hunks = containers.OriginalFile, compare(before, after)
		return d, nil
	}
	record, err := edits.ParseRecord(annotation)
	if err != nil {
		return failed(malformed(&e.Container, err))
	}
	before, missing, err := Revert(after, record)
	if err != nil {
		return failed(malformed(&e.Container, err))
	}
	d.Against, d.Missing, d.Hunks = "the spec with the recorded injection taken back", missing, compare(before, after)
	return d, nil
}

func malformed(c *containers.Container, err error) error {
	return fmt.Errorf("annotation %s: %w: expected the record that kata-qat writes; somebody else changed it: see kata-qat dump %s -o yaml",
		edits.RecordAnnotation, err, c.ShortID())
}

// compare returns the changes between two specs, in the order of the places
// where they are.
func compare(before, after object) []Hunk {
	var c comparison
	c.objects("", before, after)
	return c.hunks
}

type comparison struct{ hunks []Hunk }

func (c *comparison) objects(path string, before, after object) {
	keys := slices.Sorted(maps.Keys(after))
	for k := range before {
		if _, ok := after[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var lines []Line
	var nested []func()
	for _, k := range keys {
		b, inBefore := before[k]
		a, inAfter := after[k]
		at := join(path, k)
		switch {
		case inBefore && inAfter && reflect.DeepEqual(b, a):
			lines = append(lines, Line{Context, at, k, a})
		case bothObjects(b, a):
			b, _ := b.(object)
			a, _ := a.(object)
			nested = append(nested, func() { c.objects(at, b, a) })
		case bothLists(b, a):
			b, _ := b.([]any)
			a, _ := a.([]any)
			nested = append(nested, func() { c.lists(at, b, a) })
		default:
			if inBefore {
				lines = append(lines, Line{Removed, at, k, b})
			}
			if inAfter {
				lines = append(lines, Line{Added, at, k, a})
			}
		}
	}
	c.add(path, lines)
	for _, f := range nested {
		f()
	}
}

// bothObjects holds for two objects, and for one that has members and is there
// in one spec only: the members are then what was added or removed.
func bothObjects(b, a any) bool {
	_, bo := b.(object)
	_, ao := a.(object)
	return bo && ao || bo && a == nil && size(b) > 0 || ao && b == nil && size(a) > 0
}

// bothLists is the same for lists.
func bothLists(b, a any) bool {
	_, bl := b.([]any)
	_, al := a.([]any)
	return bl && al || bl && a == nil && size(b) > 0 || al && b == nil && size(a) > 0
}

func (c *comparison) lists(path string, before, after []any) {
	var lines []Line
	matcher := difflib.NewMatcherWithJunk(encoded(before), encoded(after), false, nil)
	for _, op := range matcher.GetOpCodes() {
		if op.Tag != 'e' {
			for i := op.I1; i < op.I2; i++ {
				lines = append(lines, Line{Op: Removed, Path: index(path, i), Value: before[i]})
			}
		}
		for j := op.J1; j < op.J2; j++ {
			l := Line{Op: Added, Path: index(path, j), Value: after[j]}
			if op.Tag == 'e' {
				l.Op = Context
			}
			lines = append(lines, l)
		}
	}
	c.add(path, lines)
}

// add keeps the lines that changed and one line of context on either side.
func (c *comparison) add(path string, lines []Line) {
	changed := func(i int) bool { return i >= 0 && i < len(lines) && lines[i].Op != Context }
	var kept []Line
	for i, l := range lines {
		if changed(i) || changed(i-1) || changed(i+1) {
			kept = append(kept, l)
		}
	}
	if len(kept) > 0 {
		c.hunks = append(c.hunks, Hunk{path, kept})
	}
}

func encoded(list []any) []string {
	s := make([]string, len(list))
	for i, e := range list {
		// What came out of the JSON decoder goes back in; keys get sorted.
		b, _ := json.Marshal(e)
		s[i] = string(b)
	}
	return s
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// join appends a key to a path as jq would write it, without the first dot.
func join(path, key string) string {
	plain := key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
	})
	switch {
	case !plain:
		return path + "[" + strconv.Quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}
