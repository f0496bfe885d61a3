package config

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Provision says what kata-qat provision makes of a machine.
type Provision struct {
	// PF are rules for the physical functions; of those that match a PF the
	// first counts. A PF that none matches is left alone. Without any rule
	// every PF gets all its VFs on vfio-pci and keeps its services.
	PF []PFRule `toml:"pf"`
	// KernelCommandLine lets the boot loader's configuration be changed when
	// the IOMMU is not switched on.
	KernelCommandLine bool `toml:"kernel_command_line"`
	// BootUnit applies everything again at each boot: VFs do not outlive one.
	BootUnit bool `toml:"boot_unit"`
	// NodeGroup is the group that may open the VFs' device nodes besides root;
	// "" for none. "kvm" is for a hypervisor that does not run as root.
	NodeGroup string `toml:"node_group"`
	// Driver says where the PFs' drivers and firmware come from.
	Driver Driver `toml:"driver"`
}

// PFRule is what physical functions are to be like.
type PFRule struct {
	Match Match `toml:"match"`
	// Exclude leaves these PFs alone.
	Exclude bool `toml:"exclude"`
	// VFs is how many there are to be at least: drivers of the kernel's own
	// tree enable all or none. Unset means all, 0 none.
	VFs *int `toml:"vfs"`
	// Services, for Gen4 and later: "sym;asym". "" leaves them as they are.
	Services string `toml:"services"`
	// Driver that the VFs are bound to: "vfio-pci", or "qat_vfio_pci", which
	// adds live migration and is used where the kernel has it for the device.
	Driver string `toml:"driver"`
	// AutoReset lets the PF's driver reset a device that hangs (Linux 6.8).
	// Unset leaves it as it is.
	AutoReset *bool `toml:"auto_reset"`
}

// Match chooses physical functions: those for which everything that is set here
// is so. An empty one chooses all.
type Match struct {
	Address string `toml:"address"` // "0000:6b:00.0"
	Family  string `toml:"family"`  // "4xxx"
	NUMA    *int   `toml:"numa"`
}

// Driver says where the PFs' drivers and firmware come from.
type Driver struct {
	// Source is "" for what the machine has, "packages" for the distribution's
	// packages, by its package manager, or "archive" for a release that is
	// built here.
	Source string `toml:"source"`
	// Packages to install; without any, those that are known to hold modules
	// and firmware in this distribution.
	Packages []string `toml:"packages"`
	// Archive is the release: an absolute path to a local .tar.gz, .tar.xz,
	// .tar.zst or .tar.
	Archive string `toml:"archive"`
	// SHA256 of the archive, in hexadecimal.
	SHA256 string `toml:"sha256"`
	// Configure are the arguments of the release's configure script.
	Configure []string `toml:"configure"`
}

// The sources of drivers.
const (
	DriverPackages = "packages"
	DriverArchive  = "archive"
)

// DefaultProvision changes what must be changed for all QAT devices.
func DefaultProvision() Provision {
	return Provision{
		KernelCommandLine: true,
		BootUnit:          true,
		Driver:            Driver{Configure: []string{"--enable-icp-sriov=host"}},
	}
}

// RuleFor returns the rule for a PF, nil if it is to be left alone.
func (p *Provision) RuleFor(pf *qat.PF) *PFRule {
	if len(p.PF) == 0 {
		return &PFRule{}
	}
	for i := range p.PF {
		if r := &p.PF[i]; r.Match.matches(pf) {
			if r.Exclude {
				return nil
			}
			return r
		}
	}
	return nil
}

func (m *Match) matches(pf *qat.PF) bool {
	return (m.Address == "" || strings.EqualFold(m.Address, string(pf.Address))) &&
		(m.Family == "" || m.Family == pf.Family.Name) &&
		(m.NUMA == nil || *m.NUMA == pf.NUMANode)
}

var (
	groupName   = lazyregexp.New(`^[a-z_][a-z0-9_-]{0,31}$`)
	packageName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9+._:~-]*$`)
	sha256Sum   = lazyregexp.New(`^[0-9a-fA-F]{64}$`)
)

// Check refuses what cannot be meant.
func (p *Provision) Check() error {
	for i := range p.PF {
		if err := p.PF[i].check(); err != nil {
			return fmt.Errorf("provision.pf, rule %d: %w", i+1, err)
		}
	}
	if p.NodeGroup != "" && !groupName.MatchString(p.NodeGroup) {
		return fmt.Errorf("provision.node_group %q: expected the name of a group, for example kvm", p.NodeGroup)
	}
	if err := p.Driver.check(); err != nil {
		return fmt.Errorf("provision.driver: %w", err)
	}
	return nil
}

func (r *PFRule) check() error {
	if a := r.Match.Address; a != "" {
		if _, err := qat.ParseAddress(a); err != nil {
			return fmt.Errorf("match.address: %w", err)
		}
	}
	family := qat.FamilyByName(r.Match.Family)
	if r.Match.Family != "" && family == nil {
		return fmt.Errorf("match.family %q: expected a family of QAT devices, from %s to %s", r.Match.Family, qat.Families[0].Name, qat.Families[len(qat.Families)-1].Name)
	}
	if err := checkServices(r.Services, family); err != nil {
		return err
	}
	if r.VFs != nil && *r.VFs < 0 {
		return fmt.Errorf("vfs %d: expected 0 or more", *r.VFs)
	}
	switch r.Driver {
	case "", "vfio-pci", "qat_vfio_pci":
		return nil
	}
	return fmt.Errorf("driver %q: expected vfio-pci or qat_vfio_pci", r.Driver)
}

// checkServices refuses what the family cannot have or, of a rule for whichever,
// what none can: that is no matter of what is in the machine.
func checkServices(services string, family *qat.Family) error {
	if services == "" {
		return nil
	}
	if family != nil {
		_, err := qat.ParseServices(family, services)
		return err
	}
	var err error
	for i := range slices.Backward(qat.Families) { // the newest knows most
		_, e := qat.ParseServices(&qat.Families[i], services)
		if e == nil {
			return nil
		}
		if err == nil {
			err = e
		}
	}
	return err
}

func (d *Driver) check() error {
	switch d.Source {
	case "", DriverPackages:
		if d.Archive != "" || d.SHA256 != "" {
			return fmt.Errorf("archive and sha256 are for source = %q", DriverArchive)
		}
	case DriverArchive:
		if !path.IsAbs(d.Archive) {
			return fmt.Errorf("archive %q: expected the absolute path of a local archive", d.Archive)
		}
		if !sha256Sum.MatchString(d.SHA256) {
			return errors.New("sha256: expected the archive's SHA-256, 64 hexadecimal digits")
		}
	default:
		return fmt.Errorf("source %q: expected %q, %q or nothing", d.Source, DriverPackages, DriverArchive)
	}
	for _, p := range d.Packages {
		if !packageName.MatchString(p) {
			return fmt.Errorf("packages: %q is no name of a package", p)
		}
	}
	return nil
}
