package host

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// nodeRule is the step that has udev give the VFs' device nodes their owner.
type nodeRule struct{ *machine }

func (*nodeRule) Name() string { return "udev-rule" }

const udevRules = "/etc/udev/rules.d/70-kata-qat.rules"

// file is the rule. A group's device of the class vfio has the group's number
// for a name and the members below /sys/kernel/iommu_groups; only groups whose
// first member is a QAT VF are concerned, so that no other device's node is
// touched.
func (s *nodeRule) file() (file, error) {
	ts, err := s.targets()
	if err != nil {
		return file{}, err
	}
	return s.rule(ts), nil
}

func (s *nodeRule) rule(ts []target) file {
	var ids []string
	for _, f := range families(ts) {
		ids = append(ids, fmt.Sprintf("0x%04x*", f.VFDevice))
	}
	group, mode := s.config.NodeGroup, "0660"
	if group == "" {
		mode = "0600"
	}
	return file{
		name: udevRules,
		content: written + "# The nodes of IOMMU groups that hold QAT virtual functions.\n" +
			`SUBSYSTEM=="vfio", KERNEL=="[0-9]*", PROGRAM="/bin/sh -c 'cat /sys/kernel/iommu_groups/%k/devices/*/device'", RESULT=="` + strings.Join(ids, "|") +
			fmt.Sprintf("\", OWNER=\"root\", GROUP=\"%s\", MODE=\"%s\"\n", cmp.Or(group, "root"), mode),
		why: "whatever other rules say, only root and the group of provision.node_group may open a VF",
	}
}

func (s *nodeRule) Check(context.Context) (plan.State, error) {
	f, err := s.file()
	if err != nil {
		return plan.State{}, err
	}
	state := plan.State{Is: udevRules + " is as it should be"}
	changes, err := s.planFiles(f)
	if len(changes) > 0 {
		state.Is = udevRules + " is not as it should be"
	}
	return state, err
}

func (s *nodeRule) Plan(context.Context) ([]plan.Change, error) {
	f, err := s.file()
	if err != nil {
		return nil, err
	}
	return s.planFiles(f)
}

func (s *nodeRule) Apply(_ context.Context, j *plan.Journal) error {
	f, err := s.file()
	if err != nil {
		return err
	}
	// udevd sees by itself that its rules have changed.
	return s.applyFiles(j, s.Name(), f)
}

func (s *nodeRule) Undo(ctx context.Context, records []plan.Record) error {
	return s.restore(ctx, records, nil)
}
