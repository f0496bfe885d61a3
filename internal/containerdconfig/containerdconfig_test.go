package containerdconfig_test

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/containerdconfig"
)

// machine has files.
type machine map[string]string

func (m machine) Read(name string) ([]byte, error) {
	text, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(text), nil
}

func (m machine) List(dir string) (names []string, _ error) {
	for name := range m {
		if path.Dir(name) == dir {
			names = append(names, path.Base(name))
		}
	}
	if names == nil {
		return nil, fs.ErrNotExist
	}
	slices.Sort(names)
	return names, nil
}

func TestFilesAreReadInContainerdsOrder(t *testing.T) {
	m := machine{
		"/etc/containerd/config.toml":     "version = 3\nimports = ['conf.d/*.toml', '/opt/last.toml', '/none/*.toml']\n",
		"/etc/containerd/conf.d/10.toml":  "imports = ['/opt/deep.toml', '/etc/containerd/config.toml']\n",
		"/etc/containerd/conf.d/20.toml":  "",
		"/etc/containerd/conf.d/20.toml~": "not TOML",
		"/opt/last.toml":                  "imports = ['conf.d/../deep.toml']\n",
		"/opt/deep.toml":                  "",
	}
	files, err := containerdconfig.Read(m, "/etc/containerd/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	want := []string{"/etc/containerd/config.toml", "/etc/containerd/conf.d/10.toml", "/etc/containerd/conf.d/20.toml", "/opt/last.toml", "/opt/deep.toml"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if got := containerdconfig.Schema(files); got != 3 {
		t.Errorf("schema %d", got)
	}
}

func TestWhatCannotBeReadIsSaidWithTheFile(t *testing.T) {
	for says, m := range map[string]machine{
		"/c.toml: file does not exist": {},
		"/x.toml: file does not exist": {"/c.toml": "imports = ['x.toml']"},
		"/d/1.toml:1:2":                {"/c.toml": "imports = ['d/*']", "/d/1.toml": "[["},
		`/c.toml: imports "d/[*"`:      {"/c.toml": "imports = ['d/[*']", "/d/1.toml": ""},
	} {
		files, err := containerdconfig.Read(m, "/c.toml")
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, expected %q", err, says)
		}
		if missing := errors.Is(err, fs.ErrNotExist) && len(files) == 0; missing != (len(m) == 0) {
			t.Errorf("%v with %d files: only a main file that is missing has none", err, len(files))
		}
	}
}
