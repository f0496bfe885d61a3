package kmod

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/compression"
)

// maxModule bounds what is read of a module; with its debugging information one
// has some ten MiB.
const maxModule = 512 << 20

// Module is one kernel module.
type Module struct {
	Name    string // with "_" for every "-", as the kernel knows it
	File    string // below lib/modules/RELEASE, as it is called without compression
	Source  string // on this machine
	Size    int64  // without compression
	SHA256  string // without compression, in hexadecimal
	Release string // of the kernel that it was built for
	Aliases []string
	Exports []string // symbols that other modules can use
	// Needs are the names of the modules that it cannot be loaded without; they
	// may be built into the kernel.
	Needs []string
	// Pre and Post are loaded before and after it where they are there: names or
	// aliases (modprobe.d(5), softdep).
	Pre, Post []string
}

// Name is the name of the module in a file, or of a module that may be spelt
// with either character.
func Name(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(plainName(path.Base(file)), ".ko"), "-", "_")
}

// plainName is the name of a module's file without the ending of a compression.
func plainName(file string) string {
	for _, ending := range []string{".gz", ".xz", ".zst"} {
		if name, ok := strings.CutSuffix(file, ending); ok {
			return name
		}
	}
	return file
}

// Content returns the module without compression.
func (m *Module) Content() ([]byte, error) { return compression.ReadFile(m.Source, maxModule) }

// ReadModule reads a module that perhaps is compressed. File is left empty.
func ReadModule(source string) (*Module, error) {
	m := &Module{Source: source, Name: Name(source)}
	content, err := m.Content()
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w: expected an ELF file", source, err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("read module %s: no section .modinfo in it: expected a kernel module", source)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", source, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if key, value, ok := strings.Cut(string(field), "="); ok {
			m.set(key, value)
		}
	}
	m.Exports, err = exports(f)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", source, err)
	}
	sum := sha256.Sum256(content)
	m.Size, m.SHA256 = int64(len(content)), hex.EncodeToString(sum[:])
	return m, nil
}

func (m *Module) set(key, value string) {
	switch key {
	case "name":
		m.Name = Name(value)
	case "vermagic":
		m.Release, _, _ = strings.Cut(value, " ")
	case "alias":
		m.Aliases = append(m.Aliases, value)
	case "depends":
		for name := range strings.SplitSeq(value, ",") {
			if name != "" {
				m.Needs = append(m.Needs, Name(name))
			}
		}
	case "softdep":
		list := &m.Pre
		for _, word := range strings.Fields(value) {
			switch word {
			case "pre:":
				list = &m.Pre
			case "post:":
				list = &m.Post
			default:
				*list = append(*list, word)
			}
		}
	}
}

// exports are the symbols that a module exports, which each have an entry in a
// table whose name says so (Linux, include/linux/export-internal.h).
func exports(f *elf.File) ([]string, error) {
	symbols, err := f.Symbols()
	if err != nil {
		return nil, fmt.Errorf("symbols: %w", err)
	}
	var all []string
	for _, s := range symbols {
		if name, ok := strings.CutPrefix(s.Name, "__ksymtab_"); ok && s.Section != elf.SHN_UNDEF {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
