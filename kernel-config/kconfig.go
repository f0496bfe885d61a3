package kernelconfig

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// kconfig is what the Kconfig files of a kernel tree say of each symbol.
type kconfig map[string][]definition

// definition is one "config" entry.
type definition struct {
	file   string // in the tree
	module bool   // it can be a module
	prompt bool   // it can be set; otherwise others select it
	choice bool   // one of several that exclude each other
	// depends are its conditions and those of the menus and blocks around it.
	depends []string
}

// readKconfig reads the tree's Kconfig and what it sources. srcarch is the
// directory below arch/.
func readKconfig(tree, srcarch string) (kconfig, error) {
	r := kconfigReader{tree: tree, srcarch: srcarch, symbols: make(kconfig), reading: make(map[string]bool)}
	if err := r.file("Kconfig"); err != nil {
		return nil, fmt.Errorf("read the options of kernel tree %s: %w", tree, err)
	}
	return r.symbols, nil
}

type kconfigReader struct {
	tree, srcarch string
	symbols       kconfig
	reading       map[string]bool // files, to notice one that sources itself
	scopes        []scope         // the innermost last
	entry         *definition     // that the lines at hand belong to, or nil
}

// scope is a menu, a choice or an if.
type scope struct {
	kind    string
	depends []string
}

func (r *kconfigReader) file(name string) error {
	if r.reading[name] {
		return fmt.Errorf("%s sources itself", name)
	}
	r.reading[name] = true
	defer delete(r.reading, name)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("source %q: expected a file in the kernel tree", name)
	}
	text, err := os.ReadFile(filepath.Join(r.tree, name))
	if err != nil {
		return err
	}
	outer := len(r.scopes)
	lines := strings.Split(strings.ReplaceAll(string(text), "\\\n", " "), "\n")
	for i := 0; i < len(lines); i++ {
		words := strings.Fields(lines[i])
		if len(words) == 0 {
			continue
		}
		if words[0] == "help" || words[0] == "---help---" {
			i = endOfHelp(lines, i+1) - 1
			continue
		}
		if err := r.statement(name, words); err != nil {
			return err
		}
	}
	r.entry = nil
	if len(r.scopes) > outer {
		return fmt.Errorf("%s: expected an end%s before its end", name, r.scopes[len(r.scopes)-1].kind)
	}
	return nil
}

// endOfHelp returns the first line after a help text: it ends where a line is
// indented less than its first one.
func endOfHelp(lines []string, i int) int {
	first := -1
	for ; i < len(lines); i++ {
		if strings.TrimSpace(lines[i]) == "" {
			continue
		}
		depth := indent(lines[i])
		if first < 0 {
			first = depth
		}
		if depth < first || depth == 0 {
			return i
		}
	}
	return i
}

func indent(line string) (n int) {
	for _, c := range line {
		switch c {
		case ' ':
			n++
		case '\t':
			n += 8 - n%8
		default:
			return n
		}
	}
	return n
}

func (r *kconfigReader) statement(file string, words []string) error {
	rest := strings.Join(words[1:], " ")
	switch words[0] {
	case "config", "menuconfig":
		d := definition{file: file}
		for _, s := range r.scopes {
			d.depends = append(d.depends, s.depends...)
			d.choice = d.choice || s.kind == "choice"
		}
		r.symbols[rest] = append(r.symbols[rest], d)
		r.entry = &r.symbols[rest][len(r.symbols[rest])-1]
	case "if", "menu", "choice":
		s := scope{kind: words[0]}
		if words[0] == "if" {
			s.depends = []string{rest}
		}
		r.scopes, r.entry = append(r.scopes, s), nil
	case "endif", "endmenu", "endchoice":
		if len(r.scopes) == 0 || "end"+r.scopes[len(r.scopes)-1].kind != words[0] {
			return fmt.Errorf("%s: %s without its beginning", file, words[0])
		}
		r.scopes, r.entry = r.scopes[:len(r.scopes)-1], nil
	case "comment", "mainmenu":
		r.entry = &definition{} // whose conditions concern nothing
	case "source":
		r.entry = nil
		name := strings.Trim(rest, `"`)
		name = strings.NewReplacer("$(SRCARCH)", r.srcarch, "$SRCARCH", r.srcarch).Replace(name)
		return r.file(name)
	case "depends":
		condition := strings.TrimPrefix(rest, "on ")
		switch {
		case r.entry != nil:
			r.entry.depends = append(r.entry.depends, condition)
		case len(r.scopes) > 0:
			s := &r.scopes[len(r.scopes)-1]
			s.depends = append(s.depends, condition)
		}
	case "bool", "tristate", "string", "int", "hex", "prompt":
		if r.entry == nil {
			break
		}
		r.entry.module = r.entry.module || words[0] == "tristate"
		if rest != "" {
			r.entry.prompt = true
			if _, condition, ok := cutLast(rest, `" if `); ok {
				r.entry.depends = append(r.entry.depends, condition)
			}
		}
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// explain says why an option did not become what was wanted, as far as the
// Kconfig files tell.
func (k kconfig) explain(name, wanted string, c *Config) string {
	definitions := k[name]
	if len(definitions) == 0 {
		return "this kernel has no such option"
	}
	var reasons []string
	choice, prompt := false, false
	for _, d := range definitions {
		choice, prompt = choice || d.choice, prompt || d.prompt
		if wanted == Off || !d.prompt {
			continue
		}
		need := 1 // what depends on a module and is none itself may be y
		if d.module && wanted == "y" {
			need = 2
		}
		var unmet []string
		for _, condition := range d.depends {
			unmet = append(unmet, unmetBy(condition, need, c)...)
		}
		if len(unmet) == 0 {
			reasons = nil
			break
		}
		reasons = append(reasons, fmt.Sprintf("it depends on %s (%s)", strings.Join(unique(unmet), ", "), d.file))
	}
	value, _ := c.Value(name)
	switch {
	case len(reasons) > 0:
		return strings.Join(reasons, "; or ")
	case !prompt:
		return "it cannot be set: other options select it"
	case choice && value == Off:
		return "another of the same choice is set"
	case value != Off && wanted == Off:
		return "another option selects it"
	case value == "m" && wanted == "y":
		return "something that it depends on is a module"
	}
	return "another option or the base decides it"
}

func unique(all []string) []string {
	var out []string
	seen := make(map[string]bool)
	for _, s := range all {
		if !seen[s] {
			seen[s], out = true, append(out, s)
		}
	}
	return out
}
