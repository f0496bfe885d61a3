package node

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/config"
)

// leaving is a host on which a daemon has been, beside another user of CDI.
func leaving(t *testing.T) (root string, c *config.Config) {
	t.Helper()
	root, c = t.TempDir(), config.Default()
	for _, file := range []string{"/run/kata-qat/conf/4xxxvf-1.conf", "/var/run/cdi/qat.intel.com-cy.json", "/var/run/cdi/intel.com-qat.json", "/var/run/cdi/qat.intel.com-cy.yaml"} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root, c
}

func left(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/run/kata-qat/*", "/var/run/cdi/*"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			all = append(all, filepath.Base(f))
		}
	}
	return all
}

var others = []string{"intel.com-qat.json", "qat.intel.com-cy.yaml"}

func TestLeaveRemovesWhatADaemonThatIsGoneHasWritten(t *testing.T) {
	root, c := leaving(t)
	for range 2 { // there may be nothing to remove
		if err := Leave(root, c); err != nil {
			t.Fatal(err)
		}
		if got := left(t, root); !slices.Equal(got, others) {
			t.Errorf("left %v, expected %v", got, others)
		}
	}
}

func TestLeaveHasADaemonThatRunsRemoveItsFilesAtItsEnd(t *testing.T) {
	t.Chdir(t.TempDir()) // a socket's path is short
	root, c := leaving(t)
	run := filepath.Join(root, c.RunDir)
	if err := os.Symlink(run, "run"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join("run", api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	before := left(t, root)
	if err := Leave(root, c); err != nil {
		t.Fatal(err)
	}
	if got := left(t, root); len(got) != len(before)+1 || !slices.Contains(got, leaveMark) {
		t.Fatalf("while the daemon runs there is %v, expected %v and %s", got, before, leaveMark)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c.RunDir = run // as the daemon sees it
	o := Options{Root: root, Config: c}
	if err := leaveIfTold(o); err != nil {
		t.Fatal(err)
	}
	if got := left(t, root); !slices.Equal(got, others) {
		t.Errorf("left %v, expected %v", got, others)
	}
}

func TestADaemonThatStartsAgainStays(t *testing.T) {
	root, c := leaving(t)
	c.RunDir = filepath.Join(root, c.RunDir)
	if err := os.WriteFile(filepath.Join(c.RunDir, leaveMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Root: root, Config: c}
	for range 2 {
		if err := forgetLeaving(o); err != nil {
			t.Fatal(err)
		}
	}
	if err := leaveIfTold(o); err != nil {
		t.Fatal(err)
	}
	if got := left(t, root); len(got) != 4 {
		t.Errorf("left %v, expected everything but the mark", got)
	}
}
