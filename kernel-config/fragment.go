// Package kernelconfig knows which kernel options QAT in Kata Containers needs,
// on the host and in the guest, and why: it hands out the fragments that say so,
// checks a kernel's configuration against them, and merges them into one with
// the kernel's own tools. It builds no kernel, and of Kconfig's language it
// understands only what explains why an option was lost.
package kernelconfig

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Side is the kernel that a fragment is for.
type Side string

// The sides.
const (
	Host  Side = "host"
	Guest Side = "guest"
)

// Fragment is one *.conf file: options that belong together. It is a fragment as
// the kernel's merge_config.sh takes it; comments that begin with "#:" tell more:
//
//	#: profile NAME            (in the first block) the profile that it is for
//	#: family NAME...          (in the first block) the families that it is for
//	#: vendor                  (in the first block) it is for the vendor's drivers
//	#: accept VALUE...         what will do; without it, what the line says
//	#: since VERSION           the Linux release that the option came with
//	#: since VERSION, before named OTHER
//	#: since VERSION, before part of OTHER
//	#: serves VERSION          the release whose driver knows the family, if later
//	#: optional                it works without
//
// The text above an option is the reason for it.
type Fragment struct {
	Name     string        `json:"name"` // "guest/c62x"
	Side     Side          `json:"side"`
	Profile  edits.Profile `json:"profile,omitempty"`  // "": every profile
	Families []string      `json:"families,omitempty"` // nil: every family
	Vendor   bool          `json:"vendor,omitempty"`   // for the vendor's (out-of-tree) drivers
	Title    string        `json:"title"`
	Symbols  []Symbol      `json:"symbols"`
	Text     string        `json:"-"` // the file
}

// Symbol is one option of the kernel's configuration.
type Symbol struct {
	Name     string   `json:"name"` // without CONFIG_
	Value    string   `json:"value"`
	Accept   []string `json:"accept"` // values that will do, Value among them
	Optional bool     `json:"optional,omitempty"`
	Since    Version  `json:"since,omitzero"`
	Before   *Before  `json:"before,omitempty"`
	Serves   Version  `json:"serves,omitzero"`
	Reason   string   `json:"reason"`
}

// Before is what stood for a symbol in releases before it came.
type Before struct {
	Symbol string `json:"symbol"`
	// Part is set when the symbol was split off from Symbol, whatever its value,
	// and not when it was only renamed.
	Part bool `json:"part,omitempty"`
}

// Off is the value of an option that is to be off.
const Off = "n"

//go:embed host/*.conf guest/*.conf
var files embed.FS

var fragments = sync.OnceValue(func() []Fragment { return mustParseAll(files) })

// Fragments returns all fragments: the host's, then the guest's, and of each
// what all need before what one profile, one family or a vendor's driver needs.
func Fragments() []Fragment { return slices.Clone(fragments()) }

// ByName returns the fragment of that name, such as "guest/c62x".
func ByName(name string) (Fragment, error) {
	var all []string
	for _, f := range fragments() {
		if f.Name == name {
			return f, nil
		}
		all = append(all, f.Name)
	}
	return Fragment{}, fmt.Errorf("kernel config fragment %q: expected one of %s", name, strings.Join(all, ", "))
}

// mustParseAll panics on a fragment that is wrong: they are compiled in, and a
// test reads them.
func mustParseAll(files fs.FS) []Fragment {
	names, err := fs.Glob(files, "*/*.conf")
	if err != nil {
		panic(err)
	}
	var all []Fragment
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			panic(err)
		}
		f, err := Parse(strings.TrimSuffix(name, ".conf"), string(text))
		if err != nil {
			panic(err)
		}
		all = append(all, f)
	}
	slices.SortStableFunc(all, func(a, b Fragment) int { return a.rank() - b.rank() })
	return all
}

func (f Fragment) rank() int {
	rank := 0
	if f.Side == Guest {
		rank += 1000
	}
	switch {
	case f.Vendor:
		return rank + 900
	case len(f.Families) > 0:
		i := slices.IndexFunc(qat.Families, func(known qat.Family) bool { return known.Name == f.Families[0] })
		return rank + 100 + i
	case f.Profile == edits.ProfileVFIO:
		return rank + 1
	case f.Profile != "":
		return rank + 2
	}
	return rank
}

// Parse reads a fragment of this project. It refuses an option without a reason,
// an option that is there twice, and a "#:" that it does not know.
func Parse(name, text string) (Fragment, error) {
	f := Fragment{Name: name, Side: Side(path.Dir(name)), Text: text}
	if f.Side != Host && f.Side != Guest {
		return f, fmt.Errorf("kernel config fragment %s: expected its name to begin with host/ or guest/", name)
	}
	var errs []error
	var b block
	for i, line := range strings.Split(text, "\n") {
		if err := f.line(&b, line); err != nil {
			errs = append(errs, fmt.Errorf("kernel config fragment %s, line %d: %w", name, i+1, err))
		}
	}
	if f.Title == "" {
		errs = append(errs, fmt.Errorf("kernel config fragment %s: expected it to begin with a comment and an empty line", name))
	}
	return f, errors.Join(errs...)
}

// block is what was read since the last empty line or option.
type block struct {
	comment    []string
	directives []string
}

func (f *Fragment) line(b *block, line string) error {
	if name, value, ok := parseOption(line); ok {
		s, err := newSymbol(name, value, *b)
		*b = block{}
		if err != nil {
			return err
		}
		if slices.ContainsFunc(f.Symbols, func(other Symbol) bool { return other.Name == name }) {
			return fmt.Errorf("%s is there twice", name)
		}
		f.Symbols = append(f.Symbols, s)
		return nil
	}
	switch {
	case strings.HasPrefix(line, "#:"):
		b.directives = append(b.directives, strings.TrimSpace(line[2:]))
	case strings.HasPrefix(line, "#"):
		b.comment = append(b.comment, strings.TrimSpace(line[1:]))
	case strings.TrimSpace(line) != "":
		return fmt.Errorf("%q: expected a comment, CONFIG_NAME=value or # CONFIG_NAME is not set", line)
	case f.Title == "":
		defer func() { *b = block{} }()
		return f.header(*b)
	case len(b.directives) > 0:
		*b = block{}
		return errors.New(`"#:" without an option below it`)
	default:
		*b = block{}
	}
	return nil
}

// header takes the first block.
func (f *Fragment) header(b block) error {
	if len(b.comment) == 0 {
		return errors.New("expected a comment that says what the fragment is for")
	}
	f.Title = b.comment[0]
	for _, d := range b.directives {
		key, rest, _ := strings.Cut(d, " ")
		switch key {
		case "profile":
			p, err := edits.ParseProfile(rest)
			if err != nil {
				return err
			}
			f.Profile = p
		case "family":
			f.Families = strings.Fields(rest)
			for _, name := range f.Families {
				if qat.FamilyByName(name) == nil {
					return unknownFamily(name)
				}
			}
		case "vendor":
			f.Vendor = true
		default:
			return fmt.Errorf(`"#: %s": expected profile, family or vendor`, d)
		}
	}
	return nil
}

func newSymbol(name, value string, b block) (Symbol, error) {
	s := Symbol{Name: name, Value: value, Accept: []string{value}, Reason: strings.TrimSpace(strings.Join(b.comment, " "))}
	if s.Reason == "" {
		return s, fmt.Errorf("%s: expected a comment above it with the reason", name)
	}
	for _, d := range b.directives {
		if err := s.directive(d); err != nil {
			return s, fmt.Errorf(`%s: "#: %s": %w`, name, d, err)
		}
	}
	return s, nil
}

func (s *Symbol) directive(d string) (err error) {
	key, rest, _ := strings.Cut(d, " ")
	switch key {
	case "optional":
		s.Optional = true
	case "accept":
		s.Accept = strings.Fields(rest)
		if !slices.Contains(s.Accept, s.Value) {
			return fmt.Errorf("expected %s, the value of the line, to be among them", s.Value)
		}
	case "since":
		since, before, ok := strings.Cut(rest, ", before ")
		if s.Since, err = ParseVersion(since); err != nil || !ok {
			return err
		}
		if other, named := strings.CutPrefix(before, "named "); named {
			s.Before = &Before{Symbol: other}
		} else if other, part := strings.CutPrefix(before, "part of "); part {
			s.Before = &Before{Symbol: other, Part: true}
		} else {
			return errors.New(`expected "named OTHER" or "part of OTHER" after "before"`)
		}
	case "serves":
		s.Serves, err = ParseVersion(rest)
		return err
	default:
		return errors.New("expected accept, since, serves or optional")
	}
	return nil
}

// For returns the fragment's text for a release of Linux: an option that the
// release does not have yet is replaced by a comment that says so, one that had
// another name by that name.
func (f Fragment) For(v Version) string {
	lines := strings.Split(f.Text, "\n")
	for i, line := range lines {
		name, value, ok := parseOption(line)
		if !ok {
			continue
		}
		s := f.Symbols[slices.IndexFunc(f.Symbols, func(s Symbol) bool { return s.Name == name })]
		switch e := s.era(v); {
		case e == current:
		case e == renamed:
			lines[i] = option(s.Before.Symbol, value)
		case e == partOf:
			lines[i] = fmt.Sprintf("# part of CONFIG_%s before Linux %s", s.Before.Symbol, s.Since)
		default:
			lines[i] = fmt.Sprintf("# CONFIG_%s needs Linux %s", name, s.needs())
		}
	}
	return strings.Join(lines, "\n")
}

// era is how a release stands to a symbol.
type era int

const (
	current era = iota // has it, as far as is known
	renamed            // has it under its former name
	partOf             // has what it does, in another symbol
	tooOld             // has nothing of it
)

func (s Symbol) era(v Version) era {
	switch {
	case v.IsZero() || v.Compare(s.needs()) >= 0:
		return current
	case s.Before == nil:
		return tooOld
	case s.Before.Part:
		return partOf
	}
	return renamed
}

// needs returns the first release in which the symbol serves its purpose.
func (s Symbol) needs() Version {
	if s.Serves.Compare(s.Since) > 0 {
		return s.Serves
	}
	return s.Since
}
