package host

import (
	"fmt"
	"strconv"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// vfState is what VFs a PF had, and what they were bound to.
type vfState struct {
	Number   int                          `json:"number"`
	Bindings map[qat.Address]vfio.Binding `json:"bindings,omitempty"`
}

// vfState is what VFs a PF has, and what they are bound to.
func (m *machine) vfState(pf *qat.PF) (*vfState, error) {
	state := &vfState{Number: pf.NumVFs, Bindings: make(map[qat.Address]vfio.Binding)}
	for i := range pf.VFs {
		b, err := m.binder().Binding(pf.VFs[i].Address)
		if err != nil {
			return nil, err
		}
		state.Bindings[pf.VFs[i].Address] = b
	}
	return state, nil
}

// resize makes a number of VFs. From one number to another the way is by 0: the
// kernel refuses anything else (EBUSY; Linux, drivers/pci/pci-sysfs.c,
// sriov_numvfs_store).
func (m *machine) resize(j *plan.Journal, pf *qat.PF, want int) error {
	if err := m.disable(j, pf); err != nil || want == 0 {
		return err
	}
	return m.enable(j, pf, want)
}

// disable takes a PF's VFs away, if it has any.
func (m *machine) disable(j *plan.Journal, pf *qat.PF) error {
	now, err := m.text(devicePath(pf.Address, attrNumVFs))
	if err != nil || now == "0" {
		return err
	}
	if err := m.set(pf.Address, attrNumVFs, "0"); err != nil {
		return err
	}
	return j.Reached("VFs disabled")
}

// enable makes VFs of a PF that has none.
func (m *machine) enable(j *plan.Journal, pf *qat.PF, n int) error {
	if err := m.set(pf.Address, attrNumVFs, strconv.Itoa(n)); err != nil {
		return err
	}
	return j.Reached("VFs enabled")
}

// restoreVFs makes a PF's VFs, and what they are bound to, as they were.
func (m *machine) restoreVFs(pf *qat.PF, was *vfState) error {
	if was == nil {
		return nil
	}
	if pf.NumVFs != was.Number {
		if err := m.unused(pf); err != nil {
			return fmt.Errorf("give %s back its %d VFs: %w", pf.Address, was.Number, err)
		}
		if err := m.resize(&plan.Journal{}, pf, was.Number); err != nil {
			return err
		}
	}
	return m.restoreBindings(pf, was.Bindings)
}

// restoreBindings makes what VFs are bound to as it was. VFs that are not there
// are passed over: their PF has fewer now, whoever made it so.
func (m *machine) restoreBindings(pf *qat.PF, were map[qat.Address]vfio.Binding) error {
	if len(were) == 0 {
		return nil
	}
	m.changed()
	inv, err := m.inventory()
	if err != nil {
		return err
	}
	var changed, taken []*qat.VF
	for a, was := range were {
		vf := inv.VF(a)
		if vf == nil {
			continue
		}
		now, err := m.binder().Binding(a)
		if err != nil {
			return err
		}
		if now != was {
			changed = append(changed, vf)
		}
		if now.Driver != was.Driver {
			taken = append(taken, vf)
		}
	}
	users, err := vfio.Users(m.Root, taken)
	if err == nil {
		err = vfio.InUse(users)
	}
	if err != nil {
		return fmt.Errorf("give VFs of %s back to their drivers: %w", pf.Address, err)
	}
	for _, vf := range changed {
		if err := m.binder().Restore(vf.Address, were[vf.Address]); err != nil {
			return err
		}
	}
	return nil
}
