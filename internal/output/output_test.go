package output

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

func TestParseFormat(t *testing.T) {
	for _, f := range Formats {
		if got, err := ParseFormat(string(f)); got != f || err != nil {
			t.Errorf("%s: %s, %v", f, got, err)
		}
	}
	for _, bad := range []string{"", "JSON", "wide"} {
		if _, err := ParseFormat(bad); err == nil || !strings.Contains(err.Error(), "expected table, json or yaml") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestRowsAreAlignedAndEmptyCellsAreDashes(t *testing.T) {
	var b bytes.Buffer
	if err := Rows(&b, []string{"A", "LONG", "C"}, [][]string{{"aaaa", "", "c"}, {"a", "b\tb", "é"}}); err != nil {
		t.Fatal(err)
	}
	if want := "A      LONG       C\naaaa   -          c\na      b\\u0009b   é\n"; b.String() != want {
		t.Errorf("%q, expected %q", b.String(), want)
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain é 😀":        "plain é 😀",
		"\x1b[31mred":      `\u001b[31mred`,
		"line\nbreak":      `line\u000abreak`,
		"c1\u009b2J":       `c1\u009b2J`,
		"\u202egpj":        `\u202egpj`,
		"tag\U000e0001":    `tag\U000e0001`,
		"not utf-8 \xff\"": `not utf-8 \xff"`,
	} {
		if got := Text(in); got != want {
			t.Errorf("%q: %q, expected %q", in, got, want)
		}
	}
}

// What was written can be read back, whatever the strings are.
func TestDataSurvives(t *testing.T) {
	in := map[string]any{
		"wild": "\x1b \u009b \u202e \U000e0001 <&> \"\\ 😀", "true": "true", "number": "1",
		"big": json.Number("18446744073709551615"), "fraction": json.Number("0.5"), "list": []any{}, "null": nil,
	}
	want, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Format{JSON, YAML} {
		var b bytes.Buffer
		if err := Data(&b, f, in); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(b.String(), "\x1b\u009b") {
			t.Errorf("%s: control characters in %q", f, b.String())
		}
		back := b.Bytes()
		if f == YAML {
			if back, err = yaml.YAMLToJSON(back); err != nil {
				t.Fatal(err)
			}
		}
		d := json.NewDecoder(bytes.NewReader(back))
		d.UseNumber()
		var out map[string]any
		if err := d.Decode(&out); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(out); err != nil || string(got) != string(want) {
			t.Errorf("%s: %s, expected %s, %v", f, got, want, err)
		}
	}
	if err := Data(&bytes.Buffer{}, Table, in); err == nil {
		t.Error("a table of data: expected an error")
	}
}

// terminal opens a pseudo-terminal.
func terminal(t *testing.T) *os.File {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { ptmx.Close() })
	return ptmx
}

func TestColoursAreForTerminalsOnly(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	tty := terminal(t)
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := ColoursFor(tty).Green("x"); got != "\x1b[32mx\x1b[0m" {
		t.Errorf("on a terminal: %q", got)
	}
	if got := ColoursFor(file).Green("x") + ColoursFor(&bytes.Buffer{}).Red("x"); got != "xx" {
		t.Errorf("in a file: %q", got)
	}
	t.Setenv("NO_COLOR", "1")
	if got := ColoursFor(tty).Green("x"); got != "x" {
		t.Errorf("with NO_COLOR: %q", got)
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	if got := ColoursFor(tty).Green("x"); got != "x" {
		t.Errorf("on a dumb terminal: %q", got)
	}
}
