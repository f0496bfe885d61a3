package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// services is the step that configures what services a PF offers. They can be
// changed only while the device is down, and it goes down only without VFs
// (Linux, Documentation/ABI/testing/sysfs-driver-qat).
type services struct{ *machine }

func (*services) Name() string { return "services" }

// serviceChange is what is to be changed of a PF.
type serviceChange struct {
	target
	services  qat.Services // "" for none
	up        bool         // it is down, and is to be up
	autoReset string       // "on" or "off", "" for no change
	wasReset  string
}

const (
	attrState     = "qat/state"
	attrServices  = "qat/cfg_services"
	attrAutoReset = "qat/auto_reset"
)

// changes are the PFs of which something is to be changed.
func (m *machine) serviceChanges(ts []target) (all []serviceChange, notes []string, _ error) {
	for _, t := range ts {
		if t.Driver == "" {
			continue // its driver comes first, and brings the attributes
		}
		c := serviceChange{target: t}
		if want := t.rule.Services; want != "" {
			services, err := qat.ParseServices(t.Family, want)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", t.Address, err)
			}
			if t.Services == "" {
				return nil, nil, fmt.Errorf("%s: services %q are asked for, and its driver %s has no qat/cfg_services: expected Linux 6.0 or later", t.Address, want, t.Driver)
			}
			if !sameServices(services, t.Services) {
				c.services = services
			}
		}
		c.up = t.State == qat.StateDown
		if t.rule.AutoReset != nil {
			var err error
			if c.wasReset, err = m.text(devicePath(t.Address, attrAutoReset)); err != nil {
				return nil, nil, err
			}
			want := map[bool]string{true: "on", false: "off"}[*t.rule.AutoReset]
			switch c.wasReset {
			case "":
				notes = append(notes, fmt.Sprintf("%s: auto_reset is asked for, and the driver has none: expected Linux 6.8 or later", t.Address))
			case want:
			default:
				c.autoReset = want
			}
		}
		if c.services != "" || c.up || c.autoReset != "" {
			all = append(all, c)
		}
	}
	return all, notes, nil
}

// sameServices compares sets: the kernel takes them in either order.
func sameServices(a, b qat.Services) bool {
	sorted := func(s qat.Services) []string { return slices.Sorted(strings.SplitSeq(string(s), ";")) }
	return slices.Equal(sorted(a), sorted(b))
}

func (s *services) Check(context.Context) (plan.State, error) {
	ts, err := s.targets()
	if err != nil {
		return plan.State{}, err
	}
	changes, notes, err := s.serviceChanges(ts)
	if err != nil {
		return plan.State{}, err
	}
	state := plan.State{Is: describeServices(ts), Notes: notes, Wait: s.rebootFor()}
	for _, c := range changes {
		if c.services == "" {
			continue
		}
		if err := s.unused(c.PF); err != nil {
			return state, fmt.Errorf("change the services of %s from %s to %s: %w", c.Address, c.Services, c.services, err)
		}
	}
	return state, nil
}

func describeServices(ts []target) string {
	var all []string
	for _, t := range ts {
		if t.Services != "" {
			all = append(all, fmt.Sprintf("%s %s", t.Address, t.Services))
		}
	}
	if len(all) == 0 {
		return "no PF has services to configure"
	}
	return strings.Join(all, ", ")
}

// unused refuses a PF whose VFs somebody uses: vfio takes a device away only when
// its user gives it back, and the kernel would wait for that.
func (m *machine) unused(pf *qat.PF) error {
	vfs := make([]*qat.VF, len(pf.VFs))
	for i := range pf.VFs {
		vfs[i] = &pf.VFs[i]
	}
	users, err := vfio.Users(m.Root, vfs)
	if err != nil {
		return err
	}
	return vfio.InUse(users)
}

func (s *services) Plan(context.Context) (all []plan.Change, _ error) {
	ts, err := s.targets()
	if err != nil {
		return nil, err
	}
	changes, _, err := s.serviceChanges(ts)
	for _, c := range changes {
		why := "the rule for this PF says so"
		if c.services != "" {
			if c.NumVFs > 0 {
				all = append(all, plan.Change{Object: devicePath(c.Address, attrNumVFs), From: fmt.Sprint(c.NumVFs), To: "0", Why: "services can only be changed while there are no VFs; nobody uses them"})
			}
			all = append(all, plan.Change{Object: devicePath(c.Address, attrServices), From: string(c.Services), To: string(c.services), Why: why})
		}
		if c.up {
			all = append(all, plan.Change{Object: devicePath(c.Address, attrState), From: qat.StateDown, To: qat.StateUp, Why: "a device that is down serves nobody"})
		}
		if c.autoReset != "" {
			all = append(all, plan.Change{Object: devicePath(c.Address, attrAutoReset), From: c.wasReset, To: c.autoReset, Why: why})
		}
	}
	return all, err
}

// kindPF is a record of what a PF and its VFs were like.
const kindPF = "pf"

// pfState is a PF before it was changed: all of it that a step may change, since
// a later run may change what this one did not.
type pfState struct {
	Services  qat.Services `json:"services,omitempty"`
	State     string       `json:"state,omitempty"`
	AutoReset string       `json:"autoReset,omitempty"`
	Autoprobe string       `json:"autoprobe,omitempty"`
	VFs       *vfState     `json:"vfs,omitempty"` // nil when another record has them
}

func (s *services) Apply(_ context.Context, j *plan.Journal) error {
	ts, err := s.targets()
	if err != nil {
		return err
	}
	changes, _, err := s.serviceChanges(ts)
	if err != nil {
		return err
	}
	var records []plan.Record
	for _, c := range changes {
		was := pfState{Services: c.Services, State: c.State}
		if was.AutoReset, err = s.text(devicePath(c.Address, attrAutoReset)); err != nil {
			return err
		}
		// VFs that are there because an earlier run made them are not what was.
		if !recorded(j, (*virtualFunctions)(nil).Name(), c.Address) {
			if was.VFs, err = s.vfState(c.PF); err != nil {
				return err
			}
		}
		r, err := plan.NewRecord(s.Name(), kindPF, string(c.Address), was, nil)
		if err != nil {
			return err
		}
		records = append(records, r)
	}
	if err := j.Save(records...); err != nil {
		return err
	}
	return eachPF(changes, func(c serviceChange) error { return s.applyPF(j, c) })
}

// recorded tells whether a step has recorded what a PF was like.
func recorded(j *plan.Journal, step string, a qat.Address) bool {
	return slices.ContainsFunc(j.Records(step), func(r plan.Record) bool { return r.Object == string(a) })
}

func (s *services) applyPF(j *plan.Journal, c serviceChange) error {
	if c.services != "" {
		if err := s.setServices(j, c.PF, c.services); err != nil {
			return err
		}
	} else if c.up {
		if err := s.set(c.Address, attrState, qat.StateUp); err != nil {
			return err
		}
	}
	if c.autoReset != "" {
		return s.set(c.Address, attrAutoReset, c.autoReset)
	}
	return nil
}

// setServices takes a PF down, changes its services, and brings it up again.
func (s *services) setServices(j *plan.Journal, pf *qat.PF, want qat.Services) error {
	if pf.NumVFs > 0 {
		if err := s.unused(pf); err != nil {
			return fmt.Errorf("change the services of %s: %w", pf.Address, err)
		}
		if err := s.disable(j, pf); err != nil {
			return err
		}
	}
	for _, w := range [][2]string{{attrState, qat.StateDown}, {attrServices, string(want)}, {attrState, qat.StateUp}} {
		if err := s.set(pf.Address, w[0], w[1]); err != nil {
			return err
		}
		if err := j.Reached(w[0] + " " + w[1]); err != nil {
			return err
		}
	}
	return nil
}

// set writes an attribute of a PF.
func (m *machine) set(a qat.Address, attribute, value string) error {
	if err := m.write(devicePath(a, attribute), value); err != nil {
		return fmt.Errorf("set %s of %s to %s: %w: see dmesg", attribute, a, value, err)
	}
	return nil
}

func (s *services) Undo(_ context.Context, records []plan.Record) error {
	return s.undoPFs(records, func(pf *qat.PF, was pfState) error {
		now, err := s.text(devicePath(pf.Address, attrAutoReset))
		if err != nil {
			return err
		}
		if now != was.AutoReset && was.AutoReset != "" {
			if err := s.set(pf.Address, attrAutoReset, was.AutoReset); err != nil {
				return err
			}
		}
		if was.Services != pf.Services && was.Services != "" {
			if err := s.setServices(&plan.Journal{}, pf, was.Services); err != nil {
				return err
			}
			pf.NumVFs, pf.State = 0, qat.StateUp
		}
		if pf.State != was.State && was.State == qat.StateUp { // a run was stopped in between
			if err := s.set(pf.Address, attrState, qat.StateUp); err != nil {
				return err
			}
		}
		if err := s.restoreVFs(pf, was.VFs); err != nil {
			return err
		}
		if pf.State != was.State && was.State == qat.StateDown {
			return s.set(pf.Address, attrState, qat.StateDown)
		}
		return nil
	})
}

// undoPFs restores PFs, all at once. One that has no driver any more, or is gone,
// has nothing to be restored.
func (m *machine) undoPFs(records []plan.Record, restore func(*qat.PF, pfState) error) error {
	m.changed()
	inv, err := m.inventory()
	if err != nil {
		return err
	}
	return eachPF(records, func(r plan.Record) error {
		if r.Kind != kindPF {
			return fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
		}
		var was pfState
		if err := json.Unmarshal(r.Before, &was); err != nil {
			return fmt.Errorf("restore %s: %w", r.Object, err)
		}
		pf := inv.PF(qat.Address(r.Object))
		if pf == nil || pf.Driver == "" {
			return nil
		}
		return restore(pf, was)
	})
}

// eachPF calls f for each PF at once: to change the VFs of one takes the kernel
// a second.
func eachPF[T any](all []T, f func(T) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Go(func() { errs[i] = f(one) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
