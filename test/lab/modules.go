package lab

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/cpio"
)

// modules are those of a kernel, by name with "_" for every "-".
type modules struct {
	root    string // the directory that holds lib/modules
	release string
	files   map[string]module
	alias   []string // the lines of modules.alias
	builtin map[string]bool
}

type module struct {
	file  string   // below lib/modules/<release>
	needs []string // files, too
}

func readModules(root, release string) (modules, error) {
	m := modules{root: root, release: release, files: map[string]module{}, builtin: map[string]bool{}}
	dep, err := os.ReadFile(m.path("modules.dep"))
	if err != nil {
		return m, fmt.Errorf("read the modules of Linux %s: %w", release, err)
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		m.files[moduleName(file)] = module{file, strings.Fields(needs)}
	}
	alias, err := os.ReadFile(m.path("modules.alias"))
	if err != nil {
		return m, fmt.Errorf("read the modules of Linux %s: %w", release, err)
	}
	m.alias = slices.Collect(strings.Lines(string(alias)))
	builtin, err := os.ReadFile(m.path("modules.builtin"))
	if err != nil {
		return m, fmt.Errorf("read the modules of Linux %s: %w", release, err)
	}
	for line := range strings.Lines(string(builtin)) {
		m.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	return m, nil
}

func (m *modules) path(name string) string {
	return filepath.Join(m.root, "lib/modules", m.release, name)
}

// moduleName is the name of the module in a file, or of a module that may be
// spelt with either character.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// add puts the named modules and those that they need into the archive, with
// the indexes that modprobe reads, cut down to them. Parameters may follow a name.
func (m *modules) add(a *cpio.Writer, names []string) error {
	chosen := map[string]module{}
	var choose func(name string) error
	choose = func(name string) error {
		name = moduleName(name)
		if _, ok := chosen[name]; ok || m.builtin[name] {
			return nil
		}
		mod, ok := m.files[name]
		if !ok {
			return fmt.Errorf("module %s: Linux %s has none such", name, m.release)
		}
		chosen[name] = mod
		for _, n := range mod.needs {
			if err := choose(n); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range names {
		fields := strings.Fields(n)
		if len(fields) == 0 {
			return fmt.Errorf("module %q: expected a name", n)
		}
		if err := choose(fields[0]); err != nil {
			return err
		}
	}
	dir := path.Join("/lib/modules", m.release)
	var dep, alias strings.Builder
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		mod := chosen[name]
		a.File(path.Join(dir, mod.file), m.path(mod.file))
		fmt.Fprintf(&dep, "%s: %s\n", mod.file, strings.Join(mod.needs, " "))
	}
	for _, line := range m.alias {
		if f := strings.Fields(line); len(f) == 3 {
			if _, ok := chosen[moduleName(f[2])]; ok {
				alias.WriteString(line)
			}
		}
	}
	a.Bytes(path.Join(dir, "modules.dep"), 0o644, dep.String())
	a.Bytes(path.Join(dir, "modules.alias"), 0o644, alias.String())
	a.File(path.Join(dir, "modules.builtin"), m.path("modules.builtin"))
	return a.Err()
}
