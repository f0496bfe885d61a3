package host

import (
	"context"
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// What the steps do on a machine whose cards are not known yet: files as they
// would be but for what depends on a card's family, and of the cards what the
// rules say. What an outline cannot find out it leaves out.
var (
	_ plan.Outliner = (*driverRelease)(nil)
	_ plan.Outliner = (*commandLine)(nil)
	_ plan.Outliner = (*modules)(nil)
	_ plan.Outliner = (*nodeRule)(nil)
	_ plan.Outliner = (*bootUnit)(nil)
	_ plan.Outliner = (*services)(nil)
	_ plan.Outliner = (*virtualFunctions)(nil)
)

func (s *driverRelease) Outline(context.Context) []plan.Change {
	switch s.config.Driver.Source {
	case "":
		return []plan.Change{{Object: "drivers and firmware", Why: "those that the machine has: no other release is asked for"}}
	case config.DriverArchive:
		return []plan.Change{{Object: s.config.Driver.Archive, To: "built and installed", Why: "provision.driver asks for this release"}}
	}
	m, packages, err := s.distribution(lack{modules: []string{"of the cards"}, firmware: []string{"of the cards"}})
	if err != nil {
		return nil
	}
	return []plan.Change{{Object: "packages " + strings.Join(packages, " "), To: "installed by " + m.program, Why: "if drivers or firmware of the cards are not there"}}
}

func (s *commandLine) Outline(ctx context.Context) []plan.Change {
	if !s.config.KernelCommandLine {
		return nil
	}
	cmdline, err := s.text("/proc/cmdline")
	if err != nil {
		return nil
	}
	missing := lacks(cmdline, s.parameters(nil))
	if len(missing) == 0 {
		return nil
	}
	if loader, err := s.loader(ctx); err == nil && loader != nil {
		if changes, err := loader.plan(missing); err == nil {
			return changes
		}
	}
	return []plan.Change{{Object: "the kernel's command line", To: strings.Join(texts(missing), " "), Why: missing[0].why + "; no boot loader is known here, so this is for you to add"}}
}

func (s *modules) Outline(context.Context) []plan.Change {
	changes, err := s.planFiles(s.files(nil)...)
	if err != nil {
		return nil
	}
	for _, l := range s.loads(nil) {
		changes = append(changes, plan.Change{Object: "module " + l.name, From: "not loaded", To: "loaded", Why: l.why})
	}
	return append(changes, plan.Change{Object: "module of the cards' driver", To: "loaded", Why: "where a card has no driver"})
}

func (s *nodeRule) Outline(context.Context) []plan.Change {
	f := s.rule(nil)
	return []plan.Change{{Object: f.name, To: "owner and mode of the nodes of IOMMU groups that hold VFs of the cards", Why: f.why}}
}

// Outline is the plan: the unit does not depend on cards.
func (s *bootUnit) Outline(ctx context.Context) []plan.Change {
	if why := s.impossible(); why != "" {
		return []plan.Change{{Object: unitName, Why: "none: " + why}}
	}
	changes, err := s.Plan(ctx)
	if err != nil {
		return nil
	}
	return changes
}

// rules are those for PFs that are not left alone, each with the PFs that it is
// for.
func (m *machine) rules() (all []config.PFRule, which []string) {
	rules := m.config.PF
	if len(rules) == 0 {
		rules = []config.PFRule{{}}
	}
	for _, r := range rules {
		if r.Exclude {
			continue
		}
		name := "each PF"
		if r.Match.Family != "" {
			name += " of " + r.Match.Family
		}
		if r.Match.NUMA != nil {
			name += fmt.Sprintf(" on NUMA node %d", *r.Match.NUMA)
		}
		if r.Match.Address != "" {
			name = "PF " + r.Match.Address
		}
		all, which = append(all, r), append(which, name)
	}
	return all, which
}

func (s *services) Outline(context.Context) (changes []plan.Change) {
	rules, which := s.rules()
	for i, r := range rules {
		if r.Services != "" {
			changes = append(changes, plan.Change{Object: attrServices + " of " + which[i], To: r.Services, Why: "provision.pf asks for it"})
		}
		if r.AutoReset != nil {
			changes = append(changes, plan.Change{Object: attrAutoReset + " of " + which[i], To: map[bool]string{true: "on", false: "off"}[*r.AutoReset], Why: "provision.pf asks for it"})
		}
	}
	if len(changes) == 0 {
		changes = []plan.Change{{Object: "services of each PF", Why: "as they are: no others are asked for"}}
	}
	return changes
}

func (s *virtualFunctions) Outline(context.Context) (changes []plan.Change) {
	rules, which := s.rules()
	for i, r := range rules {
		number, driver := "all that it can have", vfio.DriverPCI
		if r.VFs != nil {
			number = fmt.Sprint(*r.VFs)
		}
		if r.Driver != "" {
			driver = r.Driver
		}
		changes = append(changes, plan.Change{Object: attrNumVFs + " of " + which[i], To: number, Why: "pods get VFs"})
		if r.VFs == nil || *r.VFs > 0 {
			changes = append(changes, plan.Change{Object: "VFs of " + which[i], To: "bound to " + driver, Why: "VMs get VFs by VFIO"})
		}
	}
	return changes
}
