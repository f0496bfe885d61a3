package kernelconfig_test

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func parseConfig(t *testing.T, text string) *kernelconfig.Config {
	t.Helper()
	c, err := kernelconfig.ParseConfig(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEveryFamilyWithADriverInLinuxHasAFragment(t *testing.T) {
	for _, f := range qat.Families {
		host, err := kernelconfig.ByName("host/" + f.Name)
		if f.PFInTree == "" {
			if err == nil {
				t.Errorf("%s: Linux has no PF driver", host.Name)
			}
		} else if err != nil || len(host.Symbols) != 1 {
			t.Errorf("%s: %v, %+v", f.Name, err, host)
		} else if s := host.Symbols[0]; f.PFInTree != since(s) {
			t.Errorf("%s since %s, expected %s", host.Name, since(s), f.PFInTree)
		}
		if _, err := kernelconfig.ByName("guest/" + f.Name); (err == nil) != f.VFInTree {
			t.Errorf("%s: VF driver in Linux: %v, fragment: %v", f.Name, f.VFInTree, err)
		}
	}
}

func since(s kernelconfig.Symbol) string {
	if !s.Serves.IsZero() {
		return s.Serves.String()
	}
	return s.Since.String()
}

func TestSelection(t *testing.T) {
	vfio, gk := []edits.Profile{edits.ProfileVFIO}, []edits.Profile{edits.ProfileGuestKernel}
	for name, c := range map[string]struct {
		selection kernelconfig.Selection
		want      string // names; in brackets what is not required
	}{
		"a family on the host":     {kernelconfig.Selection{Side: "host", Families: []string{"c62x"}}, "host/common host/c62x"},
		"one that Linux lacks":     {kernelconfig.Selection{Side: "host", Families: []string{"d15xx"}}, "host/common host/vendor"},
		"both":                     {kernelconfig.Selection{Side: "host", Families: []string{"c62x", "c4xxx"}}, "host/common host/c62x host/vendor"},
		"the vendor's, for c62x":   {kernelconfig.Selection{Side: "host", Families: []string{"c62x"}, Vendor: true}, "host/common host/vendor"},
		"vfio needs no driver":     {kernelconfig.Selection{Side: "guest", Profiles: vfio, Families: []string{"c62x"}}, "guest/common guest/vfio"},
		"guest-kernel needs it":    {kernelconfig.Selection{Side: "guest", Profiles: gk, Families: []string{"c62x"}}, "guest/common guest/guest-kernel guest/c62x"},
		"Gen4 in a guest":          {kernelconfig.Selection{Side: "guest", Profiles: gk, Families: []string{"4xxx"}}, "guest/common guest/guest-kernel guest/vendor"},
		"a guest for anything":     {kernelconfig.Selection{Side: "guest"}, "guest/common [guest/vfio] [guest/guest-kernel] [guest/dh895xcc] [guest/c62x] [guest/c3xxx]"},
		"a profile for any family": {kernelconfig.Selection{Side: "guest", Profiles: gk}, "guest/common guest/guest-kernel [guest/dh895xcc] [guest/c62x] [guest/c3xxx]"},
	} {
		selected, err := kernelconfig.Select(c.selection)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []string
		for _, s := range selected {
			if s.Required {
				got = append(got, s.Name)
			} else {
				got = append(got, "["+s.Name+"]")
			}
		}
		if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestSelectionRefusesWhatItDoesNotKnow(t *testing.T) {
	vfio := []edits.Profile{edits.ProfileVFIO}
	for want, s := range map[string]kernelconfig.Selection{
		`side "node": expected host or guest`:              {Side: "node"},
		`QAT family "c63x": expected one of dh895xcc, c62`: {Side: "host", Families: []string{"c63x"}},
		`profile "kernel": expected "vfio"`:                {Side: "guest", Profiles: []edits.Profile{"kernel"}},
		`leave it out`:                                     {Side: "host", Profiles: vfio},
		`no QAT driver in profile vfio`:                    {Side: "guest", Profiles: vfio, Vendor: true},
	} {
		if _, err := kernelconfig.Select(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, expected %s", s, err, want)
		}
	}
}

func TestAFragmentGivesAReasonForEveryOption(t *testing.T) {
	const title = "# A title.\n\n"
	for _, c := range []struct{ name, text, want string }{
		{"guest/x", title + "# Why.\nCONFIG_A=y\n", ""},
		{"guest/x", title + "# Why.\n#: accept m y\n#: since 5.1, before part of B\nCONFIG_A=y\n", ""},
		{"guest/x", title + "# Why.\n# CONFIG_A is not set\n", ""},
		{"guest/x", title + "CONFIG_A=y\n", "line 3: A: expected a comment above it"},
		{"guest/x", title + "# Why.\n\nCONFIG_A=y\n", "A: expected a comment above it"},
		{"guest/x", title + "# Why.\nCONFIG_A=y\n# Why.\nCONFIG_A=m\n", "line 6: A is there twice"},
		{"guest/x", title + "# Why.\n#: accept y\nCONFIG_A=m\n", "expected m, the value of the line"},
		{"guest/x", title + "# Why.\n#: since six\nCONFIG_A=m\n", `kernel version "six"`},
		{"guest/x", title + "# Why.\n#: since 6.1, before B\nCONFIG_A=m\n", `expected "named OTHER"`},
		{"guest/x", title + "# Why.\n#: maybe\nCONFIG_A=m\n", "expected accept, since, serves or optional"},
		{"guest/x", title + "#: optional\n\n", `"#:" without an option`},
		{"guest/x", title + "A=y\n", `"A=y": expected a comment, CONFIG_NAME=value`},
		{"guest/x", "# Why.\nCONFIG_A=y\n", "begin with a comment and an empty line"},
		{"guest/x", "# A title.\n#: family c63x\n\n", `QAT family "c63x"`},
		{"guest/x", "# A title.\n#: profile none\n\n", `profile "none"`},
		{"guest/x", "# A title.\n#: host\n\n", "expected profile, family or vendor"},
		{"node/x", title, "begin with host/ or guest/"},
	} {
		_, err := kernelconfig.Parse(c.name, c.text)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, expected %q", c.text, err, c.want)
		}
	}
}

const subject = `# A title.

# Needed.
CONFIG_BOOL=y

# Loaded by name.
#: accept m y
CONFIG_DRIVER=m

# Never built in.
#: since 6.8
CONFIG_NEW_DRIVER=m

# Split.
#: since 6.6, before part of DRIVER
CONFIG_SPLIT=y

# Renamed.
#: since 6.2, before named OLD
CONFIG_RENAMED=y

# Forbidden.
# CONFIG_FORCE is not set

# The driver came before the device.
#: since 5.11
#: serves 6.4
CONFIG_SHARED=m

# Nice.
#: optional
CONFIG_NICE=y
`

func checkSubject(t *testing.T, config string, v kernelconfig.Version) map[string]kernelconfig.Result {
	t.Helper()
	f, err := kernelconfig.Parse("guest/subject", subject)
	if err != nil {
		t.Fatal(err)
	}
	c := parseConfig(t, config)
	if v.IsZero() {
		v = c.Version
	}
	all := make(map[string]kernelconfig.Result)
	for _, r := range kernelconfig.Check(c, v, []kernelconfig.Selected{{Fragment: f, Required: true}}) {
		all[r.Symbol] = r
	}
	return all
}

func TestCheckTellsHowAKernelHasAnOption(t *testing.T) {
	const old = "# Linux/x86 6.1.9-13-amd64 Kernel Configuration\n"
	const recent = "# Linux/x86 6.12.9 Kernel Configuration\n"
	for _, c := range []struct {
		config, symbol string
		state          kernelconfig.State
		failed         bool
		note           string
	}{
		{recent + "CONFIG_BOOL=y", "BOOL", "set", false, ""},
		{recent + "# CONFIG_BOOL is not set", "BOOL", "missing", true, "is off: Needed"},
		{recent + "CONFIG_A=y", "BOOL", "missing", true, "cannot be chosen: something that it depends on is off: Needed"},
		{recent + "CONFIG_DRIVER=m", "DRIVER", "module", false, ""},
		{recent + "CONFIG_DRIVER=y", "DRIVER", "set", false, ""},
		{recent + "CONFIG_NEW_DRIVER=y", "NEW_DRIVER", "set", true, "is y, must be m: Never built in"},
		{recent + "CONFIG_NEW_DRIVER=m", "NEW_DRIVER", "module", false, ""},
		{old + "CONFIG_A=y", "NEW_DRIVER", "impossible", true, "needs Linux 6.8, this is 6.1"},
		{old + "CONFIG_NEW_DRIVER=m", "NEW_DRIVER", "module", false, ""}, // ported back
		{old + "# CONFIG_NEW_DRIVER is not set", "NEW_DRIVER", "missing", true, "is off"},
		{"CONFIG_A=y", "NEW_DRIVER", "missing", true, "does not say of which version"},
		{"# Linux/x86_64 5.14.0-427.13.1.el9_4.x86_64 Kernel Configuration\nCONFIG_A=y", "NEW_DRIVER", "missing", true, "cannot be chosen"},
		{old + "CONFIG_DRIVER=m", "SPLIT", "module", false, "part of DRIVER before Linux 6.6"},
		{old + "CONFIG_A=y", "SPLIT", "missing", true, "part of DRIVER before Linux 6.6; cannot"},
		{recent + "CONFIG_DRIVER=m", "SPLIT", "missing", true, "cannot be chosen"},
		{old + "CONFIG_OLD=y", "RENAMED", "set", false, "called OLD before Linux 6.2"},
		{recent + "CONFIG_OLD=y", "RENAMED", "missing", true, "cannot be chosen"},
		{recent + "CONFIG_A=y", "FORCE", "off", false, ""},
		{recent + "# CONFIG_FORCE is not set", "FORCE", "off", false, ""},
		{recent + "CONFIG_FORCE=y", "FORCE", "set", true, "is y, must be n: Forbidden"},
		{old + "CONFIG_SHARED=m", "SHARED", "impossible", true, "needs Linux 6.4, this is 6.1"},
		{recent + "CONFIG_SHARED=m", "SHARED", "module", false, ""},
		{"# Linux/x86_64 5.14.21-150500.55.44-default Kernel Configuration\nCONFIG_SHARED=m", "SHARED", "module", false, ""},
		{recent + "CONFIG_A=y", "NICE", "missing", false, "cannot be chosen"},
	} {
		r := checkSubject(t, c.config, kernelconfig.Version{})[c.symbol]
		if r.State != c.state || r.Failed() != c.failed || !strings.Contains(r.Note, c.note) || (c.note == "") != (r.Note == "") {
			t.Errorf("%s in %q: %+v, expected %s, failed %v, %q", c.symbol, c.config, r, c.state, c.failed, c.note)
		}
	}
}

func TestAVersionThatIsGivenWins(t *testing.T) {
	r := checkSubject(t, "# Linux/x86 6.12.9 Kernel Configuration\nCONFIG_A=y", kernelconfig.Version{Major: 5, Minor: 10})
	if r["NEW_DRIVER"].State != kernelconfig.Impossible {
		t.Errorf("%+v", r["NEW_DRIVER"])
	}
}

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestConfigurationsAreRead(t *testing.T) {
	const text = "#\n# Linux/x86 6.1.0-18-amd64 Kernel Configuration\n#\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"x=y\"\n\n"
	for _, form := range []string{text, gzipped(t, text), strings.ReplaceAll(text, "\n", "\r\n")} {
		c, err := kernelconfig.ReadConfig(write(t, form))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"A": "y", "B": "m", "C": "n", "D": `"x=y"`, "E": "n"} {
			got, mentioned := c.Value(name)
			if got != want || mentioned != (name != "E") {
				t.Errorf("%s is %s, mentioned %v, expected %s", name, got, mentioned, want)
			}
		}
		if c.Version.String() != "6.1" || c.Ported {
			t.Errorf("version %s, ported %v", c.Version, c.Ported)
		}
	}
}

func TestWhatIsNoConfigurationIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":         {"", "no CONFIG_ line in it"},
		"comments":      {"# x\n", "no CONFIG_ line in it"},
		"another file":  {"root:x:0:0\n", `line 1 is "root:x:0:0"`},
		"truncated":     {gzipped(t, "CONFIG_A=y\n")[:20], "unexpected EOF"},
		"half a header": {"\x1f\x8b", "unpack gzip"},
		"a bomb":        {gzipped(t, strings.Repeat("\n", 17<<20)), "more than 16 MiB"},
		"binary":        {"\x7fELF\x02", "expected a comment or CONFIG_NAME=value"},
	} {
		file := write(t, c.text)
		if _, err := kernelconfig.ReadConfig(file); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, expected %s", name, err, c.want)
		}
	}
}

func TestAFragmentIsShownForARelease(t *testing.T) {
	f, err := kernelconfig.Parse("guest/subject", subject)
	if err != nil {
		t.Fatal(err)
	}
	old, recent := f.For(kernelconfig.Version{Major: 6, Minor: 1}), f.For(kernelconfig.Version{Major: 6, Minor: 12})
	if recent != subject {
		t.Errorf("expected the fragment as it is, got\n%s", recent)
	}
	lines := strings.Split(old, "\n")
	for _, want := range []string{"CONFIG_BOOL=y", "CONFIG_OLD=y", "# CONFIG_NEW_DRIVER needs Linux 6.8", "# part of CONFIG_DRIVER before Linux 6.6", "# CONFIG_SHARED needs Linux 6.4"} {
		if !slices.Contains(lines, want) {
			t.Errorf("expected %q in\n%s", want, old)
		}
	}
}

func TestVersions(t *testing.T) {
	for in, want := range map[string]string{"6.12": "6.12", "6.1.0-18-amd64": "6.1", "5.14.0-427.el9.x86_64": "5.14", "6.18-rc1": "6.18", "6.8+": "6.8"} {
		if v, err := kernelconfig.ParseVersion(in); err != nil || v.String() != want {
			t.Errorf("%s: %s, %v", in, v, err)
		}
	}
	for _, in := range []string{"", "6", "v6.1", "6.x", "6.1x", "99999.1"} {
		if v, err := kernelconfig.ParseVersion(in); err == nil {
			t.Errorf("%q: %s, expected an error", in, v)
		}
	}
}

func TestTheRunningKernelsConfigurationIsFound(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
	if _, err := kernelconfig.Running(root); err == nil || !strings.Contains(err.Error(), "/boot/config-6.1.0-18-amd64") {
		t.Errorf("%v: expected it to say where it looked", err)
	}
	put("boot/config-6.1.0-18-amd64", "CONFIG_A=y\n")
	put("boot/config-6.2.0", "CONFIG_A=y\n")
	if file, err := kernelconfig.Running(root); err != nil || file != filepath.Join(root, "boot/config-6.1.0-18-amd64") {
		t.Errorf("%s, %v", file, err)
	}
}

func TestReports(t *testing.T) {
	f, err := kernelconfig.Parse("guest/subject", subject)
	if err != nil {
		t.Fatal(err)
	}
	checked := kernelconfig.NewChecked("x.config", parseConfig(t, "CONFIG_BOOL=y\n# CONFIG_DRIVER is not set"), kernelconfig.Version{Major: 6, Minor: 12}, []kernelconfig.Selected{{Fragment: f, Required: true}})
	if checked.OK || checked.Err() == nil || !strings.Contains(checked.Err().Error(), "CONFIG_DRIVER, ") {
		t.Errorf("%v, %v", checked.OK, checked.Err())
	}
	for format, want := range map[output.Format]string{output.Table: "x.config, Linux 6.12", output.JSON: `"version": "6.12"`, output.YAML: "state: missing"} {
		var b bytes.Buffer
		if err := kernelconfig.WriteChecked(&b, format, checked); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%s: %v\n%s", format, err, b.String())
		}
	}
}
