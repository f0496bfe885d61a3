// Package containerdconfig reads containerd's configuration as containerd does: a
// file and all that it imports. It knows where in it runtimes and NRI are; what
// they should be there is for others to say.
package containerdconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/tomledit"
)

// The plugins by whose tables NRI and CRI's runtimes are configured.
const (
	NRI   = "io.containerd.nri.v1.nri"
	CRIv1 = "io.containerd.grpc.v1.cri"    // schema 2
	CRIv2 = "io.containerd.cri.v1.runtime" // schema 3 and 4
)

// Machine is where the files are. The errors are those of package os.
type Machine interface {
	Read(name string) ([]byte, error)
	List(dir string) (names []string, err error)
}

// Read returns the files in the order in which they are read, later ones over
// earlier: the main one, then what is imported, each file once (containerd 2.4,
// cmd/containerd/server/config/config.go, LoadConfigWithPlugins; 1.7 does the
// same). Without a main file the error is fs.ErrNotExist and there are none; with
// any other error those are returned that were read before.
func Read(m Machine, main string) (files []*tomledit.Document, _ error) {
	pending := []string{main}
	for i := 0; i < len(pending); i++ {
		name := pending[i]
		if slices.Contains(pending[:i], name) {
			continue
		}
		b, err := m.Read(name)
		if err != nil {
			return files, fmt.Errorf("%s: %w", name, err)
		}
		d, err := tomledit.Parse(name, b)
		if err != nil {
			return files, err
		}
		files = append(files, d)
		for _, pattern := range d.Strings("imports") {
			matches, err := glob(m, Absolute(pattern, name))
			if err != nil {
				return files, fmt.Errorf("%s: imports %q: %w", name, pattern, err)
			}
			pending = append(pending, matches...)
		}
	}
	return files, nil
}

// Absolute is what an import means in the file that has it.
func Absolute(name, importer string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(path.Dir(importer), name)
}

// glob returns the files that a pattern of imports stands for; a directory that is
// not there has none.
func glob(m Machine, pattern string) (names []string, _ error) {
	if !strings.Contains(pattern, "*") {
		return []string{pattern}, nil
	}
	dir, last := path.Split(pattern)
	entries, err := m.List(path.Clean(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, n := range entries {
		if ok, err := path.Match(last, n); err != nil {
			return nil, err
		} else if ok {
			names = append(names, dir+n)
		}
	}
	return names, nil
}

// Schema is the version of the configuration, which the main file says; 0 without
// one.
func Schema(files []*tomledit.Document) int {
	if len(files) == 0 {
		return 0
	}
	v, _ := files[0].Get("version")
	n, _ := v.(int64)
	return int(n)
}

// Runtimes is the path of the entries of runtime handlers.
func Runtimes(plugin string, handler ...string) []string {
	return append([]string{"plugins", plugin, "containerd", "runtimes"}, handler...)
}
