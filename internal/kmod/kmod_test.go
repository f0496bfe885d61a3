package kmod_test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/kmod"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
)

func open(t *testing.T, builtin []string, modules ...kmodtest.Module) *kmod.Tree {
	t.Helper()
	tree, err := kmod.Open(kmodtest.Tree(t, t.TempDir(), builtin, modules...), kmodtest.Release)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func names(modules []*kmod.Module) []string {
	var all []string
	for _, m := range modules {
		all = append(all, m.Name)
	}
	return all
}

// qat is a driver as Linux has it.
var qat = []kmodtest.Module{
	{File: "kernel/qat_c62xvf.ko.xz", Depends: "intel_qat", Soft: "pre: crypto-intel_qat post: late absent", Aliases: []string{"pci:v00008086d000037C9sv*sd*bc*sc*i*"}},
	{File: "kernel/intel-qat.ko.zst", Depends: "authenc,crypto-engine", Aliases: []string{"crypto-intel_qat"}, Exports: []string{"adf_init", "adf_exit"}},
	{File: "kernel/crypto-engine.ko.gz", Depends: ""},
	{File: "kernel/late.ko"},
	{File: "kernel/other.ko", Depends: "late"},
}

func TestAClosureIsWhatIsNeededInTheOrderToLoadIt(t *testing.T) {
	got, err := open(t, []string{"authenc"}, qat...).Closure("qat-c62xvf", "authenc")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"crypto_engine", "intel_qat", "qat_c62xvf", "late"}, names(got)); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	m := got[1]
	if m.File != "kernel/intel-qat.ko" || m.Release != kmodtest.Release || !slices.Equal(m.Exports, []string{"adf_exit", "adf_init"}) {
		t.Errorf("intel_qat was read as %+v", m)
	}
	content, err := m.Content()
	if err != nil || !bytes.HasPrefix(content, []byte("\x7fELF")) || int64(len(content)) != m.Size {
		t.Errorf("its content is no ELF file of %d bytes: %v", m.Size, err)
	}
}

func TestWhatModulesDepSaysCountsToo(t *testing.T) {
	root := t.TempDir()
	dir := kmodtest.Tree(t, root, nil, kmodtest.Module{File: "a.ko"}, kmodtest.Module{File: "b.ko"})
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("a.ko: b.ko\nb.ko:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := kmod.Open(dir, kmodtest.Release)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tree.Closure("a")
	if err != nil || !slices.Equal(names(got), []string{"b", "a"}) {
		t.Errorf("got %v, %v", names(got), err)
	}
}

func TestATreeWithoutIndexesIsWalked(t *testing.T) {
	dir := kmodtest.Tree(t, t.TempDir(), nil, kmodtest.Module{File: "kernel/x.ko", Size: 1}, kmodtest.Module{File: "updates/x.ko.xz", Size: 2}, kmodtest.Module{File: "extra/x.ko", Size: 3})
	for _, name := range []string{"modules.dep", "modules.alias"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := kmod.Open(dir, kmodtest.Release)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := tree.Module("x"); err != nil || m.File != "updates/x.ko" {
		t.Errorf("got %+v, %v: expected the update", m, err)
	}
}

func TestWhatCannotWorkIsRefused(t *testing.T) {
	tests := map[string]struct {
		modules []kmodtest.Module
		says    string
	}{
		"not there":           {nil, "module x: Linux 6.12.1-test has none such"},
		"for another kernel":  {[]kmodtest.Module{{File: "x.ko", Release: "6.1.0-other"}}, "built for Linux 6.1.0-other, expected 6.12.1-test"},
		"needs what is not":   {[]kmodtest.Module{{File: "x.ko", Depends: "y"}}, "module x needs y, which Linux 6.12.1-test has neither"},
		"need for another":    {[]kmodtest.Module{{File: "x.ko", Depends: "y"}, {File: "y.ko", Release: "5"}}, "built for Linux 5, expected"},
		"need each other":     {[]kmodtest.Module{{File: "x.ko", Depends: "y"}, {File: "y.ko", Depends: "x"}}, "in turn"},
		"outside of the tree": {[]kmodtest.Module{{File: "../x.ko"}}, "expected a path below"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, nil, test.modules...).Closure("x")
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, expected %q", err, test.says)
			}
		})
	}
}

func TestWhatIsNoModuleIsRefused(t *testing.T) {
	for name, content := range map[string]string{"text": "hello", "cut": "\x7fELF\x02\x01", "empty": "", "cut.ko.xz": "\xfd7zXZ\x00\x00"} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := kmod.ReadModule(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAddedModuleReplacesTheKernels(t *testing.T) {
	tree := open(t, nil, kmodtest.Module{File: "kernel/x.ko", Depends: "gone"})
	dir := t.TempDir()
	kmodtest.Module{File: "x.ko"}.Write(t, dir)
	m, err := kmod.ReadModule(filepath.Join(dir, "x.ko"))
	if err != nil {
		t.Fatal(err)
	}
	tree.Add(m, "updates/x.ko")
	if got, err := tree.Closure("x"); err != nil || len(got) != 1 || got[0].File != "updates/x.ko" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTextIndexes(t *testing.T) {
	tree := open(t, []string{"authenc"}, qat...)
	modules, err := tree.Closure("qat_c62xvf", "other")
	if err != nil {
		t.Fatal(err)
	}
	files, err := tree.Indexes(modules)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules.dep":     "kernel/crypto-engine.ko:\nkernel/intel-qat.ko: kernel/crypto-engine.ko\nkernel/late.ko:\nkernel/other.ko: kernel/late.ko\nkernel/qat_c62xvf.ko: kernel/intel-qat.ko kernel/crypto-engine.ko\n",
		"modules.alias":   "alias crypto-intel_qat intel_qat\nalias pci:v00008086d000037C9sv*sd*bc*sc*i* qat_c62xvf\n",
		"modules.symbols": "alias symbol:adf_exit intel_qat\nalias symbol:adf_init intel_qat\n",
		"modules.softdep": "softdep qat_c62xvf pre: crypto-intel_qat post: late absent\n",
		"modules.builtin": "kernel/authenc.ko\n",
	} {
		if diff := cmp.Diff(want, string(files[name])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	again, err := tree.Indexes(modules)
	if err != nil || !maps.EqualFunc(files, again, bytes.Equal) {
		t.Errorf("the same modules have other indexes the second time: %v", err)
	}
}

// lookup finds a key in a binary index as libkmod does.
func lookup(t *testing.T, b []byte, key string) []string {
	t.Helper()
	if got := binary.BigEndian.Uint64(b); got != 0xB007F457_00020001 {
		t.Fatalf("the index begins with %#x", got)
	}
	node := binary.BigEndian.Uint32(b[8:])
	for {
		p := b[node&0x0fffffff:]
		if node&0x80000000 != 0 {
			prefix, rest, _ := bytes.Cut(p, []byte{0})
			if !strings.HasPrefix(key, string(prefix)) {
				return nil
			}
			key, p = key[len(prefix):], rest
		}
		var first, last byte
		var children []byte
		if node&0x20000000 != 0 {
			first, last = p[0], p[1]
			n := 4 * (int(last) - int(first) + 1)
			children, p = p[2:2+n], p[2+n:]
		}
		if key == "" {
			if node&0x40000000 == 0 {
				return nil
			}
			values := make([]string, binary.BigEndian.Uint32(p))
			p = p[4:]
			for i := range values {
				v, rest, _ := bytes.Cut(p[4:], []byte{0})
				values[i], p = string(v), rest
			}
			return values
		}
		if children == nil || key[0] < first || key[0] > last {
			return nil
		}
		if node = binary.BigEndian.Uint32(children[4*(key[0]-first):]); node == 0 {
			return nil
		}
		key = key[1:]
	}
}

func TestBinaryIndexesSayWhatTheTextSays(t *testing.T) {
	tree := open(t, []string{"authenc", "auth"}, append(qat, kmodtest.Module{File: "qat.ko", Aliases: []string{"crypto-intel_qat", "a-b[a-z]-*"}})...)
	modules, err := tree.Closure("qat_c62xvf", "other", "qat")
	if err != nil {
		t.Fatal(err)
	}
	files, err := tree.Indexes(modules)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		file, key string
		want      []string
	}{
		{"modules.dep.bin", "qat_c62xvf", []string{"kernel/qat_c62xvf.ko: kernel/intel-qat.ko kernel/crypto-engine.ko"}},
		{"modules.dep.bin", "qat", []string{"qat.ko:"}},
		{"modules.dep.bin", "late", []string{"kernel/late.ko:"}},
		{"modules.dep.bin", "qat_", nil},
		{"modules.dep.bin", "zzz", nil},
		{"modules.alias.bin", "crypto_intel_qat", []string{"intel_qat", "qat"}},
		{"modules.alias.bin", "a_b[a-z]_*", []string{"qat"}},
		{"modules.symbols.bin", "symbol:adf_init", []string{"intel_qat"}},
		{"modules.builtin.bin", "auth", []string{""}},
		{"modules.builtin.bin", "authenc", []string{""}},
		{"modules.builtin.bin", "authe", nil},
	} {
		if diff := cmp.Diff(test.want, lookup(t, files[test.file], test.key)); diff != "" {
			t.Errorf("%s, %q (-want +got):\n%s", test.file, test.key, diff)
		}
	}
}
