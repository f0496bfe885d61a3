package kernelconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A kernel tree as far as its options go.
var kernelFiles = map[string]string{
	"Makefile":  "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 9\n",
	mergeScript: "exit 1\n",
	"Kconfig": `mainmenu "Linux"
source "arch/$(SRCARCH)/Kconfig"
source "drivers/Kconfig"
`,
	"arch/x86/Kconfig": `config X86
	def_bool y
config 64BIT
	bool "64-bit kernel" if "$(ARCH)" = "x86"
	help
	  A text that looks like options:

	  config NO_OPTION
	    depends on NOTHING
config MACRO
	bool "Needs a compiler"
	depends on $(cc-option,-mfoo(bar))
`,
	"drivers/Kconfig": `menu "Devices"
	depends on HAS_IO
config SELECTED
	tristate
config BUS
	bool "Bus"
if BUS && \
   !BROKEN
config DRIVER
	tristate "Driver"
	depends on CORE
	depends on (ARM || RISCV) || BUS
	select SELECTED
config ANY
	tristate "Any of two"
	depends on ARM || RISCV
config EXACT
	bool "Exact"
	depends on CORE=y # not m
endif
choice
	prompt "Which"
config FIRST
	bool "First"
config SECOND
	bool "Second"
endchoice
config HIDDEN
	bool "Hidden" if EXPERT
comment "A comment"
	depends on NOTHING
endmenu
config TWICE
	bool "Here"
	depends on ARM
config TWICE
	bool "And there"
	depends on RISCV
`,
}

func kernelSource(t *testing.T, change map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, files := range []map[string]string{kernelFiles, change} {
		for name, text := range files {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestWhyAnOptionWasLost(t *testing.T) {
	tree, err := openTree(kernelSource(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ config, name, wanted, want string }{
		{"CONFIG_HAS_IO=y\nCONFIG_BUS=y", "DRIVER", "m", "it depends on CORE, which is off (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y", "DRIVER", "m", "it depends on BUS, which is off, CORE, which is off, ((ARM || RISCV) || BUS) (drivers/Kconfig)"},
		{"CONFIG_BUS=y\nCONFIG_CORE=y", "DRIVER", "m", "it depends on HAS_IO, which is off (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y\nCONFIG_BUS=y\nCONFIG_BROKEN=y\nCONFIG_CORE=y", "DRIVER", "m", "it depends on !BROKEN (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y\nCONFIG_BUS=y\nCONFIG_CORE=m\nCONFIG_DRIVER=m", "DRIVER", "y", "it depends on CORE, which is m (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y\nCONFIG_BUS=y", "ANY", "y", "it depends on (ARM || RISCV) (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y\nCONFIG_BUS=y\nCONFIG_CORE=m", "EXACT", "y", "it depends on CORE=y (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y", "HIDDEN", "y", "it depends on EXPERT, which is off (drivers/Kconfig)"},
		{"CONFIG_HAS_IO=y\nCONFIG_FIRST=y", "SECOND", "y", "another of the same choice is set"},
		{"CONFIG_HAS_IO=y", "SELECTED", "m", "it cannot be set: other options select it"},
		{"CONFIG_HAS_IO=y\nCONFIG_BUS=y", "BUS", "n", "another option selects it"},
		{"CONFIG_A=y", "TWICE", "y", "it depends on ARM, which is off (drivers/Kconfig); or it depends on RISCV, which is off (drivers/Kconfig)"},
		{"CONFIG_RISCV=y", "TWICE", "y", "another option or the base decides it"},
		{"CONFIG_A=y", "MACRO", "y", "another option or the base decides it"},
		{"CONFIG_A=y", "NO_OPTION", "y", "this kernel has no such option"},
	} {
		config, err := ParseConfig(strings.NewReader(c.config))
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.options.explain(c.name, c.wanted, config); got != c.want {
			t.Errorf("%s=%s with %q:\n%s\nexpected\n%s", c.name, c.wanted, c.config, got, c.want)
		}
	}
}

func TestWhatIsNoKernelTreeIsRefused(t *testing.T) {
	for want, change := range map[string]map[string]string{
		"expected VERSION and PATCHLEVEL":                         {"Makefile": "all:\n"},
		"drivers/Kconfig: endif without its beginning":            {"drivers/Kconfig": "menu \"x\"\nendif\n"},
		"drivers/Kconfig sources itself":                          {"drivers/Kconfig": "source \"drivers/Kconfig\"\n"},
		"no such file or directory":                               {"drivers/Kconfig": "source \"gone/Kconfig\"\n"},
		"drivers/Kconfig: expected an endmenu before its end":     {"drivers/Kconfig": "menu \"x\"\n"},
		`source "../outside": expected a file in the kernel tree`: {"Kconfig": "source \"../outside\"\n"},
	} {
		if _, err := openTree(kernelSource(t, change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: expected %s", err, want)
		}
	}
	empty := t.TempDir()
	if _, err := openTree(empty); err == nil || !strings.Contains(err.Error(), "expected the directory of a kernel's source") {
		t.Errorf("%v", err)
	}
}

func TestWhatATreeLacksIsRefusedBeforeAnythingIsDone(t *testing.T) {
	f, err := Parse("host/x", "# A title.\n\n# Why.\n#: since 6.8\nCONFIG_NEW=m\n\n# Why.\n#: optional\nCONFIG_NICE=y\n\n# Why.\n#: since 5.11\n#: serves 6.4\nCONFIG_BUS=y\n")
	if err != nil {
		t.Fatal(err)
	}
	output := filepath.Join(t.TempDir(), "build")
	m := Merge{Source: kernelSource(t, nil), Output: output, Target: "defconfig", Fragments: []Selected{{f, true}}}
	_, err = m.Run(t.Context())
	want := "merge host/x: CONFIG_NEW is impossible in Linux 6.1: it came with Linux 6.8\n" +
		"merge host/x: CONFIG_BUS is impossible in Linux 6.1: its driver knows the device since Linux 6.4"
	if err == nil || err.Error() != want {
		t.Errorf("%v\nexpected\n%s", err, want)
	}
	if _, err := os.Stat(output); !os.IsNotExist(err) {
		t.Errorf("%v: expected that nothing was made", err)
	}
}

func TestMergeRefusesWhatCannotWork(t *testing.T) {
	source := kernelSource(t, nil)
	extra := filepath.Join(source, "extra.config")
	if err := os.WriteFile(extra, []byte("CONFIG_BUS=y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, m := range map[string]Merge{
		"is the kernel tree: name another":                      {Output: source, Target: "defconfig", Extra: []string{extra}},
		"there is no option to merge":                           {Target: "defconfig"},
		"expected one of a base file and a make target":         {Extra: []string{extra}},
		`make target "clean"`:                                   {Target: "clean", Extra: []string{extra}},
		"read base config " + source + "/Makefile":              {Base: source + "/Makefile", Extra: []string{extra}},
		`/Makefile, line 1: "VERSION = 6": expected a comment`:  {Target: "defconfig", Extra: []string{source + "/Makefile"}},
		"configure kernel tree " + source + ": make defconfig:": {Target: "defconfig", Extra: []string{extra}},
	} {
		m.Source = source
		if m.Output == "" {
			m.Output = t.TempDir()
		}
		if _, err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nexpected %s", err, want)
		}
	}
}
