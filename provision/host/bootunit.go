package host

import (
	"context"
	_ "embed"
	"strings"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// bootUnit is the step that has everything applied again at each boot: VFs and
// what they are bound to do not outlive one.
type bootUnit struct{ *machine }

func (*bootUnit) Name() string { return "boot-unit" }

const (
	unitName    = "kata-qat-provision.service"
	unitFile    = "/etc/systemd/system/" + unitName
	unitLink    = "/etc/systemd/system/multi-user.target.wants/" + unitName
	unitFlags   = "/etc/kata-qat/provision.env"
	unitProgram = "/usr/local/bin/kata-qat"
)

// Unit is the unit file, as deploy/systemd has it for packages.
//
//go:embed kata-qat-provision.service
var Unit string

func (s *bootUnit) files() []file {
	return []file{
		{name: unitFile, content: Unit, why: "VFs do not outlive a boot, and a run that waits for one goes on after it"},
		{
			name:    unitFlags,
			content: "# Written by kata-qat provision host: the flags that it was run with.\nPROVISION_FLAGS=" + strings.Join(s.BootFlags, " ") + "\n",
			why:     "the run at boot must do what this one does",
		},
	}
}

// possible says why there can be no unit, "" if there can.
func (s *bootUnit) impossible() string {
	switch {
	case !s.config.BootUnit:
		return "provision.boot_unit is false: nothing is applied at boot"
	case !s.exists("/etc/systemd/system"):
		return "the machine has no systemd (/etc/systemd/system): run kata-qat provision host at each boot"
	case !s.exists(unitProgram):
		return unitProgram + " is not there, which the unit would run: nothing is applied at boot: install it (scripts/bootstrap-node.sh), or see that something else does it, as a DaemonSet does"
	}
	return ""
}

func (s *bootUnit) Check(ctx context.Context) (plan.State, error) {
	if why := s.impossible(); why != "" {
		return plan.State{Is: "none", Notes: []string{why}}, nil
	}
	changes, err := s.Plan(ctx)
	if len(changes) > 0 {
		return plan.State{Is: unitName + " is not as it should be"}, err
	}
	return plan.State{Is: unitName + " is enabled"}, err
}

func (s *bootUnit) Plan(context.Context) ([]plan.Change, error) {
	if s.impossible() != "" {
		return nil, nil
	}
	changes, err := s.planFiles(s.files()...)
	if err != nil {
		return nil, err
	}
	link, _, err := s.linkState(unitLink)
	if err == nil && link.Target != unitFile {
		changes = append(changes, plan.Change{Object: unitLink, From: link.Target, To: unitFile, Why: "that enables the unit"})
	}
	return changes, err
}

func (s *bootUnit) Apply(ctx context.Context, j *plan.Journal) error {
	if err := s.applyFiles(j, s.Name(), s.files()...); err != nil {
		return err
	}
	if err := s.applyLink(j, s.Name(), unitLink, unitFile); err != nil {
		return err
	}
	s.reloadSystemd(ctx)
	return nil
}

func (s *bootUnit) Undo(ctx context.Context, records []plan.Record) error {
	err := s.restore(ctx, records, nil)
	if err == nil {
		s.reloadSystemd(ctx)
	}
	return err
}

// reloadSystemd lets systemd read its units anew. It does so at boot anyway, and
// in an image that is being built there is none that runs.
func (s *bootUnit) reloadSystemd(ctx context.Context) {
	if s.exists("/run/systemd/system") && s.runner.Find("systemctl") != "" {
		_, _ = s.runner.Run(ctx, "", "systemctl", "daemon-reload")
	}
}
