// Package guest makes the kernel and the root that a Kata VM boots, such that a
// QAT VF that is passed to it is usable: the kernel and its modules come from an
// installed distribution kernel or are built, and the root is Kata's own with
// the modules, the devices' configuration files and what loads them put in.
//
// Nothing that is there is changed: everything is made anew beside it and takes
// its place at one stroke, kernel, root and manifest together. The same inputs
// give the same bytes.
package guest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/devconf"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/qat"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
)

// DefaultOut is where the guests of a machine are, each profile's in a directory
// of its own.
const DefaultOut = "/var/lib/kata-qat/guest"

// VFs is how many VFs of a family one guest can have, and so how many
// configuration files it needs of each: Kata has no more root ports.
const VFs = 16

// Options say what guest to make.
type Options struct {
	// Root is the machine's root directory, with boot and lib/modules in it.
	Root string
	// Kernel is an installed kernel: its release, or a directory that has it;
	// "" is the kernel that runs. With Source it is not used.
	Kernel string
	// Source is a kernel tree or an archive of one to build the kernel from.
	Source string
	// Config is the file that the configuration of Source starts from, "" for
	// the kernel's own default for a guest.
	Config string
	// Base is Kata's initrd or image.
	Base string
	// BaseVerity are the parameters of a base that dm-verity protects, as Kata's
	// kernel_verity_params has them; "" looks beside it.
	BaseVerity string
	// Out is the directory in which the guest is kept.
	Out     string
	Profile edits.Profile
	// Families are those of the VFs that the guest is to serve.
	Families []Family
	// Modules are further modules of the kernel to put in.
	Modules []string
	// DriverArchive is the vendor's driver package, and DriverSHA256 its digest
	// in hexadecimal.
	DriverArchive, DriverSHA256 string
	// Busybox is a statically linked busybox for a base without modprobe; ""
	// looks where distributions have it.
	Busybox string
	// Plain leaves what is appended to an initrd uncompressed.
	Plain bool
	// Conf is for the configuration files; the zero value stands for the
	// defaults.
	Conf devconf.Options
	// Log gets what the compiler says; nil: nobody.
	Log io.Writer
	// Progress hears what is being done, and of how many steps how many are; nil
	// for nobody. of is 0 where it is not known.
	Progress func(what string, done, of int)
}

// Family is a device family and the services that its PFs are configured for.
type Family struct {
	*qat.Family
	Services qat.Services
}

// ParseFamily reads "c62x" or "4xxx=sym;asym". A family whose services can be
// set and are not named has "sym;asym".
func ParseFamily(s string) (Family, error) {
	name, services, named := strings.Cut(s, "=")
	f := Family{Family: qat.FamilyByName(name)}
	if f.Family == nil {
		known := make([]string, len(qat.Families))
		for i, k := range qat.Families {
			known[i] = k.Name
		}
		return f, fmt.Errorf("QAT family %q: expected one of %s", name, strings.Join(known, ", "))
	}
	if !named && f.Generation >= 4 {
		services, named = "sym;asym", true
	}
	if !named {
		return f, nil
	}
	var err error
	f.Services, err = qat.ParseServices(f.Family, services)
	return f, err
}

// FamiliesOf are the families of a machine's devices, and of each the services
// of its first PF.
func FamiliesOf(inv *qat.Inventory) []Family {
	var all []Family
	for i := range inv.PFs {
		pf := &inv.PFs[i]
		if slices.ContainsFunc(all, func(f Family) bool { return f.Name == pf.Family.Name }) {
			continue
		}
		f := Family{pf.Family, pf.Services}
		if f.Generation >= 4 && f.Services == "" {
			f.Services = "sym;asym"
		}
		all = append(all, f)
	}
	return all
}

var moduleName = lazyregexp.New(`^[A-Za-z0-9_-]+$`)

func (o *Options) complete() error {
	if _, err := edits.ParseProfile(string(o.Profile)); err != nil {
		return err
	}
	switch {
	case o.Base == "":
		return errors.New("no base for the guest's root: name Kata's initrd or image, such as /opt/kata/share/kata-containers/kata-containers-initrd.img")
	case len(o.Families) == 0:
		return errors.New("no QAT family for the guest to serve: name one, such as c62x")
	case o.Kernel != "" && o.Source != "":
		return errors.New("both an installed kernel and a kernel source: expected one of them")
	case o.Config != "" && o.Source == "":
		return errors.New("a kernel configuration without a kernel source: an installed kernel has its own")
	case (o.DriverArchive == "") != (o.DriverSHA256 == ""):
		return errors.New("a driver archive needs its SHA-256 beside it, and the other way round: take it from where the archive is published")
	case o.DriverArchive != "" && o.Profile != edits.ProfileGuestKernel:
		return fmt.Errorf("a driver archive in profile %s: only the guest's kernel in profile %s has a QAT driver", o.Profile, edits.ProfileGuestKernel)
	}
	if b, err := hex.DecodeString(o.DriverSHA256); err != nil || len(b) != 0 && len(b) != 32 {
		return fmt.Errorf("SHA-256 %q: expected 64 hexadecimal digits", o.DriverSHA256)
	}
	for i, f := range o.Families {
		if slices.ContainsFunc(o.Families[:i], func(other Family) bool { return other.Conf == f.Conf && other.Services != f.Services }) {
			return fmt.Errorf("family %s with services %q: another family has the same configuration files with other services: the guest has one file %s", f.Name, f.Services, devconf.Name(f.Family, 0))
		}
	}
	for _, m := range o.Modules {
		if !moduleName.MatchString(m) {
			return fmt.Errorf("module %q: expected a module's name", m)
		}
	}
	o.DriverSHA256 = strings.ToLower(o.DriverSHA256)
	o.Root = filepath.Join("/", o.Root)
	if o.Out == "" {
		o.Out = filepath.Join(o.Root, DefaultOut, string(o.Profile))
	}
	if o.Conf.Section == "" {
		o.Conf = devconf.DefaultOptions()
	}
	for _, name := range []*string{&o.Out, &o.Base} {
		var err error
		if *name, err = filepath.Abs(*name); err != nil {
			return err
		}
	}
	return nil
}

func (o *Options) progress(what string, done, of int) {
	if o.Progress != nil {
		o.Progress(what, done, of)
	}
}

// vfioModules give a VF to a program of the container. Linux asks for the last
// one by itself only where modprobe works at that moment.
var vfioModules = []string{"vfio", "vfio-pci", "vfio_iommu_type1"}

// denyListOption makes vfio-pci take the devices of its deny-list, VFs included
// (Linux, drivers/vfio/pci/vfio_pci.c).
const denyListOption = "disable_denylist=1"

// agentModules are the modules that Kata's agent is to load, as its
// configuration's kernel_modules has them: names, perhaps with parameters.
func (o *Options) agentModules() []string {
	if o.Profile == edits.ProfileGuestKernel {
		var all []string
		for _, f := range o.Families {
			if !slices.Contains(all, f.VFModule) {
				all = append(all, f.VFModule)
			}
		}
		return all
	}
	all := slices.Clone(vfioModules)
	if slices.ContainsFunc(o.Families, func(f Family) bool { return f.DenyListed }) {
		all[1] += " " + denyListOption
	}
	return all
}

// need is what Kata itself needs of the guest's kernel, whether the modules are
// loaded before the agent starts or part of the kernel.
type need struct {
	modules []string // any of them
	why     string
	// optional is what a guest can do without, or Kata's configuration decides.
	optional bool
}

// kataNeeds is what Kata's own guest kernel has built in (kata-containers 4.1,
// tools/packaging/kernel/configs/fragments) and distributions have as modules.
var kataNeeds = []need{
	{modules: []string{"virtio_pci"}, why: "every device of the VM"},
	{modules: []string{"vmw_vsock_virtio_transport"}, why: "the runtime talks to the agent over it"},
	{modules: []string{"virtiofs"}, why: "the containers' root file systems come over it"},
	{modules: []string{"virtio_net"}, why: "the pod's network"},
	{modules: []string{"overlay"}, why: "layers of container images", optional: true},
	{modules: []string{"virtio_blk"}, why: "block devices", optional: true},
	{modules: []string{"virtio_scsi"}, why: "block devices", optional: true},
	{modules: []string{"sd_mod"}, why: "disks of virtio_scsi", optional: true},
	{modules: []string{"virtio_console"}, why: "the agent's log", optional: true},
	{modules: []string{"ext4"}, why: "block volumes", optional: true},
	{modules: []string{"virtio-rng"}, why: "entropy", optional: true},
	{modules: []string{"virtio_balloon"}, why: "memory that the VM gives back", optional: true},
	{modules: []string{"virtio_mem"}, why: "memory that is added", optional: true},
	{modules: []string{"nd_pmem"}, why: "persistent memory", optional: true},
	{modules: []string{"nfit"}, why: "persistent memory", optional: true},
}

// imageNeeds is what a kernel that has no initrd needs to find its root in an
// image; modules would come too late.
var imageNeeds = []need{
	{modules: []string{"ext4"}, why: "the image's file system"},
	{modules: []string{"virtio_pci"}, why: "the image's disk"},
	{modules: []string{"virtio_blk", "nd_pmem"}, why: "the image's disk"},
}

// early returns the modules to load before the agent starts.
func early(tree *kmod.Tree) ([]string, error) {
	var all []string
	for _, n := range kataNeeds {
		name := n.modules[0]
		switch {
		case tree.Builtin(name):
		case tree.Has(name):
			all = append(all, name)
		case !n.optional:
			return nil, fmt.Errorf("kernel %s has no %s, neither as a module nor built in, and a Kata guest needs it: %s: choose another kernel, or one that is built from its source", tree.Release, name, n.why)
		}
	}
	return all, nil
}

// verityNeeds is what finding a root that dm-verity protects takes besides: the
// runtime has it set up by dm-mod.create= of the command line.
var verityNeeds = []need{
	{modules: []string{"dm_mod"}, why: "dm-verity"},
	{modules: []string{"dm_verity"}, why: "dm-verity"},
}

func checkImage(k *Kernel, protected bool) error {
	tree, needs := k.Tree, imageNeeds
	if protected {
		needs = slices.Concat(imageNeeds, verityNeeds)
	}
	for _, n := range needs {
		if !slices.ContainsFunc(n.modules, tree.Builtin) {
			return fmt.Errorf("kernel %s has no %s built in, which it needs to find %s before it can load a module: use Kata's initrd as the base, or build the kernel from its source", tree.Release, strings.Join(n.modules, " or "), n.why)
		}
	}
	if protected && k.Config != "" {
		config, err := kernelconfig.ReadConfig(k.Config)
		if err != nil {
			return err
		}
		if v, _ := config.Value("DM_INIT"); v != "y" {
			return fmt.Errorf("kernel %s is without CONFIG_DM_INIT, which sets up dm-verity before there is a root: use Kata's initrd as the base, or build the kernel from its source", tree.Release)
		}
	}
	return nil
}
