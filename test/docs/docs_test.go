package docs

import (
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func commands(t *testing.T) []Command {
	t.Helper()
	all, err := Commands(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 150 {
		t.Fatalf("only %d commands are found", len(all))
	}
	return all
}

// An entry of a document's own counts before one for whichever.
func testsOf(c Command) (tests []string) {
	for _, file := range []string{c.File, ""} {
		for _, e := range account {
			if e.file == file && slices.Contains(e.lines, c.Text) {
				tests = append(tests, e.test)
			}
		}
	}
	return tests
}

func TestEveryCommandIsRunByATestOrMarkedAsOneForHardware(t *testing.T) {
	for _, c := range commands(t) {
		switch tests := testsOf(c); {
		case len(tests) == 0 && !c.Hardware:
			t.Errorf("%s: %q is run by no test: see account.go", c.File, c.Text)
		case len(tests) > 0 && c.Hardware:
			t.Errorf("%s: %q is marked as one for hardware, and %s is to run it", c.File, c.Text, tests[0])
		}
	}
}

func TestTheAccountHasNothingThatIsNotDocumented(t *testing.T) {
	all := commands(t)
	for _, e := range account {
		for i, text := range e.lines {
			documented := slices.ContainsFunc(all, func(c Command) bool { return c.Text == text && (e.file == "" || e.file == c.File) })
			if !documented || slices.Contains(e.lines[:i], text) {
				t.Errorf("%s: %q: not documented, or twice in the account", e.test, text)
			}
		}
	}
}

// function is a test of the module.
type function struct {
	dir, name string
	tag       string // of its file
	asks      bool   // calls For
}

func functions(t *testing.T, dir string) (all []function) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(d.Name.Name, "Test") {
				all = append(all, function{dir, d.Name.Name, tagOf(t, f), callsFor(d)})
			}
		}
	}
	return all
}

// tagOf is the tag with which a file is built, "" for none. "kube && !bed" is kube.
func tagOf(t *testing.T, f *ast.File) string {
	t.Helper()
	for _, group := range f.Comments {
		for _, c := range group.List {
			if !constraint.IsGoBuild(c.Text) {
				continue
			}
			expr, err := constraint.Parse(c.Text)
			if err != nil {
				t.Fatal(err)
			}
			for _, tag := range []string{"bed", "kube", "lab", "kernel"} {
				if expr.Eval(func(is string) bool { return is == tag }) {
					return tag
				}
			}
		}
	}
	return ""
}

func callsFor(d *ast.FuncDecl) (found bool) {
	ast.Inspect(d, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			switch f := call.Fun.(type) {
			case *ast.Ident:
				found = found || f.Name == "For"
			case *ast.SelectorExpr:
				x, ok := f.X.(*ast.Ident)
				found = found || ok && x.Name == "docs" && f.Sel.Name == "For"
			}
		}
		return true
	})
	return found
}

func TestTheTestsOfTheAccountAskForTheirCommands(t *testing.T) {
	for _, e := range account {
		if e.test == suite {
			continue
		}
		dir, name, _ := strings.Cut(e.test, ".")
		all := functions(t, dir)
		i := slices.IndexFunc(all, func(f function) bool { return f.name == name })
		if i < 0 || !all[i].asks {
			t.Errorf("%s: there is no such test, or it does not call docs.For", e.test)
		}
	}
}

// What is documented of single tests runs with all of them.
func TestTheSuiteRunsWhatTheAccountSaysOfIt(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	goTest := regexp.MustCompile(`^go test (?:-v )?-tags (\w+) (?:-v )?-run (\w+) \./(\S+)$`)
	for _, e := range account {
		for _, text := range e.lines {
			_, line, _ := strings.Cut(text, "=5 ")
			if line == "" {
				line = text
			}
			m := goTest.FindStringSubmatch(line)
			switch {
			case e.test != suite:
			case text == suite:
			case strings.HasPrefix(text, "make "):
				if !regexp.MustCompile(`(?m)^test:.*(?:\n\t.*)*\n\t@\$\(MAKE\) .* ` + regexp.QuoteMeta(strings.TrimPrefix(text, "make ")) + `$`).Match(makefile) {
					t.Errorf("%s: make test does not run it", text)
				}
			case m == nil:
				t.Errorf("%s: expected go test of a test with a tag", text)
			case !slices.ContainsFunc(functions(t, m[3]), func(f function) bool { return f.tag == m[1] && regexp.MustCompile(m[2]).MatchString(f.name) }):
				t.Errorf("%s: there is no such test", text)
			}
		}
	}
	for _, pattern := range []string{`-tags lab .*\./test/lab\n`, `-tags bed .*\./test/\.\.\.`, `-tags kube .*\./test/\.\.\.`} {
		if !regexp.MustCompile(pattern).Match(makefile) {
			t.Errorf("no recipe of the Makefile has %s", pattern)
		}
	}
}

// What the documentation names is there: targets of make, scripts, files, tests.
func TestWhatTheDocumentationNamesIsThere(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands(t) {
		switch words := strings.Fields(c.Text); {
		case c.Program() == "make":
			for _, target := range words[1:] {
				if !strings.Contains(string(makefile), "\n"+target+":") {
					t.Errorf("%s: %q: there is no target %s", c.File, c.Text, target)
				}
			}
		case strings.HasPrefix(c.Text, "scripts/"):
			if _, err := os.Stat(filepath.Join(root, words[0])); err != nil {
				t.Errorf("%s: %q: %v", c.File, c.Text, err)
			}
		}
	}
	files, err := Documents(root)
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", file, m[1], err)
			}
		}
	}
}

func TestTheTestsThatTheSecurityPageNamesAreThere(t *testing.T) {
	security, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (e.Name() == "build" || e.Name() == ".git"):
			return fs.SkipDir
		case !e.IsDir():
			return nil
		}
		dir, err := filepath.Rel(root, path)
		for _, f := range functions(t, dir) {
			there[f.name] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
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

func TestCommandsAreFoundWhereverTheyAre(t *testing.T) {
	const document = "# A page\n\nText with `kata-qat provision\nhost`, a name `modprobe`, a value `enable = true`, and\n" +
		"    `make demo`, which is no code block.\n\n" +
		"    make test   # all\n    # nothing\n    [runtimes]\n    kata-qat = \"/opt\"\n\n" +
		"| a | `dmesg \\| grep x`<!-- hardware --> and `provision guest` |\n\n" +
		"```console\nkubectl apply \\\n  -k qat   # or software\nmake\n```\n" +
		"```console hardware\nopenssl speed -engine qatengine\n```\n```text\nno command\n```\n"
	got, err := parse(document)
	want := []Command{
		{Text: "kata-qat provision host", Span: true}, {Text: "make demo", Span: true},
		{Text: "make test"},
		{Text: "dmesg | grep x", Span: true, Hardware: true}, {Text: "kata-qat provision guest", Span: true},
		{Text: "kubectl apply -k qat"}, {Text: "make"},
		{Text: "openssl speed -engine qatengine", Hardware: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nexpected %+v", got, err, want)
	}
	for _, wrong := range []string{"```console\nmake\n", "```console cluster\nmake\n```\n", "```sh\nmake\n```\n"} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%q is not refused", wrong)
		}
	}
}
