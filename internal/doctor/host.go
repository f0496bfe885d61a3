package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

const acpiTables = "/sys/firmware/acpi/tables"

// checkFirmwareIOMMU looks for ACPI's tables of IOMMUs: DMAR is Intel's, IVRS
// AMD's.
func checkFirmwareIOMMU(_ context.Context, p *patient) finding {
	names, err := p.list(acpiTables)
	if err != nil {
		return skip("no ACPI tables can be seen here")
	}
	for _, table := range []string{"DMAR", "IVRS"} {
		if slices.Contains(names, table) {
			return ok(Evidence{Path: acpiTables + "/" + table, Value: "there"})
		}
	}
	return fail("VT-d (AMD: IOMMU) is off in the firmware", "systemctl reboot --firmware-setup  # and switch VT-d on",
		Evidence{Path: acpiTables, Value: "neither DMAR nor IVRS", Want: "one of them"})
}

// checkCommandLine wants what provision host gives to the kernel. A kernel can
// have the IOMMU on without (CONFIG_INTEL_IOMMU_DEFAULT_ON).
func checkCommandLine(_ context.Context, p *patient) finding {
	const file = "/proc/cmdline"
	line, err := p.sys(file)
	if err != nil {
		return unknown(file, err)
	}
	wanted := []string{"intel_iommu=on", "iommu=pt"}
	if tables, err := p.list(acpiTables); err == nil && slices.Contains(tables, "IVRS") {
		wanted = wanted[1:] // AMD's is on by itself
	}
	words := strings.Fields(line)
	for _, off := range []string{"intel_iommu=off", "amd_iommu=off", "iommu=off"} {
		if slices.Contains(words, off) {
			return fail("it switches the IOMMU off", "remove "+off+" from the boot loader's configuration, then reboot", Evidence{Path: file, Value: off})
		}
	}
	missing := slices.DeleteFunc(slices.Clone(wanted), func(w string) bool { return slices.Contains(words, w) })
	e := Evidence{Path: file, Value: "without " + strings.Join(missing, " "), Want: strings.Join(wanted, " ")}
	switch {
	case len(missing) == 0:
		return ok(Evidence{Path: file, Value: strings.Join(wanted, " ")})
	case p.translating() > 0:
		return warn("the IOMMU is on without, but the host's own devices may be slower", provisionHost+" && reboot", e)
	}
	return fail("the IOMMU stays off", provisionHost+" && reboot", e)
}

const iommuGroups = "/sys/kernel/iommu_groups"

// translating counts the groups that are not of vfio's no-IOMMU mode.
func (p *patient) translating() (n int) {
	groups, _ := p.list(iommuGroups)
	for _, g := range groups {
		if name, err := p.sys(iommuGroups + "/" + g + "/name"); err != nil || name != "vfio-noiommu" {
			n++
		}
	}
	return n
}

func checkIOMMU(_ context.Context, p *patient) finding {
	if n := p.translating(); n > 0 {
		return ok(Evidence{Path: iommuGroups, Value: fmt.Sprintf("%d groups", n)})
	}
	e := Evidence{Path: iommuGroups, Value: "empty", Want: "groups"}
	switch {
	case p.Config.AllowNoIOMMU:
		return warn("allow_no_iommu is set: whoever holds a VF can read and write all of the host's memory", provisionHost+" && reboot", e)
	case p.failed("vt-d") || p.failed("kernel-command-line"):
		e.Want = ""
		return skip("see vt-d and kernel-command-line", e)
	}
	return fail("no VF can be confined to a VM", "dmesg | grep -i -e dmar -e iommu", e)
}

// checkLockdown says what integrity modes take away. Secure Boot alone matters
// only for drivers that are built here, which the preflight knows.
func checkLockdown(_ context.Context, p *patient) finding {
	const file = "/sys/kernel/security/lockdown"
	const trust = "mokutil --list-enrolled"
	for _, f := range p.preflight {
		if f.Check == "Secure Boot" {
			return warn(f.Fix, trust, Evidence{Path: f.Check, Value: f.Evidence})
		}
	}
	mode, err := p.sys(file)
	if err != nil || mode == "" {
		return ok(Evidence{Path: file, Value: "none"})
	}
	if strings.Contains(mode, "[confidentiality]") {
		return warn("heartbeat and counters, which are in debugfs, cannot be read", "boot with lockdown=integrity", Evidence{Path: file, Value: mode})
	}
	return ok(Evidence{Path: file, Value: mode})
}

// checkVFIOKernel takes the word of the preflight, which has read what modules
// there are.
func checkVFIOKernel(_ context.Context, p *patient) finding {
	if p.loaded("vfio_pci") {
		return ok(Evidence{Path: "/sys/module/vfio_pci", Value: "there"})
	}
	if len(p.pfs) == 0 || p.preErr != nil {
		return skip("see pf")
	}
	return p.found("VFIO")
}

// checkVFModules finds drivers that would take VFs on the host.
func checkVFModules(_ context.Context, p *patient) finding {
	if len(p.pfs) == 0 {
		return skip("see pf")
	}
	var found []Evidence
	var names []string
	for _, f := range p.families() {
		if p.loaded(f.VFModule) && !slices.Contains(names, f.VFModule) {
			names = append(names, f.VFModule)
			found = append(found, Evidence{Path: "/sys/module/" + f.VFModule, Value: "loaded", Want: "not loaded"})
		}
	}
	if len(found) > 0 {
		return warn("VFs are for VMs: a driver of the host may take a new one before VFIO", "modprobe -r "+strings.Join(names, " "), found...)
	}
	return ok()
}

// checkBootUnit takes the plan's word, and says what stands against a unit.
func checkBootUnit(ctx context.Context, p *patient) finding {
	const unit = "/etc/systemd/system/kata-qat-provision.service"
	step := p.steps["boot-unit"]
	if len(p.pfs) == 0 || step == nil {
		return skip("see pf")
	}
	state, err := step.Check(ctx)
	if err != nil {
		return unknown(unit, err)
	}
	if len(state.Notes) > 0 {
		if !p.Config.Provision.BootUnit {
			return skip(state.Notes[0])
		}
		return warn(state.Notes[0], "install kata-qat in /usr/local/bin, then "+provisionHost, Evidence{Path: unit, Value: "none"})
	}
	changes, err := p.plan(ctx, "boot-unit")
	if err != nil {
		return unknown(unit, err)
	}
	var wrong []Evidence
	for _, c := range changes {
		wrong = append(wrong, evidence(c))
	}
	if len(wrong) > 0 {
		return fail("VFs do not outlive a boot", provisionHost, wrong...)
	}
	return ok(Evidence{Path: unit, Value: "enabled"})
}
