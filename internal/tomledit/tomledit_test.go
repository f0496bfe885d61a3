package tomledit

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = `# containerd
version = 2   # schema
imports = [
  "/a/*.toml", # ours
]

[plugins]
  [plugins."io.containerd.nri.v1.nri"]
    disable = true # off
    note = "]"
  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]
    runtime_type = "x"
    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata.options]
      ConfigPath = "y"
  # runc's
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "z"
`

func parse(t *testing.T, text string) *Document {
	t.Helper()
	d, err := Parse("config.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAnEditTouchesNothingElse(t *testing.T) {
	const cri = "io.containerd.grpc.v1.cri"
	for name, tc := range map[string]struct {
		text     string
		edit     func(*Document) error
		old, new string
	}{
		"a value":                   {sample, func(d *Document) error { return d.Set("false", "plugins", "io.containerd.nri.v1.nri", "disable") }, "disable = true # off", "disable = false # off"},
		"a new key of a table":      {sample, func(d *Document) error { return d.Set("1", "plugins", "io.containerd.nri.v1.nri", "n") }, "v1.nri\"]\n", "v1.nri\"]\n    n = 1\n"},
		"a new key of the root":     {sample, func(d *Document) error { return d.Set("1", "n") }, "ours\n]\n", "ours\n]\nn = 1\n"},
		"an element of many lines":  {sample, func(d *Document) error { return d.Add(`"/b"`, "imports") }, `"/a/*.toml", # ours`, `"/a/*.toml", "/b", # ours`},
		"an element of none":        {"a = [ ] # x\n", func(d *Document) error { return d.Add(`"/b"`, "a") }, "[ ]", `["/b" ]`},
		"a missing array":           {"version = 3", func(d *Document) error { return d.Add(`"/b"`, "imports") }, "version = 3", "version = 3\nimports = [\"/b\"]\n"},
		"an empty document":         {"", func(d *Document) error { return d.Set("3", "version") }, "", "version = 3\n"},
		"only a table":              {"[a]\n", func(d *Document) error { return d.Set("3", "version") }, "", "version = 3\n"},
		"a table that is not there": {"[a]\n", func(d *Document) error { return d.Set("3", "b.c", "x") }, "[a]\n", "[a]\n\n[\"b.c\"]\nx = 3\n"},
		"a table away": {sample, func(d *Document) error { return d.Remove("plugins", cri, "containerd", "runtimes", "kata") },
			"  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\n    runtime_type = \"x\"\n    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata.options]\n      ConfigPath = \"y\"\n", ""},
		"CRLF": {"a = 1\r\n[b]\r\nc = 2\r\n", func(d *Document) error { return d.Set("3", "b", "c") }, "c = 2", "c = 3"},
	} {
		t.Run(name, func(t *testing.T) {
			d := parse(t, tc.text)
			if err := tc.edit(d); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Replace(tc.text, tc.old, tc.new, 1), string(d.Bytes())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatCannotBeEditedIsRefusedAndLeft(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		edit func(*Document) error
		says string
	}{
		"inline table":       {"a = { b = { c = 1 } }\n", func(d *Document) error { return d.Remove("a", "b") }, "config.toml:1: a.b is not written as a table"},
		"dotted keys":        {"x = 1\na.b.c = 1\n", func(d *Document) error { return d.Remove("a", "b") }, "config.toml:2: a.b is not"},
		"closed by a dotted": {"[t]\na.b.c = 1\n", func(d *Document) error { return d.Set("2", "t", "a", "b", "d") }, "by hand"},
		"no array":           {"a = 1\n", func(d *Document) error { return d.Add("2", "a") }, "config.toml:1: a is no array"},
		"a bad value":        {"a = 1\n", func(d *Document) error { return d.Set("[", "b") }, "by hand"},
	} {
		t.Run(name, func(t *testing.T) {
			d := parse(t, tc.text)
			err := tc.edit(d)
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected one line with %q", err, tc.says)
			}
			if string(d.Bytes()) != tc.text {
				t.Errorf("the document became %q", d.Bytes())
			}
		})
	}
}

func TestReadingADocument(t *testing.T) {
	d := parse(t, sample)
	if diff := cmp.Diff([]string{"/a/*.toml"}, d.Strings("imports")); diff != "" {
		t.Error(diff)
	}
	if v, _ := d.Get("plugins", "io.containerd.nri.v1.nri", "disable"); v != true {
		t.Errorf("disable is %v", v)
	}
	if _, ok := d.Get("version", "x"); ok {
		t.Error("a number has a key")
	}
	if n := d.Line("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes", "runc"); n != 16 {
		t.Errorf("runc is in line %d", n)
	}
	if _, err := Parse("bad.toml", []byte("a = 1\na = 2\n")); err == nil || !strings.Contains(err.Error(), "bad.toml") {
		t.Errorf("a key that is there twice: %v", err)
	}
}

func FuzzAStringIsReadAsItWasWritten(f *testing.F) {
	for _, s := range []string{"", `a"b\`, "\x00\x7f\n", "é💾"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "?")
		d, err := Parse("x", []byte(Key("k."+s)+" = "+Strings([]string{s, s})+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{s, s}, d.Strings("k."+s)); diff != "" {
			t.Error(diff)
		}
	})
}
