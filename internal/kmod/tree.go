// Package kmod knows the modules of a kernel: which there are, what they need,
// and the indexes that modprobe finds them by. It loads none; it needs no kmod
// tools, and what it writes is the same for the same modules.
package kmod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Tree is the directory lib/modules/RELEASE of a kernel.
type Tree struct {
	Dir     string
	Release string

	files   map[string]string // by name: below Dir
	needs   map[string][]string
	builtin map[string]bool
	aliases []alias
	read    map[string]*Module
}

type alias struct{ pattern, name string }

// Open reads the indexes of a tree, which depmod made. Where there is no
// modules.dep it takes the modules that it finds.
func Open(dir, release string) (*Tree, error) {
	t := &Tree{Dir: dir, Release: release, files: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}, read: map[string]*Module{}}
	if err := t.open(); err != nil {
		return nil, fmt.Errorf("read the modules of Linux %s: %w", release, err)
	}
	return t, nil
}

func (t *Tree) open() error {
	err := t.lines("modules.dep", func(line string) {
		file, needs, _ := strings.Cut(line, ":")
		t.files[Name(file)] = file
		for _, n := range strings.Fields(needs) {
			t.needs[Name(file)] = append(t.needs[Name(file)], Name(n))
		}
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = t.walk()
	}
	if err != nil {
		return err
	}
	// A kernel without anything built in as a module has an empty file.
	if err := t.lines("modules.builtin", func(line string) { t.builtin[Name(line)] = true }); err != nil {
		return fmt.Errorf("%w: expected what \"make modules_install\" or the kernel's package puts there", err)
	}
	err = t.lines("modules.alias", func(line string) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
			t.aliases = append(t.aliases, alias{f[1], Name(f[2])})
		}
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (t *Tree) lines(name string, each func(string)) error {
	b, err := os.ReadFile(filepath.Join(t.Dir, name))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			each(line)
		}
	}
	return nil
}

// walk finds the modules. Those below updates and extra come before those of the
// kernel itself, as depmod has it.
func (t *Tree) walk() error {
	rank := func(file string) int {
		top, _, _ := strings.Cut(file, "/")
		return slices.Index([]string{"kernel", "extra", "updates"}, top)
	}
	return filepath.WalkDir(t.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path.Ext(plainName(d.Name())) != ".ko" {
			return err
		}
		file, err := filepath.Rel(t.Dir, p)
		if have, ok := t.files[Name(file)]; !ok || rank(file) > rank(have) {
			t.files[Name(file)] = file
		}
		return err
	})
}

// Builtin tells whether what a module would be is part of the kernel.
func (t *Tree) Builtin(name string) bool { return t.builtin[Name(name)] }

// Has tells whether there is such a module, or it is part of the kernel.
func (t *Tree) Has(name string) bool { return t.files[Name(name)] != "" || t.Builtin(name) }

// Add puts a module that is elsewhere into the tree, as file below Dir, before
// one of the same name that is there.
func (t *Tree) Add(m *Module, file string) {
	m.File = file
	t.files[m.Name], t.read[m.Name] = file, m
	delete(t.needs, m.Name)
	delete(t.builtin, m.Name)
}

// Module reads a module. It refuses one for another kernel.
func (t *Tree) Module(name string) (*Module, error) {
	name = Name(name)
	m, ok := t.read[name]
	if !ok {
		file, ok := t.files[name]
		if !ok {
			return nil, fmt.Errorf("module %s: Linux %s has none such", name, t.Release)
		}
		if !filepath.IsLocal(file) {
			return nil, fmt.Errorf("module %s: modules.dep has it as %q: expected a path below %s", name, file, t.Dir)
		}
		var err error
		if m, err = ReadModule(filepath.Join(t.Dir, file)); err != nil {
			return nil, err
		}
		m.Name, m.File = name, path.Join(path.Dir(file), plainName(path.Base(file)))
		// depmod finds what a module needs by its symbols, modpost writes it down.
		for _, n := range t.needs[name] {
			if !slices.Contains(m.Needs, n) {
				m.Needs = append(m.Needs, n)
			}
		}
		t.read[name] = m
	}
	if m.Release != t.Release {
		return nil, fmt.Errorf("module %s: %s was built for Linux %s, expected %s: give the modules of the kernel that the guest boots", name, m.Source, m.Release, t.Release)
	}
	return m, nil
}

// Closure returns the named modules and those that they need, each after those
// that it needs. What is part of the kernel needs no module; what is only to be
// loaded before or after a module is in it where the kernel has it.
func (t *Tree) Closure(names ...string) ([]*Module, error) {
	c := closure{tree: t, state: map[string]int{}}
	for _, n := range names {
		if err := c.add(Name(n)); err != nil {
			return nil, err
		}
	}
	return c.modules, nil
}

type closure struct {
	tree    *Tree
	state   map[string]int // 1: being added, 2: added
	modules []*Module
}

func (c *closure) add(name string) error {
	if c.tree.Builtin(name) || c.state[name] != 0 {
		return nil
	}
	c.state[name] = 1
	m, err := c.tree.Module(name)
	if err != nil {
		return err
	}
	for _, n := range m.Needs {
		if !c.tree.Has(n) {
			return fmt.Errorf("module %s needs %s, which Linux %s has neither as a module nor built in: install what it belongs to, and run depmod", name, n, c.tree.Release)
		}
		if c.state[n] == 1 {
			return fmt.Errorf("module %s needs %s, which needs it in turn: no order to load them in", name, n)
		}
		if err := c.add(n); err != nil {
			return err
		}
	}
	if err := c.addSoft(m.Pre); err != nil {
		return err
	}
	c.modules, c.state[name] = append(c.modules, m), 2
	return c.addSoft(m.Post)
}

// addSoft adds what is named by a soft dependency. Two modules may name each
// other, so what is being added already is no error.
func (c *closure) addSoft(words []string) error {
	for _, word := range words {
		for _, name := range c.tree.resolve(word) {
			if err := c.add(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// resolve returns the modules that a name or an alias stands for.
func (t *Tree) resolve(word string) []string {
	if t.Has(word) {
		return []string{Name(word)}
	}
	var names []string
	for _, a := range t.aliases {
		if ok, err := path.Match(a.pattern, word); err == nil && ok && !slices.Contains(names, a.name) && t.Has(a.name) {
			names = append(names, a.name)
		}
	}
	return names
}
