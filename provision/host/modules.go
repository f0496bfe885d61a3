package host

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// modules is the step that has the kernel load what VFIO needs, now and at each
// boot, and keeps the VFs' own drivers off the host.
type modules struct{ *machine }

func (*modules) Name() string { return "modules" }

const (
	modulesLoadFile = "/etc/modules-load.d/kata-qat.conf"
	modprobeFile    = "/etc/modprobe.d/kata-qat.conf"
	written         = "# Written by kata-qat provision host, which takes it away with --undo.\n"
)

// denied are the PFs whose VFs vfio-pci refuses by its deny-list.
type denied []target

// denyListed are those of the targets; nil when none is on it.
func denyListed(ts []target) (d denied) {
	for _, t := range ts {
		if t.Family.DenyListed {
			d = append(d, t)
		}
	}
	return d
}

func (d denied) why() string {
	return fmt.Sprintf("%s (%s) is on vfio-pci's deny-list", d[0].Address, d[0].Family.Name)
}

// load is a module to be loaded.
type load struct {
	name, param, why string
}

// vfioModules are the modules that VFs need on the host.
func (s *modules) vfioModules(ts []target) (loads []load) {
	vfioPCI := load{name: "vfio-pci", why: "it hands VFs to VMs"}
	if deny := denyListed(ts); deny != nil && !s.kernel().builtin["vfio_pci"] {
		vfioPCI.param, vfioPCI.why = "disable_denylist=1", deny.why()
	}
	loads = append(loads, vfioPCI)
	// vfio asks for it by itself in a container that has it (Linux,
	// drivers/vfio/container.c); a kernel with iommufd alone has none.
	if s.loaded("vfio_iommu_type1") || s.kernel().has("vfio_iommu_type1") {
		loads = append(loads, load{name: "vfio_iommu_type1", why: "it maps a VM's memory for its VFs"})
	}
	for _, t := range ts {
		if s.vfDriver(t) == vfio.DriverQAT {
			return append(loads, load{name: vfio.DriverQAT, why: "it is asked for, for " + string(t.Address)})
		}
	}
	return loads
}

// vfDriver is the driver that a target's VFs are to be bound to.
func (m *machine) vfDriver(t target) string {
	if t.rule.Driver == vfio.DriverQAT && m.kernel().variant(vfio.DriverQAT, t.Family.VFDevice) {
		return vfio.DriverQAT
	}
	return vfio.DriverPCI
}

func (s *modules) files(ts []target) []file {
	var names, options []string
	for _, l := range s.vfioModules(ts) {
		names = append(names, l.name)
		if l.param != "" {
			options = append(options, fmt.Sprintf("# %s.\noptions %s %s\n", l.why, l.name, l.param))
		}
	}
	var blacklist []string
	for _, f := range families(ts) {
		if line := "blacklist " + f.VFModule + "\n"; !slices.Contains(blacklist, line) {
			blacklist = append(blacklist, line)
		}
	}
	return []file{
		{name: modulesLoadFile, content: written + strings.Join(names, "\n") + "\n", why: "VFIO is needed after each boot"},
		{
			name:    modprobeFile,
			content: written + strings.Join(options, "") + "# VFs are for VMs: their drivers stay off the host.\n" + strings.Join(blacklist, ""),
			why:     "VFs are for VMs, so their drivers must not take them on the host",
		},
	}
}

// loads are the modules that are to be loaded now.
func (s *modules) loads(ts []target) (loads []load) {
	for _, l := range s.vfioModules(ts) {
		if !s.loaded(l.name) {
			loads = append(loads, l)
		}
	}
	for _, t := range ts {
		if t.Driver == "" && !s.loaded(t.Family.PFModule) && !slices.ContainsFunc(loads, func(l load) bool { return l.name == t.Family.PFModule }) {
			loads = append(loads, load{name: t.Family.PFModule, why: fmt.Sprintf("%s (%s) has no driver", t.Address, t.Family.Name)})
		}
	}
	return loads
}

const denylistParameter = "/sys/module/vfio_pci/parameters/disable_denylist"

// reload tells whether vfio-pci is loaded with its deny-list in force although a
// target is on it.
func (s *modules) reload(ts []target) (denied, error) {
	deny := denyListed(ts)
	if deny == nil || !s.loaded("vfio-pci") || s.kernel().builtin["vfio_pci"] {
		return nil, nil
	}
	value, err := s.text(denylistParameter)
	if err != nil || value == "Y" || value == "" { // before Linux 5.9 there was no list
		return nil, err
	}
	return deny, nil
}

func (s *modules) Check(context.Context) (plan.State, error) {
	ts, err := s.targets()
	if err != nil {
		return plan.State{}, err
	}
	var names, missing []string
	for _, l := range s.vfioModules(ts) {
		if s.loaded(l.name) {
			names = append(names, l.name)
		} else {
			missing = append(missing, l.name)
		}
	}
	state := plan.State{Is: strings.Join(names, ", ") + " loaded"}
	if len(names) == 0 {
		state.Is = "none of " + strings.Join(missing, ", ") + " loaded"
	}
	for _, t := range ts {
		if t.rule.Driver == vfio.DriverQAT && s.vfDriver(t) != vfio.DriverQAT {
			state.Notes = append(state.Notes, fmt.Sprintf("Linux %s has no qat_vfio_pci for the VFs of %s (%s): they get vfio-pci, without live migration", s.kernel().release, t.Address, t.Family.Name))
		}
	}
	deny, err := s.reload(ts)
	if err != nil || deny == nil {
		return state, err
	}
	bound, err := filepath.Glob(s.sys("/sys/bus/pci/drivers/vfio-pci/*:*"))
	if err == nil && len(bound) > 0 {
		err = fmt.Errorf("vfio-pci is loaded without disable_denylist=1, %s, and it cannot be loaded anew while it has devices, as it has %s: free them, or reboot after --undo", deny.why(), filepath.Base(bound[0]))
	}
	return state, err
}

func (s *modules) Plan(context.Context) ([]plan.Change, error) {
	ts, err := s.targets()
	if err != nil {
		return nil, err
	}
	changes, err := s.planFiles(s.files(ts)...)
	if err != nil {
		return nil, err
	}
	deny, err := s.reload(ts)
	if err != nil {
		return nil, err
	}
	if deny != nil {
		changes = append(changes, plan.Change{Object: "module vfio-pci", From: "loaded with disable_denylist=0", To: "loaded with disable_denylist=1", Why: deny.why()})
	}
	for _, l := range s.loads(ts) {
		changes = append(changes, plan.Change{Object: "module " + l.name, From: "not loaded", To: strings.TrimSpace("loaded " + l.param), Why: l.why})
	}
	return changes, nil
}

func (s *modules) Apply(ctx context.Context, j *plan.Journal) error {
	ts, err := s.targets()
	if err != nil {
		return err
	}
	if err := s.applyFiles(j, s.Name(), s.files(ts)...); err != nil {
		return err
	}
	deny, err := s.reload(ts)
	if err != nil {
		return err
	}
	loads := s.loads(ts)
	if deny != nil {
		loads = append([]load{{name: "vfio-pci", param: "disable_denylist=1"}}, loads...)
	}
	for _, l := range loads {
		r, err := s.recordModule(l.name)
		if err != nil {
			return err
		}
		if err := j.Save(r); err != nil {
			return err
		}
		if s.loaded(l.name) {
			if _, err := s.runner.Run(ctx, "", "rmmod", moduleName(l.name)); err != nil {
				return err
			}
		}
		// Named here too: modprobe.d is not read by every modprobe.
		if _, err := s.runner.Run(ctx, "", "modprobe", append([]string{l.name}, strings.Fields(l.param)...)...); err != nil {
			if without(unix.CAP_SYS_MODULE) {
				err = fmt.Errorf("%w: this process has no CAP_SYS_MODULE: give its container that", err)
			}
			return err
		}
		s.changed()
		if !s.loaded(l.name) {
			return fmt.Errorf("load module %s: modprobe succeeded, and /sys/module has no %s: expected it there", l.name, moduleName(l.name))
		}
		if err := j.Reached("module loaded"); err != nil {
			return err
		}
	}
	return nil
}

const kindModule = "module"

// moduleState is what was loaded of a module and those that it needs.
type moduleState struct {
	// Absent are those that were not loaded; what needs another comes first.
	Absent []string `json:"absent,omitempty"`
	// Param is what the module was loaded with, if it was.
	Param string `json:"param,omitempty"`
}

func (s *modules) recordModule(name string) (plan.Record, error) {
	var state moduleState
	for _, n := range s.kernel().closure(name) {
		if !s.loaded(n) {
			state.Absent = append(state.Absent, n)
		}
	}
	if len(state.Absent) == 0 {
		state.Param = "disable_denylist=0"
	}
	return plan.NewRecord(s.Name(), kindModule, name, state, nil)
}

func (s *modules) Undo(ctx context.Context, records []plan.Record) error {
	return s.restore(ctx, records, func(r plan.Record) error {
		if r.Kind != kindModule {
			return fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
		}
		var was moduleState
		if err := json.Unmarshal(r.Before, &was); err != nil {
			return err
		}
		if was.Param != "" {
			return s.restoreParam(ctx, r.Object, was.Param)
		}
		for _, name := range was.Absent {
			if err := s.unload(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *modules) restoreParam(ctx context.Context, name, param string) error {
	if value, err := s.text(denylistParameter); err == nil && value == "N" {
		return nil
	}
	if err := s.unload(ctx, moduleName(name)); err != nil {
		return err
	}
	_, err := s.runner.Run(ctx, "", "modprobe", name, param)
	return err
}

// unload unloads a module that nobody uses. One that somebody uses was loaded
// here, but is not ours alone any more, and stays.
func (s *modules) unload(ctx context.Context, name string) error {
	if _, err := os.Stat(s.sys("/sys/module/" + name + "/refcnt")); err != nil {
		return nil // not there, or built in
	}
	if count, err := s.text("/sys/module/" + name + "/refcnt"); err == nil && count != "0" {
		return nil
	}
	// What is bound to vfio by now is somebody else's: ours is gone already. A
	// PF's driver, which was not there before either, gives its devices up.
	devices, err := filepath.Glob(s.sys("/sys/module/" + name + "/drivers/*/*:*:*.*"))
	if err != nil {
		return err
	}
	if len(devices) > 0 && strings.Contains(name, "vfio") {
		return nil
	}
	_, err = s.runner.Run(ctx, "", "rmmod", name)
	return err
}
