// Package kmodtest makes kernel modules and trees of them for tests: files that
// say of themselves what real ones say, and hold no code.
package kmodtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Release is that of the kernel which modules are for by default.
const Release = "6.12.1-test"

// Module is a module to make.
type Module struct {
	File    string // below lib/modules/RELEASE: "kernel/drivers/x.ko.xz" is compressed
	Release string // Release by default
	Depends string // names joined by ","
	Soft    string // "pre: a post: b"
	Aliases []string
	Exports []string
	Size    int // of what else is in it
}

// Write writes the module's file below dir.
func (m Module) Write(tb testing.TB, dir string) {
	tb.Helper()
	file := filepath.Join(dir, m.File)
	must(tb, os.MkdirAll(filepath.Dir(file), 0o755))
	data := m.elf()
	program := map[string][]string{".gz": {"gzip", "-nc"}, ".xz": {"xz", "-c", "--check=crc32"}, ".zst": {"zstd", "-qc"}}[filepath.Ext(file)]
	if program != nil {
		cmd := exec.Command(program[0], program[1:]...)
		cmd.Stdin = bytes.NewReader(data)
		var err error
		if data, err = cmd.Output(); err != nil {
			tb.Fatalf("%s: %v", program[0], err)
		}
	}
	must(tb, os.WriteFile(file, data, 0o644))
}

func (m Module) name() string {
	base, _, _ := strings.Cut(filepath.Base(m.File), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

func (m Module) elf() []byte {
	release := m.Release
	if release == "" {
		release = Release
	}
	info := []string{"license=GPL", "name=" + m.name(), "depends=" + m.Depends, "vermagic=" + release + " SMP preempt mod_unload modversions "}
	for _, a := range m.Aliases {
		info = append(info, "alias="+a)
	}
	if m.Soft != "" {
		info = append(info, "softdep="+m.Soft)
	}
	modinfo := []byte(strings.Join(info, "\x00") + "\x00")
	names, symbols := []byte{0}, make([]byte, 24)
	for _, e := range m.Exports {
		s := binary.LittleEndian.AppendUint32(nil, uint32(len(names)))
		s = append(s, byte(elf.STT_OBJECT), 0, 1, 0)
		symbols = append(append(symbols, s...), make([]byte, 16)...)
		names = append(append(names, "__ksymtab_"+e...), 0)
	}
	return file([]section{
		{name: ".modinfo", kind: elf.SHT_PROGBITS, data: modinfo},
		{name: ".text", kind: elf.SHT_PROGBITS, data: filler(m.Size)},
		{name: ".symtab", kind: elf.SHT_SYMTAB, data: symbols, link: 4, entry: 24},
		{name: ".strtab", kind: elf.SHT_STRTAB, data: names},
	})
}

// filler does not compress well, as code does not.
func filler(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

type section struct {
	name  string
	kind  elf.SectionType
	data  []byte
	link  uint32
	entry uint64
}

// file is an ELF object file with the sections.
func file(sections []section) []byte {
	names := []byte{0}
	var heads []elf.Section64
	heads = append(heads, elf.Section64{})
	body := make([]byte, 64)
	add := func(s section) {
		heads = append(heads, elf.Section64{Name: uint32(len(names)), Type: uint32(s.kind), Off: uint64(len(body)), Size: uint64(len(s.data)), Link: s.link, Entsize: s.entry, Addralign: 1})
		names = append(append(names, s.name...), 0)
		body = append(body, s.data...)
	}
	for _, s := range sections {
		add(s)
	}
	full := append(slices.Clone(names), ".shstrtab\x00"...)
	add(section{name: ".shstrtab", kind: elf.SHT_STRTAB, data: full})
	head := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Shoff: uint64(len(body)),
		Ehsize: 64, Shentsize: 64, Shnum: uint16(len(heads)), Shstrndx: uint16(len(heads) - 1),
	}
	copy(head.Ident[:], "\x7fELF\x02\x01\x01")
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, head) // a bytes.Buffer takes everything
	b.Write(body[64:])
	_ = binary.Write(&b, binary.LittleEndian, heads)
	return b.Bytes()
}

// Tree makes root/lib/modules/Release with the modules and the indexes of them,
// and returns it. Names in builtin are part of the kernel.
func Tree(tb testing.TB, root string, builtin []string, modules ...Module) string {
	tb.Helper()
	dir := filepath.Join(root, "lib/modules", Release)
	var dep, alias, built strings.Builder
	for _, m := range modules {
		m.Write(tb, dir)
		line := m.File + ":"
		for n := range strings.SplitSeq(m.Depends, ",") {
			for _, other := range modules {
				if n != "" && other.name() == strings.ReplaceAll(n, "-", "_") {
					line += " " + other.File
				}
			}
		}
		fmt.Fprintln(&dep, line)
		for _, a := range m.Aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.name())
		}
	}
	for _, b := range builtin {
		fmt.Fprintf(&built, "kernel/%s.ko\n", b)
	}
	must(tb, os.MkdirAll(dir, 0o755))
	for name, text := range map[string]string{"modules.dep": dep.String(), "modules.alias": alias.String(), "modules.builtin": built.String()} {
		must(tb, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return dir
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
