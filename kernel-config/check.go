package kernelconfig

import (
	"fmt"
	"slices"
	"strings"
)

// State is how a kernel has an option.
type State string

// The states.
const (
	Set        State = "set"        // built in
	Module     State = "module"     // as a module
	Unset      State = "off"        // off, as it is to be
	Missing    State = "missing"    // the kernel could have it, and has not
	Impossible State = "impossible" // no kernel of that release has it
)

// Result is what a kernel's configuration says of one option.
type Result struct {
	Fragment string   `json:"fragment"`
	Symbol   string   `json:"symbol"` // without CONFIG_
	State    State    `json:"state"`
	Expected []string `json:"expected"`
	Required bool     `json:"required"`
	OK       bool     `json:"ok"` // as expected
	Note     string   `json:"note,omitempty"`
}

// Failed tells whether the kernel will not do because of this option.
func (r Result) Failed() bool { return r.Required && !r.OK }

// Check tells of every option of the fragments how a configuration has it. What
// the configuration mentions is possible, whatever its version. A zero version is
// one that is not known; no option is impossible then.
func Check(c *Config, v Version, fragments []Selected) []Result {
	var all []Result
	for _, f := range fragments {
		for _, s := range f.Symbols {
			r := check(c, v, s)
			r.Fragment, r.Required = f.Name, f.Required && !s.Optional
			all = append(all, r)
		}
	}
	return all
}

func check(c *Config, v Version, s Symbol) Result {
	r := Result{Symbol: s.Name, Expected: s.Accept}
	value, mentioned := c.Value(s.Name)
	e := s.era(v)
	switch {
	case c.Ported, mentioned && s.Serves.IsZero():
		e = current
	case e == tooOld && s.Value == Off:
		e = current
	}
	switch e {
	case tooOld:
		r.State, r.Note = Impossible, fmt.Sprintf("needs Linux %s, this is %s", s.needs(), v)
		return r
	case renamed:
		value, mentioned = c.Value(s.Before.Symbol)
		r.Note = fmt.Sprintf("called %s before Linux %s", s.Before.Symbol, s.Since)
	case partOf:
		value, mentioned = c.Value(s.Before.Symbol)
		r.Note = fmt.Sprintf("part of %s before Linux %s", s.Before.Symbol, s.Since)
		r.Expected = []string{"y", "m"}
	}
	r.State = stateOf(value)
	if r.OK = slices.Contains(r.Expected, value); r.OK {
		if value == Off {
			r.State = Unset
		}
		return r
	}
	switch {
	case value != Off:
		r.Note = join(r.Note, fmt.Sprintf("is %s, must be %s: %s", value, strings.Join(r.Expected, " or "), s.brief()))
	case mentioned:
		r.Note = join(r.Note, "is off: "+s.brief())
	case v.IsZero() && !s.Since.IsZero() && s.Before == nil:
		r.Note = fmt.Sprintf("needs Linux %s, and the configuration does not say of which version it is", s.Since)
	default:
		r.Note = join(r.Note, "cannot be chosen: something that it depends on is off: "+s.brief())
	}
	return r
}

func stateOf(value string) State {
	switch value {
	case Off:
		return Missing
	case "m":
		return Module
	}
	return Set
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// brief returns the first sentence of the reason.
func (s Symbol) brief() string {
	brief, _, _ := strings.Cut(s.Reason, ". ")
	return strings.TrimSuffix(brief, ".")
}
