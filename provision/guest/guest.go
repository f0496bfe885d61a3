package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/initrd"
	"github.com/kata-qat/kata-qat/internal/kmod"
	"github.com/kata-qat/kata-qat/internal/rootimage"
	"github.com/kata-qat/kata-qat/internal/verity"
	"github.com/kata-qat/kata-qat/internal/version"
)

// Design is a guest that can be made: everything that could be wrong with what
// it is made from has been looked at, and nothing has been written.
type Design struct {
	// Manifest says what the guest will be, but for what is only known when it
	// is made: the root's digest and size. If Unchanged, it is that of the guest
	// that is there.
	Manifest *Manifest `json:"manifest,omitempty"`
	// Unchanged is set when the guest that is there was made from the same, and
	// is whole.
	Unchanged bool `json:"unchanged"`
	// Notes are what an administrator should know.
	Notes []string `json:"notes,omitempty"`
	// Commands are what is to be run before the guest can be designed: they
	// build its kernel or its drivers. With them nothing else is known.
	Commands [][]string `json:"commands,omitempty"`

	options  Options
	kernel   *Kernel
	contents *contents
	image    *rootimage.Image
	verity   verity.Params // of the base, if it is protected
}

// inputs are all that a guest is made from. Their digest is its ID.
type inputs struct {
	Tool          string
	Release       string
	KernelSHA256  string
	BaseSHA256    string
	Image         bool
	Verity        string
	Profile       string
	Families      []FamilyRecord
	AgentModules  []string
	ModuleSHA256  []string
	Indexes       string
	Busybox       string
	Configuration any
	Plain         bool
}

// Prepare looks at everything that a guest is to be made from and refuses what
// cannot work. It changes nothing; where a kernel or a driver has to be built
// first it does so only if build is set, in directories of its own below Out.
func Prepare(ctx context.Context, o Options, build bool) (*Design, error) {
	d, err := prepare(ctx, o, build)
	if err != nil {
		return nil, fmt.Errorf("prepare the guest: %w", err)
	}
	return d, nil
}

func prepare(ctx context.Context, o Options, build bool) (*Design, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	d := &Design{options: o}
	// Before anything that takes long.
	baseSHA256, baseSize, err := digestFile(o.Base)
	if err != nil {
		return nil, fmt.Errorf("read the base: %w", err)
	}
	if d.image, err = rootimage.Open(o.Base); err != nil && !errors.Is(err, rootimage.ErrNoImage) {
		return nil, fmt.Errorf("read the base: %w", err)
	}
	if d.image != nil && d.image.Protected() {
		if d.verity, err = d.image.Protection(o.BaseVerity); err != nil {
			return nil, err
		}
	} else if o.BaseVerity != "" {
		return nil, fmt.Errorf("parameters of dm-verity for the base %s, which it does not protect", o.Base)
	}
	if d.kernel, d.Commands, err = o.kernel(ctx, build); err != nil || len(d.Commands) > 0 {
		return d, err
	}
	modules, before, err := o.chooseModules(d.kernel)
	if err != nil {
		return nil, err
	}
	if d.Notes, err = d.kernel.notes(o.Profile); err != nil {
		return nil, err
	}
	m := o.manifest(d.kernel)
	m.Root = RootRecord{File: InitrdFile, Base: BaseRecord{Name: filepath.Base(o.Base), SHA256: baseSHA256, Size: baseSize}}
	if d.image != nil {
		m.Root.File = ImageFile
	}
	if m.ID, err = o.id(d.kernel, m, modules, d.protection()); err != nil {
		return nil, err
	}
	d.Manifest = m
	if have := o.current(m.ID); have != nil {
		d.Manifest, d.Unchanged = have, true
		return d, nil
	}
	b := base{image: d.image != nil, protected: d.protection() != ""}
	if b.protected {
		if err := d.image.Check(ctx, d.verity); err != nil {
			return nil, err
		}
	}
	if b.image {
		b.root, err = d.image.Probe(ctx, probed(d.kernel.Release))
	} else {
		b.root, err = initrd.ReadFile(ctx, o.Base)
	}
	if err != nil {
		return nil, err
	}
	if !b.image && b.root.SHA256 != baseSHA256 {
		return nil, fmt.Errorf("the base %s changed while it was read", o.Base)
	}
	m.Root.Base.Formats = b.root.Formats
	if d.contents, err = o.fill(d.kernel, b, modules, before); err != nil {
		return nil, err
	}
	d.contents.directories = b.root.Directories()
	m.KernelParams = append(m.KernelParams, d.contents.kernelParams...)
	for _, f := range d.contents.files {
		m.Files = append(m.Files, record(f))
	}
	for _, mod := range modules {
		m.ModuleBytes += mod.Size
	}
	return d, nil
}

// protection are the parameters of the base's dm-verity, "" if it has none.
func (d *Design) protection() string {
	if d.image == nil || !d.image.Protected() {
		return ""
	}
	return d.verity.String()
}

func (o *Options) manifest(k *Kernel) *Manifest {
	m := &Manifest{
		Version: manifestVersion, Tool: tool(), Profile: o.Profile, AgentModules: []string{}, Files: []FileRecord{},
		Kernel: KernelRecord{File: KernelFile, Release: k.Release, SHA256: k.SHA256, Size: k.Size},
	}
	for _, f := range o.Families {
		m.Families = append(m.Families, FamilyRecord{f.Name, f.Services})
	}
	for _, wanted := range o.agentModules() {
		name, params, _ := strings.Cut(wanted, " ")
		if !k.Tree.Builtin(name) {
			m.AgentModules = append(m.AgentModules, wanted)
			continue
		}
		for param := range strings.FieldsSeq(params) {
			m.KernelParams = append(m.KernelParams, kmod.Name(name)+"."+param)
		}
	}
	return m
}

// tool is what makes the guest.
func tool() string { return fmt.Sprintf("kata-qat %s (%s)", version.Version, version.Commit) }

func (o *Options) id(k *Kernel, m *Manifest, modules []*kmod.Module, verity string) (string, error) {
	in := inputs{
		Tool: m.Tool, Release: m.Kernel.Release, KernelSHA256: m.Kernel.SHA256, BaseSHA256: m.Root.Base.SHA256, Image: m.Root.File == ImageFile, Verity: verity,
		Profile: string(m.Profile), Families: m.Families, AgentModules: m.AgentModules, Configuration: o.Conf, Plain: o.Plain,
	}
	for _, mod := range modules {
		in.ModuleSHA256 = append(in.ModuleSHA256, mod.File+" "+mod.SHA256)
	}
	indexes, err := k.Tree.Indexes(modules)
	if err != nil {
		return "", err
	}
	all, err := json.Marshal(indexes) // which sorts them
	if err != nil {
		return "", err
	}
	in.Indexes = sum(all)
	// Whether the base needs it is not known yet.
	if f, err := o.busybox(); err == nil {
		in.Busybox = f.sha256
	}
	b, err := json.Marshal(in)
	return sum(b)[:16], err
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// current is the manifest of the guest that is there, if it was made from what
// the ID stands for and is whole.
func (o *Options) current(id string) *Manifest {
	target, err := os.Readlink(filepath.Join(o.Out, Current))
	if err != nil || target != id {
		return nil
	}
	m, err := checkFiles(filepath.Join(o.Out, id))
	if err != nil || m.ID != id {
		return nil
	}
	return m
}
