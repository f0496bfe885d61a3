package containers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	configFile = "config.json"
	// OriginalFile lies beside a config.json that was rewritten before the
	// runtime saw it, and is what containerd had written.
	OriginalFile = "config.json.kata-qat-orig"
	// tasks is the directory of containerd's bundles in its state directory.
	tasks = "io.containerd.runtime.v2.task"
)

// Bundles is containerd's directory of bundles. A container has a bundle there
// for as long as it runs.
type Bundles struct {
	dir string
}

// NewBundles finds the bundles of one of containerd's namespaces below its
// state directory, /run/containerd by default, on the host whose root
// directory is root.
func NewBundles(root, state, namespace string) Bundles {
	return Bundles{dir: filepath.Join(root, state, tasks, namespace)}
}

// Dir is the bundle of a container, whether it exists or not.
func (b Bundles) Dir(id string) (string, error) {
	if !identifier.MatchString(id) {
		return "", fmt.Errorf("container id %q: expected letters and digits", id)
	}
	return filepath.Join(b.dir, id), nil
}

// IDs are the ids of the containers that have a bundle.
func (b Bundles) IDs() ([]string, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("list the bundles of containerd: %w: check --state (containerd's state directory) and --containerd-namespace", err)
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.IsDir() && identifier.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Running tells whether a container has a bundle. Where there is no directory
// of bundles at all nothing is known, and the second result is false.
func (b Bundles) Running(id string) (running, known bool) {
	if _, err := os.Stat(b.dir); err != nil {
		return false, false
	}
	dir, err := b.Dir(id)
	if err != nil {
		return false, true
	}
	_, err = os.Stat(dir)
	return err == nil, true
}

// Spec reads the spec of a container from its bundle into c. It returns false
// and leaves c alone when there is no such bundle.
func (b Bundles) Spec(c *Container) (bool, error) {
	dir, err := b.Dir(c.ID)
	if err != nil {
		return false, err
	}
	spec, err := os.ReadFile(filepath.Join(dir, configFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the spec of container %s: %w", c, err)
	}
	c.Spec, c.Bundle, c.Source, c.facts = spec, dir, FromBundle, nil
	return true, nil
}

// Read returns the container of an id as its bundle tells.
func (b Bundles) Read(id string) (*Container, error) {
	dir, err := b.Dir(id)
	if err != nil {
		return nil, err
	}
	return ReadBundle(dir)
}

// ReadBundle returns the container of a bundle directory, and who it is as far
// as the annotations of its spec tell.
func ReadBundle(dir string) (*Container, error) {
	path := filepath.Join(dir, configFile)
	spec, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read bundle %s: no config.json in it (%w): expected the directory of an OCI bundle, such as /run/containerd/%s/k8s.io/<container id>", dir, err, tasks)
	case err != nil:
		return nil, fmt.Errorf("read bundle %s: %w", dir, err)
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	c := &Container{ID: filepath.Base(dir), Bundle: dir, Source: FromBundle, Spec: spec}
	if err := c.Identify(); err != nil {
		return nil, err
	}
	c.Runtime = runtimeOf(dir, c.SandboxID)
	return c, nil
}

// Original returns the spec as it was before the bundle's was rewritten, or nil
// when it was not.
func Original(bundle string) (json.RawMessage, error) {
	if bundle == "" {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(bundle, OriginalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec before it was rewritten: %w", err)
	}
	return b, nil
}

// runtimeOf tells which runtime made a bundle. containerd writes the path of
// the shim, containerd-shim-NAME-VERSION, into the bundle of the sandbox only
// (containerd 2.4, core/runtime/v2/binary.go).
func runtimeOf(dir, sandbox string) string {
	dirs := []string{dir}
	if identifier.MatchString(sandbox) {
		dirs = append(dirs, filepath.Join(filepath.Dir(dir), sandbox))
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "shim-binary-path"))
		if err != nil {
			continue
		}
		name, ok := strings.CutPrefix(filepath.Base(strings.TrimSpace(string(b))), "containerd-shim-")
		if i := strings.LastIndexByte(name, '-'); ok && i > 0 {
			return "io.containerd." + name[:i] + "." + name[i+1:]
		}
	}
	return ""
}
