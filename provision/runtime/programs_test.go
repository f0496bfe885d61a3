package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProgramsOfAnImageAreInstalledUpdatedAndTakenAway(t *testing.T) {
	n := newNode(t)
	n.remove("/usr/local/bin/containerd-shim-kata-qat-v2")
	before := n.tree()
	image := t.TempDir()
	release := func(version string) {
		t.Helper()
		for _, name := range programs {
			if err := os.WriteFile(filepath.Join(image, name), []byte(name+" "+version), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	from := func(o *Options) { o.Programs = image }

	if _, err := n.apply(from); err == nil || !strings.Contains(err.Error(), "our programs") {
		t.Errorf("an image without programs: %v", err)
	}
	release("1")
	n.mustApply(from)
	release("2")
	if out := n.mustApply(from); !out.Changed {
		t.Errorf("another version changed nothing: %+v", out)
	}
	if n.restarts != 1 {
		t.Errorf("containerd was restarted %d times, expected 1: programs are none of its configuration", n.restarts)
	}
	if out := n.mustApply(from); out.Changed {
		t.Errorf("the same version again: %+v", out)
	}
	for _, name := range programs {
		file := "/usr/local/bin/" + name
		if got := n.read(file); got != name+" 2" {
			t.Errorf("%s is %q", file, got)
		}
		if info, err := os.Stat(n.path(file)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v, expected mode 0755", file, info.Mode(), err)
		}
	}
	n.undo(from)
	if diff := cmp.Diff(before, n.tree()); diff != "" {
		t.Errorf("after the undo (-before +after):\n%s", diff)
	}
}
