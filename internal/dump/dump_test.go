package dump

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"sigs.k8s.io/yaml"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/output"
)

func collect(t *testing.T, n containers.Node, from Source, names ...string) []Entry {
	t.Helper()
	entries, err := Collect(t.Context(), n, from, Selection{All: names == nil, Names: names})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func written(t *testing.T, f output.Format, entries []Entry) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, f, entries); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTableOfAPod(t *testing.T) {
	s, _ := qatApp(t)
	golden(t, "table", written(t, output.Table, collect(t, s.Node(), Auto, "default/qat-app")))
}

func TestEverySourceKnowsThePod(t *testing.T) {
	s, _ := qatApp(t)
	for _, c := range []struct {
		from Source
		want string // container=source of its spec and number of devices
	}{
		{Auto, "=bundle/2 app=bundle/3 log=containerd/1"},
		{Containerd, "=containerd/0 app=containerd/3 log=containerd/1"},
		{Bundle, "=bundle/2 app=bundle/3"}, // what has exited has no bundle
	} {
		var got []string
		for _, e := range collect(t, s.Node(), c.from, "default/qat-app") {
			got = append(got, fmt.Sprintf("%s=%s/%d", e.Name, e.Source, e.Devices))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("from %s: %v, expected %s", c.from, got, c.want)
		}
	}
}

func TestBundlesNeedNoContainerd(t *testing.T) {
	s, root := qatApp(t)
	if err := os.Remove(filepath.Join(root, s.Node().Address)); err != nil {
		t.Fatal(err)
	}
	e := collect(t, s.Node(), Bundle, appID[:5])[0]
	if e.PodName() != "default/qat-app" || e.Name != "app" || e.Type != containers.Workload || e.Runtime != "io.containerd.kata-qat.v2" {
		t.Errorf("%+v: expected the container app of default/qat-app with the runtime that its sandbox's bundle names", e.Container)
	}
}

func TestContainersHaveTheHandlerOfTheirSandbox(t *testing.T) {
	s, _ := qatApp(t)
	if e := collect(t, s.Node(), Auto, appID)[0]; e.Handler != "kata-qat" {
		t.Errorf("handler %q, expected kata-qat", e.Handler)
	}
}

func TestContainersWithoutLabelsAreKnownByTheirSpec(t *testing.T) {
	root := containerstest.Root(t)
	r := containerstest.Container(appID, "", "", "", "", testdata(t, "container.json"))
	r.Labels = nil
	s := containerstest.Serve(t, root, r)
	if got := collect(t, s.Node(), Auto, "default/qat-app"); len(got) != 1 || got[0].Name != "app" {
		t.Errorf("%+v: expected the container app", got)
	}
}

func TestSelection(t *testing.T) {
	all := []containers.Container{{ID: "aa1"}, {ID: "aa12"}, {ID: "ab", Namespace: "default", Pod: "p"}, {ID: "ac", Namespace: "default", Pod: "p"}}
	for _, c := range []struct {
		names string
		ids   string
		err   string
	}{
		{names: "aa12", ids: "aa12"},
		{names: "aa1", ids: "aa1"}, // a whole id is never ambiguous
		{names: "default/p", ids: "ab ac"},
		{names: "ab default/p ab", ids: "ab ac"}, // each once
		{names: "a", err: "container a: 4 ids begin so: aa1, aa12, ab (sandbox of default/p), ac (sandbox of default/p): give more of the id"},
		{names: "zz", err: "container zz: none of the 4 on this node has an id that begins so: kata-qat dump --all lists them"},
		{names: "default/q", err: "pod default/q: no container of it among the 4 on this node: kata-qat dump --all lists them"},
		{names: "default/p zz", err: "container zz: none"},
	} {
		chosen, err := Selection{Names: strings.Fields(c.names)}.choose(all)
		if c.err != "" {
			says(t, err, c.err)
			continue
		}
		var ids []string
		for _, c := range chosen {
			ids = append(ids, c.ID)
		}
		if err != nil || strings.Join(ids, " ") != c.ids {
			t.Errorf("%s: %v, %v, expected %s", c.names, ids, err, c.ids)
		}
	}
}

func TestAmbiguousIDListsOnlySome(t *testing.T) {
	var all []containers.Container
	for i := range 40 {
		all = append(all, containers.Container{ID: fmt.Sprintf("a%02d", i)})
	}
	_, err := Selection{Names: []string{"a"}}.choose(all)
	says(t, err, "40 ids begin so: a00, a01, a02, a03, a04, a05, and 34 more")
}

func TestSelectionRefuses(t *testing.T) {
	for _, c := range []struct {
		all   bool
		names []string
		err   string
	}{
		{false, nil, "nothing to dump"},
		{true, []string{"a"}, `--all and "a"`},
		{false, []string{"a/b/c"}, `pod "a/b/c": expected namespace/pod`},
		{false, []string{"/p"}, `pod "/p": expected namespace/pod`},
		{false, []string{".."}, `container id "..": expected letters and digits`},
		{false, []string{"a\nb"}, `container id "a\nb"`},
	} {
		_, err := ParseSelection(c.all, c.names)
		says(t, err, c.err)
	}
}

func TestUnreachableContainerd(t *testing.T) {
	n := containerstest.NodeAt(containerstest.Root(t))
	_, err := Collect(t.Context(), n, Auto, Selection{All: true})
	says(t, err, "list the containers of containerd at "+n.Root, "no such file or directory", "--containerd", "--source bundle")
	_, err = Collect(t.Context(), n, Bundle, Selection{All: true})
	says(t, err, "list the bundles of containerd", "no such file or directory", "--state")
}

func TestForeignNamespaceOfContainerd(t *testing.T) {
	s, _ := qatApp(t)
	n := s.Node()
	n.Namespace = "moby"
	_, err := Collect(t.Context(), n, Containerd, Selection{All: true})
	says(t, err, "namespace [moby]")
	n.Namespace = "../../etc"
	_, err = Collect(t.Context(), n, Containerd, Selection{All: true})
	says(t, err, `containerd namespace "../../etc"`)
}

func TestBadSpecHidesNoOther(t *testing.T) {
	s, root := qatApp(t)
	dir := containerstest.WriteBundle(t, root, appID, "config.json", `{"linux": {`)
	for _, from := range []Source{Auto, Bundle} {
		entries, err := Collect(t.Context(), s.Node(), from, Selection{All: true})
		says(t, err, appID[:12], filepath.Join(dir, "config.json"), "unexpected end of JSON input", "expected an OCI spec")
		if len(entries) == 0 {
			t.Errorf("from %s: nothing but the error, expected the other containers", from)
		}
	}
}

func TestRecordWithoutSpec(t *testing.T) {
	r := containerstest.Sandbox(sandboxID, "default", "p", "")
	r.Spec = nil
	s := containerstest.Serve(t, containerstest.Root(t), r)
	_, err := Collect(t.Context(), s.Node(), Auto, Selection{All: true})
	says(t, err, "5a4db0000000 (sandbox of default/p)", "containerd", "expected an OCI spec")
}

func TestBadBundles(t *testing.T) {
	root := containerstest.Root(t)
	for _, c := range []struct {
		name, spec string
		parts      []string
	}{
		{"none", "", []string{"no config.json", "expected the directory of an OCI bundle"}},
		{"empty", " ", []string{"unexpected end of JSON input", "expected an OCI spec"}},
		{"list", "[]", []string{"array", "expected an OCI spec"}},
		{"null", "null", []string{"null", "expected an OCI spec"}},
		{"devices", `{"linux":{"devices":{"a":1}}}`, []string{"linux.devices", "expected an OCI spec"}},
	} {
		file := "config.json"
		if c.spec == "" {
			file = ""
		}
		dir := containerstest.WriteBundle(t, root, c.name, file, c.spec)
		_, err := FromBundle(dir)
		says(t, err, append(c.parts, dir)...)
	}
}

func TestJSONHasTheSpecAsItIs(t *testing.T) {
	s, _ := qatApp(t)
	out := written(t, output.JSON, collect(t, s.Node(), Auto, appID))
	var got []struct {
		ID, Namespace, Pod, PodUID, Container, Type, Handler, Source, Bundle, Injected string
		Spec                                                                           json.RawMessage
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	g := got[0]
	if g.ID != appID || g.Namespace != "default" || g.Pod != "qat-app" || g.PodUID != "uid-of-qat-app" || g.Container != "app" || g.Type != "container" ||
		g.Handler != "kata-qat" || g.Source != "bundle" || !strings.HasSuffix(g.Bundle, appID) || g.Injected != "cy=0000:6b:00.1,cy=0000:6b:00.2" {
		t.Errorf("%+v", g)
	}
	var compact, want bytes.Buffer
	if json.Compact(&compact, g.Spec) != nil || json.Compact(&want, []byte(testdata(t, "container.json"))) != nil || compact.String() != want.String() {
		t.Errorf("spec %s, expected %s", compact.String(), want.String())
	}
}

func TestYAMLKeepsLargeNumbers(t *testing.T) {
	s, _ := qatApp(t)
	out := written(t, output.YAML, collect(t, s.Node(), Auto, appID))
	for _, want := range []string{"kept: 18446744073709551615", "limit: 9223372036854771712", "- --flag=<a&b>"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	var back any
	if err := yaml.Unmarshal([]byte(out), &back); err != nil {
		t.Error(err)
	}
}

func TestNoContainersIsAnEmptyList(t *testing.T) {
	s := containerstest.Serve(t, containerstest.Root(t))
	entries := collect(t, s.Node(), Auto)
	if got := written(t, output.JSON, entries); got != "[]\n" {
		t.Errorf("%q, expected an empty list", got)
	}
	if got := written(t, output.Table, entries); got != "no container on this node\n" {
		t.Errorf("%q, expected to be told that there is none", got)
	}
}

// thousand is a node with a thousand containers, whose specs are as large as
// containerd's are with a seccomp profile.
func thousand(t testing.TB) *containerstest.Server {
	t.Helper()
	spec := testdata(t, "container.json")
	spec = strings.Replace(spec, `"cgroupsPath"`, `"seccomp": {"names": [`+strings.Repeat(`"a_system_call", `, 1500)+`"last"]}, "cgroupsPath"`, 1)
	var records []*api.Container
	for i := range 1000 {
		records = append(records, containerstest.Container(containerstest.ID(fmt.Sprintf("c%04d", i)), sandboxID, "default", fmt.Sprintf("pod-%d", i/2), "app", spec))
	}
	return containerstest.Serve(t, containerstest.Root(t), records...)
}

func TestThousandContainersTakeOneConnectionAndOneCall(t *testing.T) {
	s := thousand(t)
	start := time.Now()
	entries := collect(t, s.Node(), Auto)
	out := written(t, output.Table, entries)
	took := time.Since(start)
	if n := strings.Count(out, "\n"); n != 1001 {
		t.Errorf("%d lines, expected 1001", n)
	}
	if s.Connections.Load() != 1 || s.Calls.Load() != 1 {
		t.Errorf("%d connections and %d calls, expected one of each", s.Connections.Load(), s.Calls.Load())
	}
	t.Logf("%d containers with specs of %d bytes in %v", len(entries), len(entries[0].Spec), took)
	if took > 10*time.Second { // a generous bound: the race detector makes it slow
		t.Errorf("took %v", took)
	}
}

func BenchmarkDumpAllOfThousand(b *testing.B) {
	s := thousand(b)
	for b.Loop() {
		entries, err := Collect(b.Context(), s.Node(), Auto, Selection{All: true})
		if err != nil || len(entries) != 1000 {
			b.Fatal(len(entries), err)
		}
	}
}

func BenchmarkDiffAllOfThousand(b *testing.B) {
	s := thousand(b)
	for b.Loop() {
		entries, err := Collect(b.Context(), s.Node(), Auto, Selection{All: true})
		if err != nil {
			b.Fatal(err)
		}
		if err := WriteDiffs(&bytes.Buffer{}, output.Table, entries, output.Colours{}, 0); err != nil {
			b.Fatal(err)
		}
	}
}
