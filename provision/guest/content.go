package guest

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/initrd"
	"github.com/kata-qat/kata-qat/internal/kmod"
)

// Where things are in the guest.
const (
	modulesPath   = "lib/modules"
	modprobePath  = "sbin/modprobe" // where Kata's agent and the kernel look for it
	shellPath     = "bin/sh"
	hookPath      = "sbin/kata-qat-init"
	busyboxPath   = "usr/lib/kata-qat/busybox"
	markerPath    = "usr/lib/kata-qat/guest.json"
	optionsPath   = "etc/modprobe.d/kata-qat.conf"
	loadPath      = "etc/modules-load.d/kata-qat.conf"
	udevPath      = "usr/lib/udev/rules.d"
	udevRulesPath = udevPath + "/60-kata-qat.rules"
	systemdPath   = "usr/lib/systemd/systemd"
)

// file is one file to put into the guest's root.
type file struct {
	path    string // relative to the root
	perm    fs.FileMode
	target  string                 // of a link
	content func() ([]byte, error) // of anything else
	sha256  string
	size    int64
}

func text(path string, perm fs.FileMode, content string) file {
	return data(path, perm, []byte(content))
}

func data(path string, perm fs.FileMode, content []byte) file {
	sum := sha256.Sum256(content)
	return file{path: path, perm: perm, content: func() ([]byte, error) { return content, nil }, sha256: hex.EncodeToString(sum[:]), size: int64(len(content))}
}

// base is what matters of the root that the files go into.
type base struct {
	root      *initrd.Root
	image     bool
	protected bool // by dm-verity
}

// has tells whether the base has a file, not a directory, of that name.
func (b base) has(name string) (bool, error) {
	_, e, err := b.root.Lookup(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && e.Mode&cpio.TypeMask == cpio.TypeRegular, err
}

// contents are the files to put into a base, by path, and what else the guest
// needs to be told.
type contents struct {
	files        []file
	kernelParams []string
	early        []string
	// directories are those that the base has, and whatever else there is.
	directories []string
	modules     []*kmod.Module
}

// marker says in a root what was put into it, so that none is used as a base
// again.
type marker struct {
	Release  string        `json:"kernel"`
	Profile  edits.Profile `json:"profile"`
	Families []string      `json:"families"`
}

// chooseModules are the modules that go in, with all that they need.
func (o *Options) chooseModules(k *Kernel) (modules []*kmod.Module, before []string, err error) {
	if before, err = early(k.Tree); err != nil {
		return nil, nil, err
	}
	names := slices.Clone(before)
	for _, m := range slices.Concat(o.agentModules(), o.Modules) {
		name, _, _ := strings.Cut(m, " ")
		if !k.Tree.Has(name) {
			return nil, nil, o.missing(k, name)
		}
		names = append(names, name)
	}
	modules, err = k.Tree.Closure(names...)
	return modules, before, err
}

func (o *Options) missing(k *Kernel, name string) error {
	for _, f := range o.Families {
		switch {
		case f.VFModule != name:
		case f.VFInTree:
			return fmt.Errorf("family %s: Linux %s is without %s: choose a kernel that has CONFIG_CRYPTO_DEV_QAT_*VF, or build one from its source, or use profile %s", f.Name, k.Release, name, edits.ProfileVFIO)
		default:
			return fmt.Errorf("family %s: Linux %s is without %s, which only the vendor's drivers have: name their archive, or use profile %s", f.Name, k.Release, name, edits.ProfileVFIO)
		}
	}
	return fmt.Errorf("module %s: Linux %s has none such, neither as a module nor built in: choose another kernel, or build one from its source", name, k.Release)
}

// fill decides what goes into a base.
func (o *Options) fill(k *Kernel, b base, modules []*kmod.Module, before []string) (*contents, error) {
	c := &contents{early: before, modules: modules}
	if err := o.checkBase(k, b); err != nil {
		return nil, err
	}
	for _, m := range modules {
		c.files = append(c.files, file{path: path.Join(modulesPath, k.Release, m.File), perm: 0o644, content: m.Content, sha256: m.SHA256, size: m.Size})
	}
	indexes, err := k.Tree.Indexes(modules)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(indexes)) {
		c.files = append(c.files, data(path.Join(modulesPath, k.Release, name), 0o644, indexes[name]))
	}
	confs, err := o.confFiles()
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, confs...)
	c.files = append(c.files, text(optionsPath, 0o644, o.modprobeOptions()))
	if len(before) > 0 {
		c.files = append(c.files, text(loadPath, 0o644, "# Made by kata-qat: what Kata's agent needs and Linux "+k.Release+" has as modules.\n"+strings.Join(before, "\n")+"\n"))
	}
	programs, err := o.programs(b, c)
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, programs...)
	if rules := o.udevRules(); rules != "" {
		if _, e, err := b.root.Lookup(udevPath); err == nil && e.Mode&cpio.TypeMask == cpio.TypeDir {
			c.files = append(c.files, text(udevRulesPath, 0o644, rules))
		}
	}
	mark, err := o.marker(k)
	if err != nil {
		return nil, err
	}
	c.files = append(c.files, data(markerPath, 0o644, mark))
	return c, c.resolve(b)
}

// resolve gives the files the names that they really have in the base: where
// /lib is a link to usr/lib, a directory lib in an archive would replace it.
func (c *contents) resolve(b base) error {
	seen := map[string]bool{}
	for i := range c.files {
		name, err := b.root.Resolve(c.files[i].path)
		if err != nil {
			return fmt.Errorf("put %s into the base: %w", c.files[i].path, err)
		}
		if seen[name] {
			return fmt.Errorf("put %s into the base: there are two files of that name", name)
		}
		seen[name], c.files[i].path = true, name
	}
	slices.SortFunc(c.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return nil
}

func (o *Options) checkBase(k *Kernel, b base) error {
	if _, _, err := b.root.Lookup(markerPath); err == nil {
		return fmt.Errorf("the base %s was made by kata-qat: name the one that it was made from", o.Base)
	}
	if _, _, err := b.root.Lookup(path.Join(modulesPath, k.Release, "modules.dep")); err == nil {
		return fmt.Errorf("the base %s has modules of Linux %s already, which would no longer be found: name a base without, such as Kata's own", o.Base, k.Release)
	}
	if b.image {
		return o.checkImageBase(k, b)
	}
	if _, _, err := b.root.Lookup("init"); err != nil {
		return fmt.Errorf("the base %s has no /init: expected the initrd of a Kata guest: %w", o.Base, err)
	}
	return nil
}

// checkImageBase refuses an image that a kernel could not start from, or whose
// agent would start without the modules it needs: only systemd reads
// modules-load.d.
func (o *Options) checkImageBase(k *Kernel, b base) error {
	if err := checkImage(k, b.protected); err != nil {
		return err
	}
	systemd, err := b.has(systemdPath)
	if err != nil || systemd {
		return err
	}
	for _, n := range kataNeeds {
		if !n.optional && !k.Tree.Builtin(n.modules[0]) {
			return fmt.Errorf("kernel %s has %s as a module, and the image %s no systemd to load it before the agent starts, which needs it: %s: use Kata's initrd as the base, or build the kernel from its source", k.Release, n.modules[0], o.Base, n.why)
		}
	}
	return nil
}

// confFiles are the configuration files of every VF that the guest can get.
func (o *Options) confFiles() ([]file, error) {
	var all []file
	for i, f := range o.Families {
		if slices.ContainsFunc(o.Families[:i], func(other Family) bool { return other.Conf == f.Conf }) {
			continue
		}
		conf, err := devconf.ForVF(f.Family, f.Services, o.Conf)
		if err != nil {
			return nil, err
		}
		for n := range VFs {
			all = append(all, data(strings.TrimPrefix(devconf.GuestPath(f.Family, n), "/"), 0o644, conf.Render()))
		}
	}
	return all, nil
}

// modprobeOptions is the file for modprobe.d.
func (o *Options) modprobeOptions() string {
	var b strings.Builder
	b.WriteString("# Made by kata-qat for profile " + string(o.Profile) + ".\n")
	if o.Profile != edits.ProfileVFIO {
		return b.String()
	}
	if slices.ContainsFunc(o.Families, func(f Family) bool { return f.DenyListed }) {
		b.WriteString("# vfio-pci refuses these devices by itself, VFs included.\noptions vfio-pci " + denyListOption + "\n")
	}
	b.WriteString("# The container has the VF, so no driver of the kernel may take it.\n")
	var seen []string
	for _, f := range o.Families {
		if !slices.Contains(seen, f.VFModule) {
			seen = append(seen, f.VFModule)
			b.WriteString("blacklist " + f.VFModule + "\n")
		}
	}
	return b.String()
}

// udevRules are for a base with udev; Kata's agent makes device nodes by itself.
func (o *Options) udevRules() string {
	if o.Profile != edits.ProfileGuestKernel {
		return ""
	}
	// The nodes of the vendor's drivers (QAT20, quickassist/build_system).
	return "# Made by kata-qat: the nodes of the QAT drivers are root's and their group's.\n" +
		`KERNEL=="qat_adf_ctl|qat_dev_processes|usdm_drv", MODE="0660"` + "\n"
}

func (o *Options) marker(k *Kernel) ([]byte, error) {
	m := marker{Release: k.Release, Profile: o.Profile}
	for _, f := range o.Families {
		m.Families = append(m.Families, f.Name)
	}
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// programs are modprobe where the base has none, and the hook that loads the
// modules which the agent needs to start.
func (o *Options) programs(b base, c *contents) ([]file, error) {
	hasModprobe, err := b.has(modprobePath)
	if err != nil {
		return nil, err
	}
	hasShell, err := b.has(shellPath)
	if err != nil {
		return nil, err
	}
	hook := len(c.early) > 0 && !b.image
	var all []file
	if !hasModprobe || hook && !hasShell {
		f, err := o.busybox()
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	if !hasModprobe {
		all = append(all, file{path: modprobePath, perm: 0o777, target: "/" + busyboxPath})
	}
	if hook {
		shell := "/" + shellPath
		if !hasShell {
			shell = "/" + busyboxPath + " sh"
		}
		all = append(all, text(hookPath, 0o755, hookScript(shell, c.early)))
		c.kernelParams = append(c.kernelParams, "rdinit=/"+hookPath)
	}
	return all, nil
}

// hookScript runs in place of the base's init, which it becomes. It mounts
// nothing, so that init finds the machine as the kernel leaves it.
func hookScript(shell string, modules []string) string {
	return "#!" + shell + `
# Made by kata-qat: loads what Kata's agent needs and this kernel has as modules,
# then becomes the init that was there before.
for module in ` + strings.Join(modules, " ") + `; do
	/` + modprobePath + ` "$module" || echo "kata-qat: module $module is not loaded" >&2
done
exec /init "$@"
`
}

// busyboxes are where distributions have one that is linked statically; Alpine
// and Debian's busybox-static.
var busyboxes = []string{"bin/busybox", "usr/bin/busybox", "bin/busybox.static", "usr/lib/busybox/bin/busybox"}

const maxBusybox = 64 << 20

func (o *Options) busybox() (file, error) {
	if o.Busybox != "" {
		return readBusybox(o.Busybox)
	}
	var errs []error
	for _, name := range busyboxes {
		f, err := readBusybox(filepath.Join(o.Root, name))
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return file{}, errors.Join(append(errs, fmt.Errorf("the base %s has no modprobe, and this machine no busybox to give it: install busybox-static, or name a busybox that is linked statically", o.Base))...)
}

func readBusybox(name string) (file, error) {
	st, err := os.Stat(name)
	if err != nil {
		return file{}, fmt.Errorf("read busybox: %w", err)
	}
	if st.Size() > maxBusybox {
		return file{}, fmt.Errorf("read busybox %s: it has %d bytes, expected at most %d", name, st.Size(), int64(maxBusybox))
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return file{}, fmt.Errorf("read busybox: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return file{}, fmt.Errorf("read busybox %s: %w: expected a program", name, err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return file{}, fmt.Errorf("busybox %s needs libraries, which the guest may not have: expected one that is linked statically, such as Debian's busybox-static", name)
	}
	for _, applet := range []string{"modprobe", "sh"} { // the table of names is plain text
		if !bytes.Contains(b, []byte("\x00"+applet+"\x00")) {
			return file{}, fmt.Errorf("busybox %s has no %s: expected one that has, such as Debian's busybox-static", name, applet)
		}
	}
	return data(busyboxPath, 0o755, b), nil
}

// probed are the names of an image that what goes into it depends on.
func probed(release string) []string {
	return []string{
		path.Join(modulesPath, release, "modules.dep"), modprobePath, shellPath, busyboxPath, markerPath,
		optionsPath, loadPath, udevRulesPath, systemdPath,
	}
}
