package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
	"tags.cncf.io/container-device-interface/pkg/cdi"

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
	written map[string]bool // names
}

func newCDIFiles(dir, domain string, log *logrus.Entry) (*cdiFiles, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dir), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("CDI directory %s: %w", dir, err)
	}
	return &cdiFiles{dir: dir, domain: domain, cache: cache, log: log, written: make(map[string]bool)}, nil
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
	current := make(map[string]bool)
	for _, s := range edits.CDISpecs(vfs, v.Table.Control) {
		name := strings.ReplaceAll(s.Kind, "/", "-") + ".json"
		current[name] = true
		if err := c.cache.WriteSpec(s, name); err != nil {
			c.log.WithError(err).WithField("file", filepath.Join(c.dir, name)).Error("a CDI spec could not be written")
		}
	}
	for name := range c.ours() {
		if !current[name] {
			c.remove(name)
		}
	}
	c.written = current
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
		if strings.HasPrefix(e.Name(), c.domain+"-") && filepath.Ext(e.Name()) == ".json" {
			names[e.Name()] = true
		}
	}
	return names
}
