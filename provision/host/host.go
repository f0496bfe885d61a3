// Package host holds the steps that turn a machine with QAT cards into one whose
// virtual functions can be handed to VMs: kernel parameters, modules, services,
// SR-IOV and VFIO. It knows what such a machine must be like and how to get
// there; in what order, how it is journaled and undone is package plan's.
package host

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// Options say what machine is to be made into what.
type Options struct {
	Root   string // where the machine's root is
	Config config.Provision
	// AllowNoIOMMU goes on without an IOMMU.
	AllowNoIOMMU bool
	// BootFlags are the flags of this run that the boot-time unit must repeat.
	BootFlags []string
	// Runner runs programs of the machine; nil for a runner of Root.
	Runner *Runner
	// Write writes an attribute of sysfs; nil for the file itself. Tests put a
	// kernel here.
	Write func(path, value string) error
}

// Steps returns the steps that provision a machine, in their order.
func Steps(o Options) []plan.Step {
	m := newMachine(o)
	return []plan.Step{
		&preflight{m},
		&driverRelease{m},
		&commandLine{m},
		&modules{m},
		&nodeRule{m},
		&bootUnit{m},
		&services{m},
		&virtualFunctions{m},
	}
}

// target is a PF and the rule that it is to follow.
type target struct {
	*qat.PF
	rule *config.PFRule
}

// targets are the PFs that a rule matches, by address. That there are none is an
// error that says what there is.
func (m *machine) targets() ([]target, error) {
	inv, err := m.inventory()
	if err != nil {
		return nil, err
	}
	var ts []target
	for i := range inv.PFs {
		pf := &inv.PFs[i]
		if rule := m.config.RuleFor(pf); rule != nil {
			ts = append(ts, target{pf, rule})
		}
	}
	if len(ts) > 0 {
		return ts, nil
	}
	if len(inv.PFs) == 0 {
		return nil, plan.Absent(errors.New("there is no QAT physical function on the PCI bus: expected at least one: is it enabled in the firmware (BIOS)?"))
	}
	return nil, fmt.Errorf("no rule of provision.pf matches any of the %d QAT PFs, from %s to %s: see kata-qat devices", len(inv.PFs), inv.PFs[0].Address, inv.PFs[len(inv.PFs)-1].Address)
}

// families are the families of the targets, oldest first.
func families(ts []target) (fs []*qat.Family) {
	for i := range qat.Families {
		if f := &qat.Families[i]; slices.ContainsFunc(ts, func(t target) bool { return t.Family.Name == f.Name }) {
			fs = append(fs, f)
		}
	}
	return fs
}
