package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kata-qat/kata-qat/internal/profile"
)

func TestWithoutAFileTheDefaultsHold(t *testing.T) {
	c, err := Load(filepath.Join(t.TempDir(), "config.toml"), false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Errorf("(-default +got):\n%s", diff)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "config.toml"), true); err == nil {
		t.Error("a file that was named and is not there was taken for empty")
	}
}

func TestBadConfigurationsAreRefusedWithTheirPlace(t *testing.T) {
	for name, tc := range map[string]struct{ text, says string }{
		"unknown key":         {"standalone = true\nstandalon = true\n", `c.toml:2: unknown key "standalon"`},
		"unknown nested key":  {"[kubelet]\nsock = \"x\"\n", `c.toml:2: unknown key "kubelet.sock"`},
		"not TOML":            {"handlers = [\n", "c.toml:"},
		"wrong type":          {"standalone = \"yes\"\n", "c.toml:1"},
		"unknown profile":     {"profile = \"kernel\"\n", `profile "kernel": expected "vfio" or "guest-kernel"`},
		"size without sense":  {"memlock_allowance = \"much\"\n", `size "much": expected a number with a unit`},
		"negative size":       {"memlock_allowance = \"-1MiB\"\n", `size "-1MiB"`},
		"no handlers":         {"handlers = []\n", "handlers: expected at least one"},
		"bad pattern":         {"handlers = [\"kata[\"]\n", `"kata[" is no pattern`},
		"relative run_dir":    {"run_dir = \"run\"\n", `run_dir "run": expected an absolute directory`},
		"run_dir is the root": {"run_dir = \"/\"\n", "run_dir"},
		"timeout too long":    {"[kubelet]\ntimeout = \"1m\"\n", "kubelet.timeout 1m0s: expected more than 0 and at most 2s"},
		"bad section":         {"[conf]\nsection = \"a b\"\n", "[conf] section"},
		"unknown policy":      {"[device_plugin]\npolicy = \"random\"\n", `device_plugin.policy: policy "random": expected "balanced" or "packed"`},
		"relative plugin dir": {"[device_plugin]\ndir = \"plugins\"\n", `device_plugin.dir "plugins": expected`},
		"two who hand out":    {"standalone = true\n[device_plugin]\nenable = true\n", "device_plugin.enable and standalone are both true: expected one of them"},
		"too few processes":   {"[conf]\nprocesses = 0\n", "processes"},
		"metrics on a name":   {"[metrics]\nlisten = \"localhost:9812\"\n", `metrics.listen "localhost:9812": expected an IP address and a port`},
		"metrics on no port":  {"[metrics]\nlisten = \"127.0.0.1:0\"\n", "metrics.listen"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("c.toml", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected one line with %q", err, tc.says)
			}
		})
	}
}

func TestProfileOfAHandler(t *testing.T) {
	c, err := Parse("c.toml", []byte(`
handlers = ["kata", "kata-*"]
[profiles]
"kata-gk*" = "guest-kernel"
"kata-gk-vfio" = "vfio"
`))
	if err != nil {
		t.Fatal(err)
	}
	for handler, want := range map[string]profile.Profile{
		"kata": profile.VFIO, "kata-qat": profile.VFIO, "kata-gk-1": profile.GuestKernel, "kata-gk-vfio": profile.VFIO,
		"runc": "", "": "", "katana": "", "my-kata": "",
	} {
		got, ok := c.ProfileOf(handler)
		if got != want || ok != (want != "") {
			t.Errorf("handler %q: profile %q, %v, expected %q", handler, got, ok, want)
		}
	}
}

var example = regexp.MustCompile("(?s)```toml\n(.*?)```")

// The documentation has every key, and its example is the default.
func TestEveryKeyIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	text := example.FindStringSubmatch(string(b))
	if text == nil {
		t.Fatal("docs/configuration.md has no example")
	}
	c, err := Parse("docs/configuration.md", []byte(text[1]))
	if err != nil {
		t.Fatal(err)
	}
	c.Profiles = nil
	if diff := cmp.Diff(Default(), c, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the documented example is not the default (-default +documented):\n%s", diff)
	}
	for _, key := range keys("", reflect.TypeOf(*c)) {
		if !regexp.MustCompile(`(?m)^(# )?` + key).MatchString(text[1]) {
			t.Errorf("docs/configuration.md has nothing that matches %s", key)
		}
	}
}

// keys are patterns of the TOML keys and tables of a struct, those of embedded
// ones included. What is within one line's inline table is not looked for.
func keys(table string, typ reflect.Type) []string {
	var out []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		tag, ok := f.Tag.Lookup("toml")
		path := strings.TrimPrefix(table+"."+tag, ".")
		switch {
		case f.Anonymous:
			out = append(out, keys(table, f.Type)...)
		case !ok:
		case f.Type.Kind() == reflect.Struct && f.Type.Name() != "Match":
			out = append(append(out, `\[`+regexp.QuoteMeta(path)+`\]`), keys(path, f.Type)...)
		case f.Type.Kind() == reflect.Map:
			out = append(out, `\[`+regexp.QuoteMeta(path)+`\]`)
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			out = append(append(out, `\[\[`+regexp.QuoteMeta(path)+`\]\]`), keys(path, f.Type.Elem())...)
		default:
			out = append(out, tag+" = ")
		}
	}
	return out
}
