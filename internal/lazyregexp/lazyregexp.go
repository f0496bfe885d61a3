// Package lazyregexp holds regular expressions in package variables and compiles
// them when they are first used. Each command of a program pays for the package
// variables of all others, and patterns were a third of what ours took. The
// standard library has a package of this name for its own use.
package lazyregexp

import (
	"os"
	"regexp"
	"strings"
	"sync"
)

// Regexp is a regular expression. Its methods are those of regexp.Regexp, and
// several goroutines can use it.
type Regexp struct {
	pattern string
	once    sync.Once
	re      *regexp.Regexp
}

// A test program finds patterns that are wrong even if no test uses them.
var inTest = strings.HasSuffix(os.Args[0], ".test")

// New takes a pattern that must be right: a wrong one panics when it is first
// used, and at once in tests.
func New(pattern string) *Regexp {
	r := &Regexp{pattern: pattern}
	if inTest {
		r.get()
	}
	return r
}

func (r *Regexp) get() *regexp.Regexp {
	r.once.Do(func() { r.re = regexp.MustCompile(r.pattern) })
	return r.re
}

// The methods that are in use.

func (r *Regexp) MatchString(s string) bool              { return r.get().MatchString(s) }
func (r *Regexp) FindSubmatch(b []byte) [][]byte         { return r.get().FindSubmatch(b) }
func (r *Regexp) FindStringSubmatch(s string) []string   { return r.get().FindStringSubmatch(s) }
func (r *Regexp) FindAllString(s string, n int) []string { return r.get().FindAllString(s, n) }
func (r *Regexp) FindAllStringIndex(s string, n int) [][]int {
	return r.get().FindAllStringIndex(s, n)
}
func (r *Regexp) FindAllStringSubmatch(s string, n int) [][]string {
	return r.get().FindAllStringSubmatch(s, n)
}
