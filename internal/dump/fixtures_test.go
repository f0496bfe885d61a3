package dump

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
)

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// The pod default/qat-app of the fixtures: a sandbox whose spec the shim has
// rewritten, a container with VFs, and one without.
var (
	sandboxID = containerstest.ID("5a4db0")
	appID     = containerstest.ID("a99a")
	logID     = containerstest.ID("a100")
)

const plainSpec = `{"ociVersion":"1.2.1","process":{"args":["/bin/log"],"cwd":"/"},"linux":{"devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229}]}}`

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// qatApp is a node with that pod: the sandbox and the container with VFs run,
// the other has exited.
func qatApp(t testing.TB) (*containerstest.Server, string) {
	t.Helper()
	root := containerstest.Root(t)
	s := containerstest.Serve(t, root,
		containerstest.Container(logID, sandboxID, "default", "qat-app", "log", plainSpec),
		containerstest.Container(appID, sandboxID, "default", "qat-app", "app", testdata(t, "container.json")),
		containerstest.Sandbox(sandboxID, "default", "qat-app", testdata(t, "sandbox.json")),
	)
	containerstest.WriteBundle(t, root, appID, "config.json", testdata(t, "container.json"))
	containerstest.WriteBundle(t, root, sandboxID, "config.json", testdata(t, "sandbox-rewritten.json"))
	containerstest.WriteBundle(t, root, sandboxID, "config.json.kata-qat-orig", testdata(t, "sandbox.json"))
	containerstest.WriteBundle(t, root, sandboxID, "shim-binary-path", "/usr/bin/containerd-shim-kata-qat-v2")
	return s, root
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *updateGolden {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := testdata(t, name+".golden"); got != want {
		t.Errorf("%s:\n%s\nexpected:\n%s", name, got, want)
	}
}

// says checks that an error is one line that has all the parts.
func says(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, expected one with %q", parts)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error is more than one line: %q", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}
