package runtime

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containerdconfig"
	"github.com/kata-qat/kata-qat/internal/tomledit"
)

// containerdFile is ours in a directory that containerd imports.
const containerdFile = "60-kata-qat.toml"

// design is what containerd's configuration is to be.
type design struct {
	*setup
	own   string // what is ours in it
	files []file
	notes []string
}

// digest stands for what containerd must have read. What is not ours may change
// without us.
func (d *design) digest() string { return fmt.Sprintf("%x", sha256.Sum256([]byte(d.own))) }

func (m *machine) containerdFiles(ctx context.Context) ([]file, error) {
	d, err := m.design(ctx)
	if err != nil {
		return nil, err
	}
	return d.files, nil
}

// design looks at containerd and says what its files are to be. Made of files
// that are as they should be, it is these.
func (m *machine) design(ctx context.Context) (*design, error) {
	c, err := m.containerd(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.checkSocket(c); err != nil {
		return nil, err
	}
	return m.designFor(c)
}

func (m *machine) designFor(c *setup) (*design, error) {
	d := &design{setup: c}
	var err error
	edited := map[string]*tomledit.Document{}
	imported := c.importedDir()
	switch {
	case c.rendered && (imported == "" || !c.merges()):
		err = m.designTemplate(d)
	case c.merges():
		err = m.designDropIn(d, imported, edited)
	default:
		err = m.designInPlace(d, edited)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(edited)) {
		d.files = append(d.files, file{name: name, content: string(edited[name].Bytes()), why: "the rest of this file stays as it is"})
	}
	switch {
	case !c.validates():
		d.notes = append(d.notes, fmt.Sprintf("containerd %s cannot require an NRI plugin: while kata-qat nri-plugin is not running, containers start without their devices: use 2.2 or later", strings.TrimPrefix(c.version, "v")))
	case m.NotRequired:
		d.notes = append(d.notes, "as asked for, our NRI plugin is not required: while it is not running, containers start without their devices")
	default:
		d.notes = append(d.notes, fmt.Sprintf("while kata-qat nri-plugin is not running, no container of any pod is created on this machine, except of pods that are annotated %s/pod: \"true\": annotate static pods, the network's and the plugin's own", Tolerate))
	}
	return d, nil
}

// checkSocket compares where NRI serves with where our plugin connects.
func (m *machine) checkSocket(c *setup) error {
	serves, file := config.Default().NRI.Socket, c.config
	for _, d := range c.files {
		if v, ok := d.Get("plugins", containerdconfig.NRI, "socket_path"); ok {
			serves, file = fmt.Sprint(v), d.Name()
		}
	}
	plain := func(s string) string { return strings.TrimPrefix(filepath.Clean(s), "/var") } // /var/run is a link
	if connects := m.Options.Config.NRI.Socket; plain(serves) != plain(connects) {
		return fmt.Errorf("NRI serves on %s (%s), but the daemon is to connect to %s: set nri.socket in %s", serves, file, connects, config.Path)
	}
	return nil
}

// importedDir is a directory of which containerd imports every file, "" if there
// is none.
func (c *setup) importedDir() string {
	for _, d := range c.files {
		for _, pattern := range d.Strings("imports") {
			if pattern = containerdconfig.Absolute(pattern, d.Name()); filepath.Base(pattern) == "*.toml" && !strings.Contains(filepath.Dir(pattern), "*") {
				return filepath.Dir(pattern)
			}
		}
	}
	return ""
}

// designDropIn is for containerd 2: a file of our own, and the import of it where
// the configuration has none.
func (m *machine) designDropIn(d *design, dir string, edited map[string]*tomledit.Document) error {
	if dir == "" {
		dir = filepath.Join(filepath.Dir(d.config), "conf.d")
	}
	name := filepath.Join(dir, containerdFile)
	now, err := m.state(name)
	if err != nil {
		return err
	}
	if !now.Absent && !strings.HasPrefix(string(now.Content), dropInMark) && !m.Replace {
		return fmt.Errorf("%s was not written by kata-qat: move it away, or say --replace", name)
	}
	if err := m.takeOut(d.setup, name, edited); err != nil {
		return err
	}
	content, err := m.containerdDropIn(d.setup, name)
	if err != nil {
		return err
	}
	d.own = content
	d.files = append(d.files, file{name: name, content: content, why: "the runtime handlers, and NRI with our plugin required"})
	if d.importedDir() != "" {
		return nil
	}
	main := edited[d.config]
	switch {
	case len(d.setup.files) == 0:
		// Without a configuration containerd does not look at conf.d either
		// (2.4, cmd/containerd/command/main.go).
		main, err = tomledit.Parse(d.config, fmt.Appendf(nil, "version = %d\n", d.schema))
	case main == nil:
		main, err = clone(d.setup.files[0])
	}
	if err != nil {
		return err
	}
	edited[d.config] = main
	return main.Add(tomledit.String(filepath.Join(dir, "*.toml")), "imports")
}

func clone(d *tomledit.Document) (*tomledit.Document, error) {
	return tomledit.Parse(d.Name(), d.Bytes())
}

// designInPlace is for containerd 1.7, in which an imported file wipes what CRI's
// section of another says: our tables go into the file that has it.
func (m *machine) designInPlace(d *design, edited map[string]*tomledit.Document) error {
	var owners []*tomledit.Document // of CRI's section and of NRI's
	for _, plugin := range []string{containerdconfig.CRIv1, containerdconfig.NRI} {
		owner, err := d.ownerOf(plugin)
		if err != nil {
			return err
		}
		if edited[owner.Name()] == nil {
			edited[owner.Name()] = owner
		}
		owners = append(owners, edited[owner.Name()])
	}
	if err := m.takeOut(d.setup, "", edited); err != nil {
		return err
	}
	block := m.entries(d.setup)
	table := []string{"plugins", containerdconfig.NRI}
	if v, ok := owners[1].Get(table...); ok {
		was, _ := v.(map[string]any)
		if was["disable"] != false { // on by default is only NRI of 2.0
			if err := owners[1].Set("false", append(table, "disable")...); err != nil {
				return err
			}
		}
		if was["disable_connections"] == true {
			if err := owners[1].Set("false", append(table, "disable_connections")...); err != nil {
				return err
			}
		}
	} else {
		block += "\n" + m.nri(d.setup, nil)
	}
	d.own = block
	text := withBlock(string(owners[0].Bytes()), block)
	whole, err := tomledit.Parse(owners[0].Name(), []byte(text))
	if err != nil {
		return fmt.Errorf("add to %w: do it by hand: kata-qat provision runtime --print shows what", err)
	}
	edited[whole.Name()] = whole
	return nil
}

// ownerOf is the last file that has a plugin's section, or else the main one,
// without the block that an earlier run has put there.
func (d *design) ownerOf(plugin string) (*tomledit.Document, error) {
	if len(d.setup.files) == 0 {
		return tomledit.Parse(d.config, fmt.Appendf(nil, "version = %d\n", d.schema))
	}
	owner := d.setup.files[0]
	for _, f := range d.setup.files {
		if _, ok := f.Get("plugins", plugin); ok {
			owner = f
		}
	}
	return tomledit.Parse(owner.Name(), []byte(withoutBlock(string(owner.Bytes()))))
}

// takeOut refuses entries of somebody else's for our handlers, or takes them out
// if they are to be replaced.
func (m *machine) takeOut(c *setup, ours string, edited map[string]*tomledit.Document) error {
	for _, f := range c.files {
		if f.Name() == ours {
			continue
		}
		doc := edited[f.Name()]
		if doc == nil {
			var err error
			if doc, err = tomledit.Parse(f.Name(), []byte(withoutBlock(string(f.Bytes())))); err != nil {
				return err
			}
		}
		for _, h := range m.handlers {
			for _, plugin := range []string{containerdconfig.CRIv1, containerdconfig.CRIv2} {
				path := containerdconfig.Runtimes(plugin, h.name)
				if _, there := doc.Get(path...); !there {
					continue
				}
				if !m.Replace || c.rendered && f.Name() == c.config {
					return fmt.Errorf("%s:%d: %s is there already: take it out, choose another handler, or say --replace", f.Name(), doc.Line(path...), tomledit.Key(path...))
				}
				if err := doc.Remove(path...); err != nil {
					return err
				}
				edited[f.Name()] = doc
			}
		}
	}
	return nil
}

// base includes what k3s and RKE2 would have without a template (k3s pull request
// 7991, since 1.24.17, 1.25.13, 1.26.8, 1.27.5 and 1.28.1).
const base = "{{ template \"base\" . }}\n"

// designTemplate is for k3s and RKE2 from before their templates imported a
// directory (k3s pull request 13680, of February 2026), and where imports wipe.
func (m *machine) designTemplate(d *design) error {
	name := filepath.Join(d.dir, "config.toml.tmpl")
	if d.schema > 2 {
		name = filepath.Join(d.dir, "config-v3.toml.tmpl")
	}
	now, err := m.state(name)
	if err != nil {
		return err
	}
	text := string(now.Content)
	if now.Absent {
		text = base
	}
	rendered, err := tomledit.Parse(d.config, []byte(withoutBlock(string(d.setup.files[0].Bytes()))))
	if err != nil {
		return err
	}
	for _, h := range m.handlers {
		path := containerdconfig.Runtimes(d.criPlugin(), h.name)
		if _, there := rendered.Get(path...); there {
			return fmt.Errorf("%s:%d: %s is there already: take it out of %s, or choose another handler", d.config, rendered.Line(path...), tomledit.Key(path...), name)
		}
	}
	block := m.entries(d.setup)
	if _, there := rendered.Get("plugins", containerdconfig.NRI); there {
		if v, _ := rendered.Get("plugins", containerdconfig.NRI, "disable"); v == true {
			return fmt.Errorf("%s:%d: NRI is off, and a template can say so only once: take [%s] out of %s", d.config, rendered.Line("plugins", containerdconfig.NRI), tomledit.Key("plugins", containerdconfig.NRI), name)
		}
		d.notes = append(d.notes, fmt.Sprintf("NRI is configured in %s already: what it says stays", d.config))
	} else {
		block += "\n" + m.nri(d.setup, nil)
	}
	d.own = block
	d.files = append(d.files, file{name: name, content: withBlock(text, block), why: d.name + " makes containerd's configuration of this template when it starts"})
	return nil
}
