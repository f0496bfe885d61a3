package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// Level says how much a finding matters.
type Level string

// The levels of findings.
const (
	OK      Level = "ok"
	Warning Level = "warning" // it works, but not as well as it could
	Failure Level = "failure" // it cannot work
)

// Finding is what one check of a machine found.
type Finding struct {
	Check    string `json:"check"`
	Level    Level  `json:"level"`
	Evidence string `json:"evidence"` // what is, and where that stands
	Fix      string `json:"fix,omitempty"`
}

// Preflight checks whether a machine can be provisioned at all. It reads only.
func Preflight(ctx context.Context, o Options) ([]Finding, error) { return newMachine(o).findings(ctx) }

// preflight is the step that refuses a machine on which the others cannot work.
type preflight struct{ *machine }

func (*preflight) Name() string { return "preflight" }

// Gate: the other steps rely on what this one has checked.
func (*preflight) Gate() {}

func (p *preflight) Check(ctx context.Context) (plan.State, error) {
	findings, err := p.findings(ctx)
	if err != nil {
		return plan.State{}, err
	}
	var state plan.State
	var errs []error
	for _, f := range findings {
		text := f.Check + ": " + f.Evidence
		if f.Fix != "" {
			text += ": " + f.Fix
		}
		switch f.Level {
		case Warning:
			state.Notes = append(state.Notes, text)
		case Failure:
			errs = append(errs, errors.New(text))
		}
	}
	ts, err := p.targets()
	if err != nil {
		return state, err
	}
	var names []string
	for _, t := range ts {
		names = append(names, fmt.Sprintf("%s (%s)", t.Address, t.Family.Name))
	}
	state.Is = fmt.Sprintf("%d PFs: %s", len(ts), strings.Join(names, ", "))
	return state, errors.Join(errs...)
}

func (*preflight) Plan(context.Context) ([]plan.Change, error) { return nil, nil }
func (*preflight) Apply(context.Context, *plan.Journal) error  { return nil }
func (*preflight) Undo(context.Context, []plan.Record) error   { return nil }

func (m *machine) findings(ctx context.Context) (all []Finding, _ error) {
	ts, err := m.targets()
	if err != nil {
		return nil, err
	}
	for _, check := range []func() []Finding{
		m.checkIOMMU,
		func() []Finding { return m.checkDrivers(ts) },
		func() []Finding { return m.checkFirmware(ts) },
		func() []Finding { return m.checkSRIOV(ts) },
		func() []Finding { return m.checkIsolation(ts) },
		m.checkVFIO,
		m.checkLockdown,
		func() []Finding { return m.checkRuntimes(ctx) },
	} {
		all = append(all, check()...)
	}
	return all, nil
}

// iommuOn tells whether the running kernel translates the DMA of the PFs.
func (m *machine) iommuOn() bool {
	entries, err := os.ReadDir(m.sys("/sys/kernel/iommu_groups"))
	if err != nil {
		return false
	}
	for _, e := range entries {
		// Groups of vfio's no-IOMMU mode are none.
		if name, err := m.text("/sys/kernel/iommu_groups/" + e.Name() + "/name"); err == nil && name != "vfio-noiommu" {
			return true
		}
	}
	return false
}

func (m *machine) checkIOMMU() []Finding {
	const check = "IOMMU"
	if m.iommuOn() {
		return []Finding{{check, OK, "on: /sys/kernel/iommu_groups has groups", ""}}
	}
	if m.AllowNoIOMMU {
		return []Finding{{check, Warning, "off, and allow_no_iommu is set", "whoever holds a VF can read and write all of the host's memory"}}
	}
	// ACPI's tables of IOMMUs: DMAR is Intel's, IVRS AMD's.
	const tables = "/sys/firmware/acpi/tables"
	if m.exists(tables) && !m.exists(tables+"/DMAR") && !m.exists(tables+"/IVRS") {
		return []Finding{{check, Failure, "the firmware offers none: " + tables + " has neither DMAR nor IVRS", "switch VT-d (AMD: IOMMU) on in the firmware (BIOS)"}}
	}
	cmdline, err := m.text("/proc/cmdline")
	if err != nil {
		return []Finding{{check, Failure, err.Error(), ""}}
	}
	for _, off := range []string{"intel_iommu=off", "amd_iommu=off", "iommu=off"} {
		for _, word := range strings.Fields(cmdline) {
			if word == off {
				return []Finding{{check, Failure, "/proc/cmdline has " + off, "remove it from the boot loader's configuration, which somebody has put it into, and reboot"}}
			}
		}
	}
	if !m.config.KernelCommandLine {
		return []Finding{{check, Failure, "off: /sys/kernel/iommu_groups is empty", "boot with intel_iommu=on iommu=pt, or set provision.kernel_command_line = true"}}
	}
	return []Finding{{check, Warning, "off: /sys/kernel/iommu_groups is empty", "the kernel's command line will be changed, and a reboot needed"}}
}

// checkDrivers sees that every PF has its driver, or can get it.
func (m *machine) checkDrivers(ts []target) (all []Finding) {
	const check = "driver"
	for _, t := range ts {
		switch {
		case t.Driver == t.Family.PFDriver:
			continue
		case t.Driver == "" && (m.loaded(t.Family.PFModule) || m.kernel().has(t.Family.PFModule)):
			continue
		case t.Driver == "" && m.config.Driver.Source != "":
			continue // the driver release comes first
		case t.Driver == "":
			all = append(all, Finding{check, Failure, fmt.Sprintf("%s (%s) has no driver, and Linux %s has no module %s", t.Address, t.Family.Name, m.kernel().release, t.Family.PFModule), driverHint(t.Family)})
		case sriovDrivers[t.Driver]:
			continue
		default:
			all = append(all, Finding{check, Failure, fmt.Sprintf("%s (%s) is bound to %s, expected %s", t.Address, t.Family.Name, t.Driver, t.Family.PFDriver), "unbind it, or exclude this PF"})
		}
	}
	if len(all) == 0 {
		all = []Finding{{check, OK, "every PF has its driver, or a module for it", ""}}
	}
	return all
}

// sriovDrivers make VFs of any device and leave the rest of it alone (Linux,
// drivers/pci/pci-pf-stub.c); QAT cards whose PF nobody uses may have it.
var sriovDrivers = map[string]bool{"pci-pf-stub": true}

func driverHint(f *qat.Family) string {
	if f.PFInTree == "" {
		return "it is not in Linux: build the vendor's release with --driver-archive"
	}
	return fmt.Sprintf("it is in Linux since %s: install the distribution's with --driver packages, or build the vendor's release with --driver-archive", f.PFInTree)
}

// checkFirmware looks for firmware as the kernel does. A driver that is bound
// has it already.
func (m *machine) checkFirmware(ts []target) []Finding {
	const check = "firmware"
	unbound := make(map[string]bool)
	for _, t := range ts {
		unbound[t.Family.Name] = unbound[t.Family.Name] || t.Driver == ""
	}
	var missing []string
	level := Warning
	for _, f := range families(ts) {
		lacks := m.missingFirmware(f)
		if missing = append(missing, lacks...); len(lacks) > 0 && unbound[f.Name] && m.config.Driver.Source == "" {
			level = Failure
		}
	}
	if len(missing) == 0 {
		return []Finding{{check, OK, "there for every family", ""}}
	}
	return []Finding{{check, level, "/lib/firmware has no " + strings.Join(missing, ", ") + ", compressed or not, nor below intel/qat", "install the distribution's firmware with --driver packages, or no card comes up at the next boot"}}
}

// missingFirmware is what a family needs and /lib/firmware lacks: as it is, or
// compressed, there or where newer linux-firmware has it.
func (m *machine) missingFirmware(f *qat.Family) (missing []string) {
	for _, name := range f.Firmware {
		found := false
		for _, dir := range []string{"/lib/firmware/", "/lib/firmware/intel/qat/", "/lib/firmware/updates/"} {
			for _, suffix := range []string{"", ".xz", ".zst"} {
				found = found || m.exists(dir+name+suffix)
			}
		}
		if !found {
			missing = append(missing, name)
		}
	}
	return missing
}

func (m *machine) checkSRIOV(ts []target) (all []Finding) {
	const check = "SR-IOV"
	for _, t := range ts {
		if t.TotalVFs == 0 {
			all = append(all, Finding{check, Failure, fmt.Sprintf("%s has no VFs: %s is missing or 0", t.Address, devicePath(t.Address, "sriov_totalvfs")), "switch SR-IOV on in the firmware (BIOS); the kernel needs CONFIG_PCI_IOV"})
		}
		if t.rule.VFs != nil && *t.rule.VFs > t.TotalVFs && t.TotalVFs > 0 {
			all = append(all, Finding{check, Failure, fmt.Sprintf("%s can have %d VFs, and %d are asked for", t.Address, t.TotalVFs, *t.rule.VFs), "ask for fewer"})
		}
	}
	if len(all) == 0 {
		all = []Finding{{check, OK, "every PF has it", ""}}
	}
	return all
}

// checkIsolation refuses a PF whose VFs could not be handed out, before there
// are any if that can be known.
func (m *machine) checkIsolation(ts []target) (all []Finding) {
	const check = "isolation"
	ours := isOurVF(ts)
	for _, t := range ts {
		if bridge := m.sharedBridge(t.PF); bridge != "" {
			all = append(all, Finding{check, Failure, fmt.Sprintf("%s shares its IOMMU group with the port %s above it, which has no ACS: its VFs would share it too, with the PF itself", t.Address, bridge), "switch ACS on in the firmware, move the card to another slot, or exclude this PF"})
			continue
		}
		for i := range t.VFs {
			vf := &t.VFs[i]
			if vf.Group == nil {
				continue
			}
			if foreign := vfio.Foreign(vf.Group, ours); foreign != nil {
				all = append(all, Finding{check, Failure, fmt.Sprintf("%s: IOMMU group %d also holds %s (%s)", vf.Address, vf.Group.ID, foreign.Address, foreign.Driver), "move it, or exclude this PF"})
				break
			}
		}
	}
	if len(all) == 0 {
		all = []Finding{{check, OK, "no IOMMU group is shared with another device", ""}}
	}
	return all
}

// isOurVF tells the VFs of the targets from all other devices.
func isOurVF(ts []target) func(string) bool {
	ours := make(map[string]bool)
	for _, t := range ts {
		for i := range t.VFs {
			ours[string(t.VFs[i].Address)] = true
		}
	}
	return func(a string) bool { return ours[a] }
}

// sharedBridge returns the bridge above a PF that is in the PF's IOMMU group,
// "" if none is. The kernel puts devices together that a bridge without ACS could
// connect past the IOMMU (Linux, drivers/iommu/iommu.c, pci_device_group), VFs no
// less than their PF.
func (m *machine) sharedBridge(pf *qat.PF) string {
	real, err := filepath.EvalSymlinks(m.sys(devicePath(pf.Address, "")))
	if err != nil {
		return ""
	}
	members, err := os.ReadDir(m.sys(devicePath(pf.Address, "iommu_group/devices")))
	if err != nil {
		return ""
	}
	in := make(map[string]bool)
	for _, e := range members {
		in[e.Name()] = true
	}
	for dir := filepath.Dir(real); len(dir) > 1; dir = filepath.Dir(dir) {
		if name := filepath.Base(dir); in[name] {
			return name
		}
	}
	return ""
}

func (m *machine) checkVFIO() []Finding {
	const check = "VFIO"
	if m.loaded("vfio-pci") {
		return []Finding{{check, OK, "vfio-pci is loaded", ""}}
	}
	k := m.kernel()
	switch {
	case k.has("vfio-pci"):
		return []Finding{{check, OK, "Linux " + k.release + " has the module vfio-pci", ""}}
	case m.config.Driver.Source == "packages":
		return nil
	case k.err != nil:
		return []Finding{{check, Failure, k.err.Error(), "expected the running kernel's modules below /lib/modules"}}
	}
	return []Finding{{check, Failure, "Linux " + k.release + " has no module vfio-pci", "install the rest of the kernel's modules with --driver packages, or a kernel with CONFIG_VFIO_PCI"}}
}

// checkLockdown says what Secure Boot and lockdown mean here.
func (m *machine) checkLockdown() (all []Finding) {
	if lockdown, err := m.text("/sys/kernel/security/lockdown"); err == nil && lockdown != "" && !strings.Contains(lockdown, "[none]") {
		all = append(all, Finding{"lockdown", Warning, "/sys/kernel/security/lockdown is " + lockdown, "QAT's heartbeat and counters, which are in debugfs, may not be readable"})
	}
	if m.secureBoot() && m.config.Driver.Source == "archive" {
		all = append(all, Finding{"Secure Boot", Warning, "it is on, and the driver release is built here", "the kernel takes its modules only if they are signed with a key that is enrolled (mokutil --list-enrolled)"})
	}
	return all
}

// secureBoot reads the firmware's variable: four bytes of attributes, then the
// value.
func (m *machine) secureBoot() bool {
	b, err := m.read("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	return err == nil && len(b) == 5 && b[4] == 1
}

// runtimes are the container runtimes that pods with VFs can run on, and the
// first version of each that has what they need.
var runtimes = []struct {
	program, args string
	major, minor  int
	why           string
}{
	{"containerd", "--version", 1, 7, "NRI, which came with 1.7"},
	{"crio", "--version", 1, 26, "NRI, which came with 1.26"},
	{"kata-runtime", "--version", 3, 0, "VFIO devices as this project uses them"},
}

var version = lazyregexp.New(`\bv?(\d+)\.(\d+)(?:\.\d+)?`)

func (m *machine) checkRuntimes(ctx context.Context) (all []Finding) {
	for _, r := range runtimes {
		program := m.runner.Find(r.program)
		if program == "" {
			continue
		}
		out, err := m.runner.Run(ctx, "", r.program, r.args)
		found := version.FindStringSubmatch(out)
		if err != nil || found == nil {
			all = append(all, Finding{r.program, Warning, fmt.Sprintf("%s does not tell its version: %q", program, lastLines(out, 1)), fmt.Sprintf("expected %d.%d or later", r.major, r.minor)})
			continue
		}
		major, _ := strconv.Atoi(found[1])
		minor, _ := strconv.Atoi(found[2])
		if major > r.major || major == r.major && minor >= r.minor {
			all = append(all, Finding{r.program, OK, program + " is " + found[0], ""})
			continue
		}
		all = append(all, Finding{r.program, Warning, program + " is " + found[0], fmt.Sprintf("expected %d.%d or later for %s", r.major, r.minor, r.why)})
	}
	return all
}
