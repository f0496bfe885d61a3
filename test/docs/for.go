package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Lines are the documented commands that one test has to run.
type Lines struct {
	t     testing.TB
	lines []string // by their order in the account
	taken map[string]bool
}

// For returns the commands of the test that calls it. When the test is over, it
// fails if it did not ask for all of them, each once or more often.
func For(t testing.TB) *Lines {
	t.Helper()
	name, err := nameOf(t)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lines{t: t, taken: map[string]bool{}}
	for _, e := range account {
		if e.test == name {
			l.lines = append(l.lines, e.lines...)
		}
	}
	if len(l.lines) == 0 {
		t.Fatalf("test/docs/account.go has no command for %s", name)
	}
	t.Cleanup(func() {
		if t.Failed() || t.Skipped() {
			return
		}
		for _, text := range l.lines {
			if !l.taken[text] {
				t.Errorf("%q is documented, and this test is to run it and does not", text)
			}
		}
	})
	return l
}

// Line returns the command that begins so.
func (l *Lines) Line(beginning string) string {
	l.t.Helper()
	var found []string
	for _, text := range l.lines {
		if text == beginning {
			found = []string{text}
			break
		}
		if strings.HasPrefix(text, beginning) {
			found = append(found, text)
		}
	}
	if len(found) != 1 {
		l.t.Fatalf("documented commands that begin with %q: %q, expected one", beginning, found)
	}
	l.taken[found[0]] = true
	return found[0]
}

// All returns all commands, in the order of the account.
func (l *Lines) All() []string {
	for _, text := range l.lines {
		l.taken[text] = true
	}
	return l.lines
}

// nameOf is how the account calls a test: by its directory and name.
func nameOf(t testing.TB) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	root, err := Root(dir)
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(root, dir)
	name, _, _ := strings.Cut(t.Name(), "/")
	return rel + "." + name, err
}

// Root is the directory of the module that a directory is in.
func Root(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is in no Go module", dir)
		}
	}
}
