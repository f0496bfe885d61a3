package devconf

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/ini.v1"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

const (
	nameRule  = "expected 1 to 63 letters, digits, - _ and . that begin with a letter or _"
	valueRule = "expected 1 to 63 printable ASCII characters without blanks, quotes inside, \\ and #"
)

var nameFormat = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

func validName(s string) bool { return len(s) <= maxLength && nameFormat.MatchString(s) }

// validValue takes a value with the double quotes around it, if it has them.
func validValue(s string) bool {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	if s == "" || len(s) > maxLength {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] > '~' || strings.IndexByte("\"'`\\#", s[i]) >= 0 {
			return false
		}
	}
	return true
}

// Parse reads a file by adf_ctl's rules, but refuses what adf_ctl passes over
// or misunderstands: settings outside a section, repeated sections and keys,
// numbers out of their range, instances that are counted but not described.
// Comments are not kept. It does not tell whether a VF has room for the
// instances: that is Check's task.
func Parse(data []byte) (*File, error) {
	f, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read QAT configuration: %w", err)
	}
	return f, nil
}

func parse(data []byte) (*File, error) {
	text, err := clean(data)
	if err != nil {
		return nil, err
	}
	cfg, err := ini.LoadSources(iniOptions, text)
	if err != nil {
		return nil, err
	}
	f := new(File)
	seen := make(map[string]bool)
	for i, sec := range cfg.Sections() {
		if i == 0 {
			continue // what stands before the first section: clean lets nothing
		}
		if seen[sec.Name()] {
			return nil, fmt.Errorf("section [%s] is there twice: the driver would mix them", sec.Name())
		}
		seen[sec.Name()] = true
		r := reader{section: sec.Name()}
		for _, k := range sec.Keys() {
			if len(k.ValueWithShadows()) > 1 {
				return nil, fmt.Errorf("[%s] %s is there twice: the driver would take the first", sec.Name(), k.Name())
			}
			r.keys = append(r.keys, Key{k.Name(), k.Value()})
		}
		if sec.Name() == generalSection {
			f.General = r.general()
		} else {
			f.Sections = append(f.Sections, r.readSection())
		}
		if r.err != nil {
			return nil, r.err
		}
	}
	n := 0
	for _, s := range f.lines() {
		n += 1 + len(s.keys)
	}
	if n > maxLines {
		return nil, errTooLong
	}
	if len(f.Sections) >= maxSections {
		return nil, fmt.Errorf("%d sections besides [GENERAL]: the driver has room for %d", len(f.Sections), maxSections-1)
	}
	return f, nil
}

var errTooLong = fmt.Errorf("more than %d settings or %d bytes", maxLines, maxSize)

// clean does to a text what adf_ctl does to it before it looks at it: comments
// go from # on, and so do blanks wherever they are (utils.cpp, sanitize_string).
// What is left has one form only, so that the INI reader cannot see more in it
// than adf_ctl does.
func clean(data []byte) ([]byte, error) {
	if len(data) > maxSize {
		return nil, errTooLong
	}
	var out bytes.Buffer
	lines, inSection := 0, false
	blanks := strings.NewReplacer(" ", "", "\t", "", "\r", "")
	number := 0
	for raw := range bytes.Lines(data) {
		number++
		line, _, _ := strings.Cut(strings.TrimSuffix(string(raw), "\n"), "#")
		if line = blanks.Replace(line); line == "" {
			continue
		}
		if lines++; lines > maxLines {
			return nil, errTooLong
		}
		if line[0] == '[' {
			name, ok := strings.CutSuffix(line[1:], "]")
			if !ok || !validName(name) {
				return nil, fmt.Errorf("line %d: section %.80q: %s", number, line, nameRule)
			}
			inSection = true
		} else if err := cleanSetting(line, inSection); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		out.WriteString(line)
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

func cleanSetting(line string, inSection bool) error {
	key, value, ok := strings.Cut(line, "=")
	switch {
	case !ok:
		return fmt.Errorf("%.80q: expected key = value", line)
	case !validName(key):
		return fmt.Errorf("key %.80q: %s", key, nameRule)
	case !validValue(value):
		return fmt.Errorf("%s = %.80q: %s", key, value, valueRule)
	case !inSection:
		return fmt.Errorf("%s stands before the first section", key)
	}
	return nil
}

// reader takes the settings of one section one by one. It keeps the first
// error, so that a section reads without a check at every line.
type reader struct {
	section string
	keys    []Key // what has not been taken yet
	err     error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("[%s] %s", r.section, fmt.Sprintf(format, args...))
	}
}

func (r *reader) has(name string) bool { return r.find(name) >= 0 }

func (r *reader) find(name string) int {
	for i := range r.keys {
		if r.keys[i].Name == name {
			return i
		}
	}
	return -1
}

func (r *reader) take(name string) (string, bool) {
	i := r.find(name)
	if i < 0 {
		return "", false
	}
	value := r.keys[i].Value
	r.keys = append(r.keys[:i], r.keys[i+1:]...)
	return value, true
}

// rest is what nobody took. Nothing is always nil, so that equal files are equal
// values.
func (r *reader) rest() []Key {
	if len(r.keys) == 0 {
		return nil
	}
	return r.keys
}

// number is 0 for a key that is not there.
func (r *reader) number(name string, lowest, highest int) int {
	value, ok := r.take(name)
	if !ok {
		return 0
	}
	n, err := decimal(value, highest)
	if err != nil || n < lowest {
		r.fail("%s = %s: expected a decimal number from %d to %d", name, value, lowest, highest)
		return 0
	}
	return n
}

// decimal takes digits only: no sign, no blank, no hexadecimal.
func decimal(s string, highest int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, err
	}
	if n > uint64(highest) {
		return 0, strconv.ErrRange
	}
	return int(n), nil
}

func (r *reader) requests(name string) int {
	value, ok := r.take(name)
	if !ok {
		return 0
	}
	n, err := decimal(value, maxRequests)
	if err != nil || !validRequests(n) {
		r.fail("%s = %s: expected a power of two from %d to %d", name, value, minRequests, maxRequests)
		return 0
	}
	return n
}

func (r *reader) general() General {
	var g General
	if value, ok := r.take("ServicesEnabled"); ok {
		g.ServicesEnabled = strings.Split(value, ";")
		for _, s := range g.ServicesEnabled {
			if s == "" {
				r.fail("ServicesEnabled = %s: expected services joined by ;", value)
			}
		}
	}
	g.ConfigVersion = r.number("ConfigVersion", 1, 99)
	g.SymRequests = r.requests("CyNumConcurrentSymRequests")
	g.AsymRequests = r.requests("CyNumConcurrentAsymRequests")
	g.DcRequests = r.requests("DcNumConcurrentRequests")
	g.Other = r.rest()
	return g
}

func (r *reader) readSection() Section {
	s := Section{Name: r.section}
	kernel := kernelSections[s.Name]
	s.Foreign = !kernel && !r.has("NumberCyInstances") && !r.has("NumberDcInstances") && !r.has("NumProcesses") && !r.has("LimitDevAccess")
	if !s.Foreign {
		s.Cy = r.instances("Cy")
		s.Dc = r.instances("Dc")
		if !kernel {
			s.Processes = r.number("NumProcesses", 0, maxProcesses)
			s.LimitDevAccess = r.number("LimitDevAccess", 0, 1) == 1
		}
	}
	s.Other = r.rest()
	return s
}

func (r *reader) instances(prefix string) []Instance {
	counter := "Number" + prefix + "Instances"
	n := r.number(counter, 0, maxInstances)
	var out []Instance
	for i := 0; i < n && r.err == nil; i++ {
		p := prefix + strconv.Itoa(i)
		for _, key := range []string{p + "Name", p + "IsPolled", p + "CoreAffinity"} {
			if !r.has(key) {
				r.fail("%s is missing, but %s is %d", key, counter, n)
				return nil
			}
		}
		var inst Instance
		inst.Name, _ = r.take(p + "Name")
		inst.Polling = Polling(r.number(p+"IsPolled", 0, int(PollingEvent)))
		inst.Cores = r.cores(p + "CoreAffinity")
		out = append(out, inst)
	}
	return out
}

// cores reads a list of CPUs and ranges of them: "0,2,4-7".
func (r *reader) cores(name string) []int {
	value, _ := r.take(name)
	var cores []int
	for part := range strings.SplitSeq(value, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := decimal(from, maxCore)
		b, errB := decimal(to, maxCore)
		if errA != nil || errB != nil || b < a {
			r.fail("%s = %s: expected CPU numbers from 0 to %d and ranges of them, joined by commas", name, value, maxCore)
			return nil
		}
		if len(cores)+b-a+1 > maxCores {
			r.fail("%s = %s: expected at most %d CPUs", name, value, maxCores)
			return nil
		}
		for c := a; c <= b; c++ {
			cores = append(cores, c)
		}
	}
	return cores
}
