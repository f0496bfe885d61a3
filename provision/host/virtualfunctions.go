package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// virtualFunctions is the step that enables VFs and binds them to VFIO. It takes
// all PFs at once: the kernel takes its time for each, and most of it is waiting.
type virtualFunctions struct{ *machine }

func (*virtualFunctions) Name() string { return "virtual-functions" }

const (
	attrNumVFs    = "sriov_numvfs"
	attrAutoprobe = "sriov_drivers_autoprobe"
)

// vfChange is what is to be changed of a PF's VFs.
type vfChange struct {
	target
	driver    string // that the VFs are to have
	want      int    // VFs that are to be there
	resize    bool   // sriov_numvfs is to be written
	autoprobe string // what is written there, "" if it is 0 already
	rebind    []*qat.VF
}

// wantedVFs is how many VFs a PF is to have.
func wantedVFs(t target) int {
	if t.rule.VFs != nil {
		return *t.rule.VFs
	}
	return t.TotalVFs
}

// enough tells whether a PF has the VFs that it is to have. The drivers of the
// kernel's own tree enable all VFs whatever number is asked for (Linux,
// adf_sriov.c, adf_enable_sriov), so all of them are not too many.
func enough(t target, want int) bool {
	return t.NumVFs == want || want > 0 && want < t.NumVFs && t.NumVFs == t.TotalVFs
}

func (s *virtualFunctions) changes(ts []target) (all []vfChange, _ error) {
	// What is wrong with services is for that step to say; then nothing is applied.
	serviceChanges, _, _ := s.serviceChanges(ts)
	for _, t := range ts {
		var err error
		c := vfChange{target: t, driver: s.vfDriver(t), want: wantedVFs(t)}
		// The step before will have taken the VFs away.
		renewed := slices.ContainsFunc(serviceChanges, func(sc serviceChange) bool { return sc.Address == t.Address && sc.services != "" && t.NumVFs > 0 })
		c.resize = renewed && c.want > 0 || !renewed && !enough(t, c.want)
		if c.autoprobe, err = s.text(devicePath(t.Address, attrAutoprobe)); err != nil {
			return nil, err
		}
		if c.autoprobe == "0" || c.want == 0 {
			c.autoprobe = ""
		}
		if !c.resize {
			for i := range t.VFs {
				if vf := &t.VFs[i]; vf.Driver != c.driver {
					c.rebind = append(c.rebind, vf)
				}
			}
		}
		if c.resize || c.autoprobe != "" || len(c.rebind) > 0 {
			all = append(all, c)
		}
	}
	return all, nil
}

func (s *virtualFunctions) Check(context.Context) (plan.State, error) {
	ts, err := s.targets()
	if err != nil {
		return plan.State{}, err
	}
	changes, err := s.changes(ts)
	if err != nil {
		return plan.State{}, err
	}
	state := plan.State{Is: describeVFs(ts), Wait: s.rebootFor()}
	for _, t := range ts {
		if want := wantedVFs(t); want > 0 && t.NumVFs > want {
			state.Notes = append(state.Notes, fmt.Sprintf("%s has %d VFs, not %d: its driver %s enables all or none", t.Address, t.NumVFs, want, t.Driver))
		}
	}
	for _, c := range changes {
		if err := s.unusedFor(c); err != nil {
			return state, err
		}
	}
	return state, nil
}

// unusedFor refuses a change that takes VFs from who uses them.
func (s *virtualFunctions) unusedFor(c vfChange) error {
	vfs := c.rebind
	if c.resize {
		for i := range c.VFs {
			vfs = append(vfs, &c.VFs[i])
		}
	}
	users, err := vfio.Users(s.Root, vfs)
	if err == nil {
		err = vfio.InUse(users)
	}
	if err != nil {
		return fmt.Errorf("change the VFs of %s: %w", c.Address, err)
	}
	return nil
}

func describeVFs(ts []target) string {
	total, drivers := 0, make(map[string]int)
	for _, t := range ts {
		for i := range t.VFs {
			total++
			drivers[t.VFs[i].Driver]++
		}
	}
	text := fmt.Sprintf("%d PFs, %d VFs", len(ts), total)
	for _, d := range []string{vfio.DriverPCI, vfio.DriverQAT} {
		if n := drivers[d]; n > 0 {
			text += fmt.Sprintf(", %d on %s", n, d)
		}
	}
	return text
}

func (s *virtualFunctions) Plan(context.Context) (all []plan.Change, _ error) {
	ts, err := s.targets()
	if err != nil {
		return nil, err
	}
	changes, err := s.changes(ts)
	for _, c := range changes {
		if c.autoprobe != "" {
			all = append(all, plan.Change{Object: devicePath(c.Address, attrAutoprobe), From: c.autoprobe, To: "0", Why: "no driver of the host may take a VF before VFIO"})
		}
		if c.resize {
			why := "pods get VFs"
			if c.NumVFs > 0 {
				why += "; the number can only be changed by way of 0, and nobody uses them"
			}
			all = append(all, plan.Change{Object: devicePath(c.Address, attrNumVFs), From: strconv.Itoa(c.NumVFs), To: strconv.Itoa(c.want), Why: why})
			if c.want > 0 {
				all = append(all, plan.Change{Object: "VFs of " + string(c.Address), To: "bound to " + c.driver, Why: "VMs get VFs by VFIO"})
			}
		}
		for _, vf := range c.rebind {
			all = append(all, plan.Change{Object: devicePath(vf.Address, "driver"), From: vf.Driver, To: c.driver, Why: "VMs get VFs by VFIO"})
		}
	}
	return all, err
}

func (s *virtualFunctions) Apply(_ context.Context, j *plan.Journal) error {
	ts, err := s.targets()
	if err != nil {
		return err
	}
	changes, err := s.changes(ts)
	if err != nil {
		return err
	}
	var records []plan.Record
	for _, c := range changes {
		was := pfState{}
		if was.Autoprobe, err = s.text(devicePath(c.Address, attrAutoprobe)); err != nil {
			return err
		}
		if was.VFs, err = s.vfState(c.PF); err != nil {
			return err
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
	ours := s.ours(changes)
	return eachPF(changes, func(c vfChange) error { return s.applyPF(j, c, ours) })
}

// ours tells the VFs of PFs that are changed from all other devices, by their
// PF: they may not have been there when the inventory was made.
func (s *virtualFunctions) ours(changes []vfChange) func(string) bool {
	pfs := make(map[string]bool)
	for _, c := range changes {
		pfs[string(c.Address)] = true
	}
	return func(a string) bool {
		pf, err := os.Readlink(s.sys(devicePath(qat.Address(a), "physfn")))
		return err == nil && pfs[filepath.Base(pf)]
	}
}

func (s *virtualFunctions) applyPF(j *plan.Journal, c vfChange, ours func(string) bool) error {
	if c.autoprobe != "" {
		if err := s.set(c.Address, attrAutoprobe, "0"); err != nil {
			return err
		}
	}
	if !c.resize {
		for _, vf := range c.rebind {
			if err := s.bind(j, vf.Address, c.driver); err != nil {
				return err
			}
		}
		return nil
	}
	if err := s.disable(j, c.PF); err != nil || c.want == 0 {
		return err
	}
	// To bind each VF as soon as it is there, before all are, takes longer: who
	// waits for it disturbs the kernel more than is gained (1.0 to 1.3 s instead
	// of 0.8 to 0.9 s for 64 VFs in the test lab).
	if err := s.enable(j, c.PF, c.want); err != nil {
		return err
	}
	vfs, err := s.virtfns(c.Address)
	if err != nil {
		return err
	}
	if len(vfs) < c.want {
		return fmt.Errorf("enable %d VFs of %s: there are %d: see dmesg", c.want, c.Address, len(vfs))
	}
	if err := s.viable(vfs, ours); err != nil {
		// They are of no use to anybody.
		return errors.Join(err, s.set(c.Address, attrNumVFs, "0"))
	}
	for _, vf := range vfs {
		if err := s.bind(j, vf, c.driver); err != nil {
			return err
		}
	}
	return nil
}

// virtfns are the addresses of a PF's VFs, by index.
func (m *machine) virtfns(pf qat.Address) ([]qat.Address, error) {
	var vfs []qat.Address
	for i := 0; ; i++ {
		target, err := os.Readlink(m.sys(devicePath(pf, "virtfn"+strconv.Itoa(i))))
		if errors.Is(err, os.ErrNotExist) {
			return vfs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("VFs of %s: %w", pf, err)
		}
		vfs = append(vfs, qat.Address(filepath.Base(target)))
	}
}

// viable refuses VFs whose IOMMU group holds a device that is not ours.
func (s *virtualFunctions) viable(vfs []qat.Address, ours func(string) bool) error {
	seen := make(map[string]bool)
	for _, vf := range vfs {
		link, err := os.Readlink(s.sys(devicePath(vf, "iommu_group")))
		if err != nil {
			if s.AllowNoIOMMU {
				continue
			}
			return fmt.Errorf("%s is in no IOMMU group: expected one: see dmesg", vf)
		}
		id := filepath.Base(link)
		if seen[id] {
			continue
		}
		seen[id] = true
		group, err := s.group(id)
		if err != nil {
			return err
		}
		if foreign := vfio.Foreign(group, ours); foreign != nil {
			return fmt.Errorf("%s: IOMMU group %s also holds %s (%s): move it, or exclude this PF", vf, id, foreign.Address, foreign.Driver)
		}
	}
	return nil
}

// driverOf is what a device is bound to, "" if to nothing.
func (m *machine) driverOf(a qat.Address) string {
	link, err := os.Readlink(m.sys(devicePath(a, "driver")))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

func (m *machine) group(id string) (*qat.Group, error) {
	dir := m.sys("/sys/kernel/iommu_groups/" + id + "/devices")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("IOMMU group %s: %w", id, err)
	}
	g := &qat.Group{}
	for _, e := range entries {
		driver, err := os.Readlink(filepath.Join(dir, e.Name(), "driver"))
		if err != nil {
			driver = ""
		} else {
			driver = filepath.Base(driver)
		}
		g.Members = append(g.Members, qat.GroupMember{Address: e.Name(), Driver: driver})
	}
	return g, nil
}

// bind binds a VF, if it is not bound yet.
func (s *virtualFunctions) bind(j *plan.Journal, vf qat.Address, driver string) error {
	s.changed()
	if s.driverOf(vf) == driver {
		return nil
	}
	if err := s.binder().Bind(vf, driver); err != nil {
		return err
	}
	return j.Reached("bound " + string(vf))
}

func (s *virtualFunctions) Undo(_ context.Context, records []plan.Record) error {
	return s.undoPFs(records, func(pf *qat.PF, was pfState) error {
		if err := s.restoreVFs(pf, was.VFs); err != nil {
			return err
		}
		now, err := s.text(devicePath(pf.Address, attrAutoprobe))
		if err != nil || now == was.Autoprobe {
			return err
		}
		return s.set(pf.Address, attrAutoprobe, was.Autoprobe)
	})
}
