package dump

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/output"
)

func diffs(t *testing.T, f output.Format, colours output.Colours, entries ...Entry) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteDiffs(&b, f, entries, colours, 0); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestDiffOfAPod(t *testing.T) {
	s, _ := qatApp(t)
	golden(t, "diff", diffs(t, output.Table, output.Colours{}, collect(t, s.Node(), Auto, "default/qat-app")...))
}

func TestDiffOfAPodIsSideBySideWhereThereIsRoom(t *testing.T) {
	s, _ := qatApp(t)
	entries := collect(t, s.Node(), Auto, "default/qat-app")
	at := func(width int, colours output.Colours) string {
		var b bytes.Buffer
		if err := WriteDiffs(&b, output.Table, entries, colours, width); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	golden(t, "beside", at(200, output.Colours{}))
	if got := at(80, output.Colours{}); got != at(0, output.Colours{}) {
		t.Errorf("80 columns are not enough:\n%s", got)
	}
	for _, width := range []int{2*narrow + 3, 150, 200, 251} {
		text := at(width, output.Colours{})
		var left, right []string // what was added, by column, without line breaks
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if n := utf8.RuneCountInString(line); n > width {
				t.Errorf("%d columns: a line has %d: %s", width, n, line)
			}
			l, r, _ := strings.Cut(line, between)
			left, right = append(left, strings.TrimSpace(l)), append(right, strings.TrimSpace(r))
		}
		for _, want := range []string{`cy=0000:6b:00.1,cy=0000:6b:00.2`, `"path":"/dev/vfio/101"`} {
			for name, column := range map[string][]string{"sandbox": left, "container": right} {
				if !strings.Contains(strings.ReplaceAll(strings.Join(column, ""), " ", ""), want) {
					t.Errorf("%d columns: %s is not in the column of the %s:\n%s", width, want, name, text)
				}
			}
		}
		if plain := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(at(width, output.Always()), ""); plain != text {
			t.Errorf("%d columns: with colours it is another text:\n%s", width, plain)
		}
	}
}

// More containers than there is room for stand below.
func TestDiffOfALargePodIsInBands(t *testing.T) {
	s, _ := qatApp(t)
	entries := collect(t, s.Node(), Auto, "default/qat-app")
	for range 3 {
		entries = append(entries, entries[1])
	}
	var b bytes.Buffer
	if err := WriteDiffs(&b, output.Table, entries, output.Colours{}, 200); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), "(default/qat-app/app)"); got != 4 {
		t.Errorf("%d containers are shown, expected 4", got)
	}
	if got := regexp.MustCompile(`(?m)^\S+ \((sandbox of )?default/qat-app`).FindAllString(b.String(), -1); len(got) != 3 { // two bands, and what has nothing injected
		t.Errorf("bands begin with %q", got)
	}
}

func TestDiffForPrograms(t *testing.T) {
	s, _ := qatApp(t)
	golden(t, "diff.json", diffs(t, output.JSON, output.Colours{}, collect(t, s.Node(), Auto, appID, logID)...))
}

func TestDiffIsColouredOnlyWhenAsked(t *testing.T) {
	s, _ := qatApp(t)
	entries := collect(t, s.Node(), Auto, appID)
	if plain := diffs(t, output.Table, output.ColoursFor(new(bytes.Buffer)), entries...); strings.Contains(plain, "\x1b") {
		t.Errorf("colours for what is no terminal: %q", plain)
	}
	painted := diffs(t, output.Table, output.Always(), entries...)
	for _, want := range []string{"\x1b[32m+ \"kata-qat.io/injected\"", "\x1b[31m- {\"fileMode\":384", "\x1b[36m@@ linux.devices @@"} {
		if !strings.Contains(painted, want) {
			t.Errorf("no %q in %q", want, painted)
		}
	}
}

func TestContainerWithoutInjectionSaysSoInOneLine(t *testing.T) {
	s, _ := qatApp(t)
	if got, want := diffs(t, output.Table, output.Colours{}, collect(t, s.Node(), Auto, logID)...), "a10000000000 (default/qat-app/log): nothing injected\n"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
}

func TestSandboxIsComparedWithWhatTheShimKept(t *testing.T) {
	s, root := qatApp(t)
	d, err := Diff(collect(t, s.Node(), Auto, sandboxID)[0])
	if err != nil || d.Against != containers.OriginalFile || len(d.Hunks) == 0 {
		t.Errorf("%+v, %v: expected a difference against %s", d, err, containers.OriginalFile)
	}
	dir := containerstest.WriteBundle(t, root, sandboxID, containers.OriginalFile, "{")
	_, err = Diff(collect(t, s.Node(), Auto, sandboxID)[0])
	says(t, err, "5a4db0000000 (sandbox of default/qat-app)", containers.OriginalFile, dir, "expected an OCI spec")
}

func TestMalformedRecords(t *testing.T) {
	good := collectOne(t, `{"annotations":{"kata-qat.io/injected":"profile=vfio"}}`)
	for _, c := range []struct{ record, part string }{
		{`nonsense`, `"nonsense": expected a name and values`},
		{`devices=all`, `field "devices" is unknown`},
		{`nodes=/dev/%zz`, `nodes: invalid URL escape`},
		{`owned=/dev/vfio/1`, "owned=/dev/vfio/1: expected a node and what it had"},
		{`owned=/dev/vfio/1,rw%20root`, `"rw root" is no mode and owner of /dev/vfio/1`},
		{`owned=/dev/vfio/1,0600:0:-1`, `"0600:0:-1" is no mode and owner`},
		{`memlock=1`, "memlock=1: expected the soft and the hard limit"},
		{`memlock=1,-1`, "memlock=1,-1: expected the soft and the hard limit"},
	} {
		b, err := json.Marshal(map[string]any{"annotations": map[string]string{"kata-qat.io/injected": c.record}})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = WriteDiffs(&out, output.Table, []Entry{collectOne(t, string(b)), good}, output.Colours{}, 0)
		says(t, err, "a99a00000000", "annotation kata-qat.io/injected", c.part, "expected the record that kata-qat writes", "kata-qat dump")
		if !strings.Contains(out.String(), "+++") {
			t.Errorf("the bad record hid the good one: %q", out.String())
		}
	}
}

func collectOne(t *testing.T, spec string) Entry {
	t.Helper()
	e, err := entry(containers.Container{ID: appID, Source: containers.FromContainerd, Spec: json.RawMessage(spec)})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestWhatAPodWroteCannotDriveTheTerminal(t *testing.T) {
	hostile := "\x1b]0;owned\x07\u009b2J\u202e"
	b, err := json.Marshal(map[string]any{"process": map[string]any{"env": []string{"QAT=" + hostile}},
		"annotations": map[string]string{"kata-qat.io/devices": hostile, "kata-qat.io/injected": "env=QAT mounts=/\u009b"}})
	if err != nil {
		t.Fatal(err)
	}
	e := collectOne(t, string(b))
	e.Namespace, e.Pod, e.Name = "default", "p"+hostile, hostile
	for name, out := range map[string]string{
		"table": written(t, output.Table, []Entry{e}), "json": written(t, output.JSON, []Entry{e}), "yaml": written(t, output.YAML, []Entry{e}),
		"diff": diffs(t, output.Table, output.Colours{}, e), "diff as json": diffs(t, output.JSON, output.Colours{}, e),
	} {
		if strings.ContainsAny(out, "\x1b\x07\u009b") {
			t.Errorf("%s lets control characters through: %q", name, out)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct{ name, before, after, want string }{
		{"the same", `{"a":[1,{"b":2}]}`, `{"a":[1,{"b":2}]}`, ""},
		{"a list that was not there", `{}`, `{"a":{"b":[1,2]}}`, "@ a.b|+a.b[0] 1|+a.b[1] 2"},
		{"a list that is gone", `{"a":[1]}`, `{}`, "@ a|-a[0] 1"},
		{"an empty object that was not there", `{}`, `{"a":{}}`, "@ |+a {}"},
		{"a changed value", `{"a":{"b.c":1,"d":2}}`, `{"a":{"b.c":3,"d":2}}`, `@ a|-a["b.c"] 1|+a["b.c"] 3| a.d 2`},
		{"another kind", `{"a":{"b":1}}`, `{"a":[1]}`, `@ |-a {"b":1}|+a [1]`},
		{"in the middle of a list", `{"a":[1,2,3,4,5]}`, `{"a":[1,2,9,3,4,5]}`, "@ a| a[1] 2|+a[2] 9| a[3] 3"},
		{"equal elements", `{"a":[1,1]}`, `{"a":[1,1,1]}`, "@ a| a[1] 1|+a[2] 1"},
		{"a number's last digit", `{"a":18446744073709551615}`, `{"a":18446744073709551614}`, "@ |-a 18446744073709551615|+a 18446744073709551614"},
		{"null and nothing", `{"a":null}`, `{}`, "@ |-a null"},
	} {
		before, err := Decode([]byte(c.before))
		if err != nil {
			t.Fatal(err)
		}
		after, err := Decode([]byte(c.after))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range compare(before, after) {
			got = append(got, "@ "+h.Path)
			for _, l := range h.Lines {
				got = append(got, string(l.Op)+l.Path+" "+compact(l.Value))
			}
		}
		if s := strings.Join(got, "|"); s != c.want {
			t.Errorf("%s: %s, expected %s", c.name, s, c.want)
		}
	}
}

func TestLongValuesAreBrokenUpAndLongContextIsCut(t *testing.T) {
	long := strings.Repeat("x", 130)
	added := Line{Op: Added, Value: map[string]any{"a": long, "b": "c"}}
	if got := len(added.text(wide)); got != 4 {
		t.Errorf("%d lines, expected 4: %q", got, added.text(wide))
	}
	context := Line{Op: Context, Key: "k", Value: long}
	if got := context.text(wide); len(got) != 1 || !strings.HasSuffix(got[0], "x…") {
		t.Errorf("%q, expected one line that is cut", got)
	}
}
