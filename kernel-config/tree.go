package kernelconfig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

const mergeScript = "scripts/kconfig/merge_config.sh"

// tree is a kernel's source.
type tree struct {
	dir     string // absolute
	version Version
	options kconfig
}

var (
	makeVersion    = lazyregexp.New(`(?m)^VERSION\s*=\s*(\d+)`)
	makePatchlevel = lazyregexp.New(`(?m)^PATCHLEVEL\s*=\s*(\d+)`)
)

func openTree(dir string) (*tree, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("kernel tree %s: %w", dir, err)
	}
	makefile, err := os.ReadFile(filepath.Join(dir, "Makefile"))
	if err != nil {
		return nil, fmt.Errorf("kernel tree %s: expected the directory of a kernel's source, such as linux-source-6.12 unpacked: %w", dir, err)
	}
	major, minor := makeVersion.FindSubmatch(makefile), makePatchlevel.FindSubmatch(makefile)
	if major == nil || minor == nil {
		return nil, fmt.Errorf("kernel tree %s: expected VERSION and PATCHLEVEL in its Makefile: is it a kernel's source?", dir)
	}
	t := &tree{dir: dir}
	if t.version, err = ParseVersion(string(major[1]) + "." + string(minor[1])); err != nil {
		return nil, fmt.Errorf("kernel tree %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, mergeScript)); err != nil {
		return nil, fmt.Errorf("kernel tree %s: it has to have its %s: %w", dir, mergeScript, err)
	}
	t.options, err = readKconfig(dir, srcarch)
	return t, err
}

// request is an option to set, by the name that the tree has for it.
type request struct {
	Result        // as far as it is known before
	name   string // without CONFIG_
	value  string
	accept []string
}

// resolve turns the fragments into what to ask of this tree. Its Kconfig files
// decide what there is, not its version: a vendor's tree may have more. What
// cannot be asked for is an error when it is required, all of it at once, and
// otherwise returned as skipped.
func (t *tree) resolve(fragments []Selected, extra []string) (asked []request, skipped []Result, err error) {
	var errs []error
	for _, f := range fragments {
		for _, s := range f.Symbols {
			r := t.request(s)
			r.Fragment, r.Required = f.Name, f.Required && !s.Optional
			switch {
			case r.State != Impossible:
				asked = append(asked, r)
			case r.Required:
				errs = append(errs, fmt.Errorf("merge %s: CONFIG_%s is impossible in Linux %s: %s", f.Name, s.Name, t.version, r.Note))
			default:
				skipped = append(skipped, r.Result)
			}
		}
	}
	for _, file := range extra {
		more, err := t.read(file)
		errs = append(errs, err)
		asked = append(asked, more...)
	}
	if len(asked) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("merge: there is no option to merge: name a fragment"))
	}
	return asked, skipped, errors.Join(errs...)
}

func (t *tree) request(s Symbol) request {
	r := request{Result: Result{Symbol: s.Name, Expected: s.Accept}, name: s.Name, value: s.Value, accept: s.Accept}
	_, known := t.options[s.Name]
	switch {
	case known && s.Serves.Compare(t.version) > 0:
		r.State, r.Note = Impossible, fmt.Sprintf("its driver knows the device since Linux %s", s.Serves)
	case known:
	case s.Value == Off: // what does not exist is off
	case s.Before == nil || t.options[s.Before.Symbol] == nil:
		r.State, r.Note = Impossible, "the tree has no such option"
		if s.era(t.version) == tooOld {
			r.Note = fmt.Sprintf("it came with Linux %s", s.Since)
		}
	case s.Before.Part:
		r.Note = fmt.Sprintf("part of %s before Linux %s", s.Before.Symbol, s.Since)
		r.name, r.value, r.accept = s.Before.Symbol, "y", []string{"y", "m"}
		r.Expected = r.accept
	default:
		r.Note = fmt.Sprintf("called %s before Linux %s", s.Before.Symbol, s.Since)
		r.name = s.Before.Symbol
	}
	return r
}

// read reads a fragment of the user's own: every option has to survive with its
// value, or built in where a module was asked for.
func (t *tree) read(file string) ([]request, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read fragment: %w", err)
	}
	var all []request
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		name, value, ok := parseOption(line)
		if !ok {
			if line != "" && line[0] != '#' {
				return nil, fmt.Errorf("fragment %s, line %d: %q: expected a comment, CONFIG_NAME=value or # CONFIG_NAME is not set", file, i+1, line)
			}
			continue
		}
		accept := []string{value}
		if value == "m" {
			accept = append(accept, "y")
		}
		all = append(all, request{Result{Fragment: file, Symbol: name, Expected: accept, Required: true}, name, value, accept})
	}
	return all, nil
}

// verify compares the result with what was asked for. The error names every
// option that did not survive, and why.
func (t *tree) verify(asked []request, c *Config) ([]Result, error) {
	var all []Result
	var errs []error
	for _, r := range asked {
		value, _ := c.Value(r.name)
		r.State = stateOf(value)
		if r.OK = slices.Contains(r.accept, value); r.OK && value == Off {
			r.State = Unset
		}
		all = append(all, r.Result)
		if !r.OK {
			errs = append(errs, fmt.Errorf("merge %s: CONFIG_%s did not survive: it is %s, expected %s: %s",
				r.Fragment, r.name, value, strings.Join(r.accept, " or "), t.options.explain(r.name, r.value, c)))
		}
	}
	return all, errors.Join(errs...)
}
