//go:build !entry

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// command is a line of the documentation that a reader is to type.
type command struct {
	file, text string
	mark       string // of its block: where else than here it can be run; "" for anywhere
	fenced     bool   // in a block ```console
	mention    bool   // within a text, perhaps without what it needs
}

// words are the command's, up to what the shell does with it.
func (c command) words() []string {
	var all []string
	for _, word := range shellWord.FindAllString(c.text, -1) {
		if strings.ContainsAny(word[:1], "#|;&<>") {
			break
		}
		all = append(all, strings.Trim(word, `"'`))
	}
	return all
}

var (
	shellWord = regexp.MustCompile(`"[^"]*"|'[^']*'|[^\s"']+`)
	span      = regexp.MustCompile("`(kata-qat [a-z][^`]*)`")
	link      = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
)

// The marks of a block of commands: ```console MARK.
var marks = []string{
	"hardware", // needs QAT devices
	"node",     // changes or reads a machine with Kata Containers
	"cluster",  // needs a Kubernetes cluster
}

// documents are all files that people read.
func documents(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md"}
	for _, dir := range []string{"docs", "deploy"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, e fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".md") {
				path, err = filepath.Rel("../..", path)
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// commands are those of all documents: lines of fenced and indented blocks, and
// spans of text that call kata-qat.
func commands(t *testing.T) []command {
	t.Helper()
	var all []command
	for _, file := range documents(t) {
		b, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		block, continued := "", false
		for line := range strings.SplitSeq(string(b), "\n") {
			if info, ok := strings.CutPrefix(line, "```"); ok {
				switch {
				case block != "":
					block = ""
				case info == "":
					block = "text"
				default:
					block = info
				}
				continue
			}
			language, mark, _ := strings.Cut(block, " ")
			indented := block == "" && strings.HasPrefix(line, "    ")
			for _, m := range span.FindAllStringSubmatch(line, -1) {
				if block == "" && !indented {
					all = append(all, command{file: file, text: strings.ReplaceAll(m[1], `\|`, "|"), mention: true})
				}
			}
			text := strings.TrimSpace(line)
			isCommand := language == "console" || language == "sh" || indented && strings.HasPrefix(text, "kata-qat ")
			if isCommand && text != "" && !strings.HasPrefix(text, "#") {
				if continued {
					all[len(all)-1].text += " " + text
				} else {
					all = append(all, command{file: file, text: text, mark: mark, fenced: language == "console"})
				}
				last := &all[len(all)-1]
				last.text, continued = strings.CutSuffix(last.text, `\`)
			}
		}
		if block != "" {
			t.Errorf("%s: a block of code is not closed", file)
		}
	}
	return all
}

// Every command line of the documentation is one that kata-qat understands.
func TestDocumentedCommandLinesAreUnderstood(t *testing.T) {
	app := newApp(os.Stdout, os.Stderr)
	checked := 0
	for _, c := range commands(t) {
		words := c.words()
		if len(words) == 0 || words[0] != "kata-qat" {
			continue
		}
		checked++
		known, level := map[string]bool{"help": false, "h": false, "version": false}, app.Commands
		for name, value := range takesValue(app.Flags) {
			known[name] = value
		}
		value, arguments := false, false
		for _, word := range words[1:] {
			switch {
			case value:
				value = false
			case strings.HasPrefix(word, "-"):
				name, _, given := strings.Cut(strings.TrimLeft(word, "-"), "=")
				takes, ok := known[name]
				if !ok {
					t.Errorf("%s: %q: there is no flag %s", c.file, c.text, word)
				}
				value = takes && !given
			case word == strings.ToUpper(word): // COMMAND, NAMESPACE/POD
				arguments = true
			default:
				sub := named(level, word)
				if sub == nil {
					if !arguments && takesCommand(level) {
						t.Errorf("%s: %q: there is no command %s", c.file, c.text, word)
					}
					arguments = true
					continue
				}
				for name, value := range takesValue(sub.Flags) {
					known[name] = value
				}
				level = sub.Subcommands
			}
		}
	}
	if checked < 60 {
		t.Errorf("only %d command lines are found", checked)
	}
}

// takesCommand tells whether one of these must follow, and no argument.
func takesCommand(level []*cli.Command) bool {
	return slices.ContainsFunc(level, func(c *cli.Command) bool { return c.Name != "help" })
}

// What only reads is run, on a machine with simulated devices.
func TestDocumentedCommandsThatReadRun(t *testing.T) {
	root := host(t)
	ran := map[string]bool{}
	for _, c := range commands(t) {
		words := c.words()
		if c.mention || len(words) < 2 || words[0] != "kata-qat" || !reads(words) || ran[strings.Join(words, " ")] {
			continue
		}
		ran[strings.Join(words, " ")] = true
		args := append([]string{"--host-root", root}, words[1:]...)
		if code, _, stderr := kataQAT(t, args...); code == exitUsage && !slices.Contains(words, "--dry-run") {
			t.Errorf("%s: %q: %s", c.file, c.text, stderr)
		}
	}
	if len(ran) < 6 {
		t.Errorf("only %d commands were run: %v", len(ran), ran)
	}
}

// reads tells whether a command changes nothing, ends by itself, and asks no one but
// this machine.
func reads(words []string) bool {
	if slices.ContainsFunc(words, func(w string) bool { return w == strings.ToUpper(w) && !strings.HasPrefix(w, "-") }) {
		return false // NAMESPACE/POD
	}
	switch words[1] {
	case "devices", "doctor", "dump", "kernel-config", "version":
		return !slices.Contains(words, "--watch") && !slices.Contains(words, "-w") && !slices.Contains(words, "--host-root")
	case "provision":
		return slices.Contains(words, "--dry-run") && len(words) > 2 && (words[2] == "host" || words[2] == "runtime")
	}
	return false
}

// A block of commands says where they can be run, if that is not everywhere.
func TestDocumentedCommandsAreMarked(t *testing.T) {
	for _, c := range commands(t) {
		if !c.fenced {
			continue
		}
		if c.mark != "" && !slices.Contains(marks, c.mark) {
			t.Errorf("%s: a block is marked %q, expected one of %q", c.file, c.mark, marks)
		}
		program, _, _ := strings.Cut(c.text, " ")
		if c.mark == "" && !slices.Contains([]string{"kata-qat", "make", "podman"}, program) && !strings.HasPrefix(program, "scripts/") {
			t.Errorf("%s: %q: not marked, and no program of ours", c.file, c.text)
		}
	}
}

// What the documentation names is there: targets of make, scripts, files, tests.
func TestWhatTheDocumentationNamesIsThere(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands(t) {
		words := c.words()
		if len(words) > 1 && words[0] == "make" && !strings.Contains(string(makefile), "\n"+words[1]+":") {
			t.Errorf("%s: %q: there is no such target", c.file, c.text)
		}
		if len(words) > 0 && strings.HasPrefix(words[0], "scripts/") {
			if _, err := os.Stat(filepath.Join("../..", words[0])); err != nil {
				t.Errorf("%s: %q: %v", c.file, c.text, err)
			}
		}
	}
	for _, file := range documents(t) {
		b, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join("../..", filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", file, m[1], err)
			}
		}
	}
	security, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	there := tests(t)
	names := regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(security), -1)
	if len(names) < 15 {
		t.Errorf("docs/security.md names %d tests", len(names))
	}
	for _, name := range names {
		if !there[name] {
			t.Errorf("docs/security.md: there is no test %s", name)
		}
	}
}

// tests are the names of all tests of the module.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	declaration := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	all := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && (e.Name() == "build" || e.Name() == ".git") {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declaration.FindAllStringSubmatch(string(b), -1) {
			all[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
