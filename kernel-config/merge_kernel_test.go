//go:build kernel

package kernelconfig_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
)

var releases = []string{"6.1", "6.12"}

// kernelTree is a kernel's source, from test/kernel/setup.sh.
func kernelTree(t *testing.T, release string) string {
	t.Helper()
	cache := os.Getenv("KATA_QAT_KERNELS")
	if cache == "" {
		cache = "../build/kernel"
	}
	dir, err := filepath.Abs(filepath.Join(cache, "linux-"+release))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("%v: run test/kernel/setup.sh", err)
	}
	return dir
}

// use is a selection and the release that the family's driver needs.
type use struct {
	name      string
	selection kernelconfig.Selection
	since     string // impossible before
}

// together are what kernels for all profiles and families take. What a release
// does not have is not required, so it is skipped.
func together() []use {
	return []use{
		{"host", kernelconfig.Selection{Side: kernelconfig.Host}, ""},
		{"guest", kernelconfig.Selection{Side: kernelconfig.Guest}, ""},
	}
}

// uses are all profiles and families, without those whose fragments are the same.
func uses(t *testing.T) []use {
	t.Helper()
	all := []use{
		{"host vendor drivers", kernelconfig.Selection{Side: kernelconfig.Host, Vendor: true}, ""},
		{"guest vfio", kernelconfig.Selection{Side: kernelconfig.Guest, Profiles: []edits.Profile{edits.ProfileVFIO}}, ""},
	}
	for _, f := range qat.Families {
		all = append(all,
			use{"host " + f.Name, kernelconfig.Selection{Side: kernelconfig.Host, Families: []string{f.Name}}, f.PFInTree},
			use{"guest-kernel " + f.Name, kernelconfig.Selection{Side: kernelconfig.Guest, Profiles: []edits.Profile{edits.ProfileGuestKernel}, Families: []string{f.Name}}, ""})
	}
	seen := make(map[string]bool)
	var different []use
	for _, u := range all {
		var key string
		for _, f := range choose(t, u.selection) {
			key += f.Name + " "
		}
		if !seen[key] {
			seen[key], different = true, append(different, u)
		}
	}
	return different
}

func choose(t *testing.T, s kernelconfig.Selection) []kernelconfig.Selected {
	t.Helper()
	selected, err := kernelconfig.Select(s)
	if err != nil {
		t.Fatal(err)
	}
	return selected
}

func version(t *testing.T, s string) kernelconfig.Version {
	t.Helper()
	v, err := kernelconfig.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Every profile and family, over a base of Kata's kind and over the kernel's
// default, in two releases.
func TestAllFragmentsSurvive(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			tree := kernelTree(t, release)
			build := t.TempDir()
			defconfig := makeDefconfig(t, tree, build)
			// A fragment has to bring what it needs, so each stands alone. All share
			// one directory, in which the kernel's own tools are built once.
			for base, m := range map[string]kernelconfig.Merge{
				"Kata-like":        {Base: "testdata/kata-like.config", Minimal: true},
				"x86_64_defconfig": {Base: defconfig},
			} {
				all := uses(t)
				if !m.Minimal {
					all = append(all, together()...)
				}
				for _, u := range all {
					t.Run(base+"/"+u.name, func(t *testing.T) {
						m.Source, m.Output, m.Fragments = tree, build, choose(t, u.selection)
						if u.name == "guest" {
							// As provision guest builds a kernel from its source.
							m.Extra = []string{"../provision/guest/kata.config"}
						}
						merged, err := m.Run(t.Context())
						if u.since != "" && version(t, u.since).Compare(version(t, release)) > 0 {
							if err == nil || !strings.Contains(err.Error(), "Linux "+u.since) {
								t.Errorf("%v: expected it to be impossible before Linux %s", err, u.since)
							}
							return
						}
						if err != nil {
							t.Fatal(err)
						}
						checkAgain(t, merged.Config, m.Fragments, merged.Symbols)
					})
				}
			}
		})
	}
}

func makeDefconfig(t *testing.T, tree, build string) string {
	t.Helper()
	m := kernelconfig.Merge{Source: tree, Output: build, Target: "x86_64_defconfig", Extra: []string{write(t, "CONFIG_PCI=y\n")}}
	merged, err := m.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defconfig := filepath.Join(t.TempDir(), "defconfig")
	if err := os.Rename(merged.Config, defconfig); err != nil {
		t.Fatal(err)
	}
	return defconfig
}

// checkAgain reads the result as check would, which knows versions and no tree:
// both have to say the same.
func checkAgain(t *testing.T, file string, fragments []kernelconfig.Selected, merged []kernelconfig.Result) {
	t.Helper()
	c, err := kernelconfig.ReadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	states := make(map[string]kernelconfig.State)
	for _, r := range merged {
		states[r.Fragment+" "+r.Symbol] = r.State
	}
	for _, r := range kernelconfig.Check(c, c.Version, fragments) {
		if want := states[r.Fragment+" "+r.Symbol]; r.State != want || !r.OK && r.State != kernelconfig.Impossible {
			t.Errorf("%+v: expected %s", r, want)
		}
	}
}

func TestALostOptionIsNamedWithItsReason(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			tree, build := kernelTree(t, release), t.TempDir()
			const before = "# an earlier configuration\n"
			if err := os.WriteFile(filepath.Join(build, ".config"), []byte(before), 0o644); err != nil {
				t.Fatal(err)
			}
			bare := write(t, "CONFIG_64BIT=y\nCONFIG_MODULES=y\nCONFIG_CRYPTO=y\nCONFIG_CRYPTO_HW=y\n# CONFIG_PCI is not set\n")
			qatWithoutPCI := write(t, "CONFIG_CRYPTO_DEV_QAT_C62XVF=m\nCONFIG_VFIO_PCI=m\nCONFIG_NO_SUCH_OPTION=y\nCONFIG_CRYPTO_DEV_QAT=m\n")
			m := kernelconfig.Merge{Source: tree, Output: build, Base: bare, Minimal: true, Extra: []string{qatWithoutPCI}}
			_, err := m.Run(t.Context())
			if err == nil {
				t.Fatal("expected an error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != 4 {
				t.Errorf("%d lines, expected one for each option:\n%v", len(lines), err)
			}
			for i, want := range []string{
				"CONFIG_CRYPTO_DEV_QAT_C62XVF did not survive: it is n, expected m or y: it depends on PCI, which is off",
				"CONFIG_VFIO_PCI did not survive: it is n, expected m or y: it depends on VFIO, which is off, PCI, which is off",
				"CONFIG_NO_SUCH_OPTION did not survive: it is n, expected y: this kernel has no such option",
				"CONFIG_CRYPTO_DEV_QAT did not survive: it is n, expected m or y: it cannot be set: other options select it",
			} {
				if i < len(lines) && !strings.Contains(lines[i], want) {
					t.Errorf("%s\nexpected it to say: %s", lines[i], want)
				}
			}
			if now, err := os.ReadFile(filepath.Join(build, ".config")); err != nil || string(now) != before {
				t.Errorf("%q, %v: expected the earlier configuration to stay", now, err)
			}
			if left, _ := filepath.Glob(filepath.Join(build, ".*kata-qat*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// What the base has built in, and may have, is not made a module; what must be
// one becomes one.
func TestMergeDemotesOnlyWhatMustBeAModule(t *testing.T) {
	base := write(t, "CONFIG_PCI=y\nCONFIG_MODULES=y\nCONFIG_CRYPTO=y\nCONFIG_CRYPTO_HW=y\nCONFIG_VFIO=y\nCONFIG_VFIO_PCI=y\nCONFIG_CRYPTO_DEV_QAT_C62X=y\n")
	m := kernelconfig.Merge{Source: kernelTree(t, "6.12"), Output: t.TempDir(), Base: base,
		Fragments: choose(t, kernelconfig.Selection{Side: kernelconfig.Host, Families: []string{"c62x"}})}
	merged, err := m.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := kernelconfig.ReadConfig(merged.Config)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"VFIO": "y", "VFIO_PCI": "y", "CRYPTO_DEV_QAT_C62X": "m"} {
		if got, _ := c.Value(name); got != want {
			t.Errorf("%s is %s, expected %s", name, got, want)
		}
	}
}

// A release says which options it has: the fragments say the same.
func TestFragmentsKnowWhichReleaseHasWhat(t *testing.T) {
	for _, release := range releases {
		known := options(t, kernelTree(t, release))
		for _, f := range kernelconfig.Fragments() {
			for _, s := range f.Symbols {
				there := s.Since.Compare(version(t, release)) <= 0
				if known[s.Name] != there {
					t.Errorf("%s: %s since %s: in Linux %s it is there: %v", f.Name, s.Name, s.Since, release, known[s.Name])
				}
			}
		}
	}
}

// options are the names that any Kconfig file of a tree has.
func options(t *testing.T, tree string) map[string]bool {
	t.Helper()
	known := make(map[string]bool)
	err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasPrefix(e.Name(), "Kconfig") || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		for line := range strings.Lines(string(text)) {
			if words := strings.Fields(line); len(words) == 2 && (words[0] == "config" || words[0] == "menuconfig") {
				known[words[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}
