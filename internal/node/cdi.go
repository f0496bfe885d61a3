package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/edits"
)

// cdiFiles keeps the CDI specs of a directory in step with the devices. The
// files are ours by name: <resource name with "-" for "/">.json.
type cdiFiles struct {
	dir    string
	domain string
	cache  *cdi.Cache
	log    *logrus.Entry

	mu      sync.Mutex
	written map[string]*specs.Spec // by file name; nil for one that could not be written
}

func newCDIFiles(dir, domain string, log *logrus.Entry) (*cdiFiles, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dir), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("CDI directory %s: %w", dir, err)
	}
	return &cdiFiles{dir: dir, domain: domain, cache: cache, log: log, written: make(map[string]*specs.Spec)}, nil
}

// update writes the specs of the VFs that can be handed out, and removes those
// of resources that there are no longer, a former daemon's too. What cannot be
// written is logged and tried again with the next change: NRI and the shim do
// without.
func (c *cdiFiles) update(v *devices.View) {
	var vfs []edits.VF
	for _, d := range v.Table.Devices() {
		if d.Err == nil {
			vfs = append(vfs, edits.VF{Address: d.VF.Address, Resource: c.domain + "/" + d.VF.Services.ResourceName(), Group: d.Node})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	current := make(map[string]*specs.Spec)
	for _, s := range edits.CDISpecs(vfs, v.Table.Control) {
		name := fileName(s.Kind)
		current[name] = s
		// Who watches the directory reads all of it again after each change.
		if reflect.DeepEqual(c.written[name], s) && c.there(name) {
			continue
		}
		if err := c.cache.WriteSpec(s, name); err != nil {
			c.log.WithError(err).WithField("file", filepath.Join(c.dir, name)).Error("a CDI spec could not be written")
			current[name] = nil
		}
	}
	for name := range c.ours() {
		if _, ok := current[name]; !ok {
			c.remove(name)
		}
	}
	c.written = current
}

func fileName(kind string) string { return strings.ReplaceAll(kind, "/", "-") + ".json" }

func (c *cdiFiles) there(name string) bool {
	_, err := os.Lstat(filepath.Join(c.dir, name))
	return err == nil
}

// has tells whether the spec of a kind is written.
func (c *cdiFiles) has(kind string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written[fileName(kind)] != nil
}

// close removes the specs.
func (c *cdiFiles) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.written {
		c.remove(name)
	}
}

func (c *cdiFiles) remove(name string) {
	if err := c.cache.RemoveSpec(name); err != nil {
		c.log.WithError(err).Error("a CDI spec could not be removed")
	}
}

// ours are the files of the directory that have a name that we give.
func (c *cdiFiles) ours() map[string]bool {
	names := make(map[string]bool)
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.log.WithError(err).Error("the CDI directory cannot be read")
	}
	for _, e := range entries {
		if ourSpec(e.Name(), c.domain) {
			names[e.Name()] = true
		}
	}
	return names
}
