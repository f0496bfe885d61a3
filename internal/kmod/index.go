package kmod

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Indexes returns the files of lib/modules/RELEASE by which modprobe finds the
// modules of a closure, and nothing else of the kernel: the text that busybox
// reads, and the binary form without which kmod finds nothing (kmod,
// libkmod/libkmod-index.c).
func (t *Tree) Indexes(modules []*Module) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo"} {
		b, err := os.ReadFile(filepath.Join(t.Dir, name))
		if os.IsNotExist(err) && name == "modules.builtin.modinfo" { // before Linux 5.2
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the modules of Linux %s: %w", t.Release, err)
		}
		files[name] = b
	}
	var dep, aliases, symbols, soft, builtin index
	for _, m := range slices.SortedFunc(slices.Values(modules), func(a, b *Module) int { return strings.Compare(a.Name, b.Name) }) {
		line := m.File + ":"
		for _, n := range loadedBefore(m, modules) {
			line += " " + n.File
		}
		dep.add(line, m.Name, line)
		for _, a := range m.Aliases {
			aliases.add("alias "+a+" "+m.Name, normal(a), m.Name)
		}
		for _, s := range m.Exports {
			symbols.add("alias symbol:"+s+" "+m.Name, "symbol:"+s, m.Name)
		}
		if line := softLine(m); line != "" {
			soft.add(line, "", "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.builtin)) {
		builtin.add("", name, "")
	}
	files["modules.dep"], files["modules.dep.bin"] = dep.text(), dep.binary()
	files["modules.alias"], files["modules.alias.bin"] = aliases.text(), aliases.binary()
	files["modules.symbols"], files["modules.symbols.bin"] = symbols.text(), symbols.binary()
	files["modules.builtin.bin"] = builtin.binary()
	files["modules.softdep"] = soft.text()
	return files, nil
}

// loadedBefore are all modules that one needs, directly or not, in the order of
// modules.dep: modprobe loads the last first.
func loadedBefore(m *Module, modules []*Module) []*Module {
	needed := map[string]bool{}
	var mark func(*Module)
	mark = func(m *Module) {
		for _, n := range m.Needs {
			i := slices.IndexFunc(modules, func(other *Module) bool { return other.Name == n })
			if i >= 0 && !needed[n] { // or it is part of the kernel
				needed[n] = true
				mark(modules[i])
			}
		}
	}
	mark(m)
	var all []*Module
	for _, other := range slices.Backward(modules) { // of which each comes after those that it needs
		if needed[other.Name] {
			all = append(all, other)
		}
	}
	return all
}

func softLine(m *Module) string {
	line := ""
	if len(m.Pre) > 0 {
		line += " pre: " + strings.Join(m.Pre, " ")
	}
	if len(m.Post) > 0 {
		line += " post: " + strings.Join(m.Post, " ")
	}
	if line != "" {
		line = "softdep " + m.Name + line
	}
	return line
}

// normal is an alias as the binary index has it: "_" for "-", but not in a
// bracket expression.
func normal(alias string) string {
	b := []byte(alias)
	bracket := false
	for i, c := range b {
		switch {
		case c == '[':
			bracket = true
		case c == ']':
			bracket = false
		case c == '-' && !bracket:
			b[i] = '_'
		}
	}
	return string(b)
}

// index collects the entries of one index in both forms.
type index struct {
	lines []string
	keys  map[string][]string
}

func (x *index) add(line, key, value string) {
	if x.keys == nil {
		x.keys = map[string][]string{}
	}
	x.lines = append(x.lines, line)
	x.keys[key] = append(x.keys[key], value)
}

func (x *index) text() []byte {
	var b bytes.Buffer
	for _, l := range x.lines {
		b.WriteString(l + "\n")
	}
	return b.Bytes()
}

// The binary form: a tree of prefixes. Numbers are big-endian; the offset of a
// node says in its upper bits what the node has.
const (
	indexMagic   = 0xB007F457
	indexVersion = 0x00020001

	hasPrefix   = 0x80000000
	hasValues   = 0x40000000
	hasChildren = 0x20000000
)

func (x *index) binary() []byte {
	b := binary.BigEndian.AppendUint32(nil, indexMagic)
	b = binary.BigEndian.AppendUint32(b, indexVersion)
	b = binary.BigEndian.AppendUint32(b, 0)
	b, root := x.node(b, slices.Sorted(maps.Keys(x.keys)), 0)
	binary.BigEndian.PutUint32(b[8:], root)
	return b
}

// node appends the node of sorted keys that agree in their first depth bytes,
// below its children, and returns its offset.
func (x *index) node(b []byte, keys []string, depth int) ([]byte, uint32) {
	prefix := ""
	if len(keys) > 0 {
		prefix = common(keys[0], keys[len(keys)-1])[depth:]
		depth += len(prefix)
	}
	var values []string
	if len(keys) > 0 && len(keys[0]) == depth {
		values, keys = x.keys[keys[0]], keys[1:]
	}
	var children []byte
	if len(keys) > 0 {
		first, last := keys[0][depth], keys[len(keys)-1][depth]
		children = append(children, first, last)
		for c := int(first); c <= int(last); c++ {
			n := 0
			for n < len(keys) && int(keys[n][depth]) == c {
				n++
			}
			var child uint32
			if n > 0 {
				b, child = x.node(b, keys[:n], depth+1)
			}
			keys = keys[n:]
			children = binary.BigEndian.AppendUint32(children, child)
		}
	}
	offset := uint32(len(b))
	if prefix != "" {
		b, offset = append(append(b, prefix...), 0), offset|hasPrefix
	}
	if children != nil {
		b, offset = append(b, children...), offset|hasChildren
	}
	if values != nil {
		b, offset = binary.BigEndian.AppendUint32(b, uint32(len(values))), offset|hasValues
		for i, v := range values {
			b = binary.BigEndian.AppendUint32(b, uint32(i)) // the priority
			b = append(append(b, v...), 0)
		}
	}
	return b, offset
}

// common is what both begin with.
func common(a, b string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return a[:i]
		}
	}
	return a[:min(len(a), len(b))]
}
