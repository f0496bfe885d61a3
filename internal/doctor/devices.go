package doctor

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

func checkSysfs(_ context.Context, p *patient) finding {
	const bus = "/sys/bus/pci/devices"
	if p.invErr != nil {
		return fail("there is no PCI bus to be seen", "mount -t sysfs sysfs /sys", Evidence{Path: bus, Value: bare(p.invErr).Error()})
	}
	var wrong []Evidence
	for _, problem := range p.inventory.Problems {
		wrong = append(wrong, Evidence{Path: bus + "/" + problem.Address, Value: problem.Err.Error()})
	}
	if len(wrong) > 0 {
		return fail("what cannot be read is not handed out", "dmesg | tail  # then reset the device, or reboot", wrong...)
	}
	return ok(Evidence{Path: bus, Value: fmt.Sprintf("%d PFs", len(p.inventory.PFs))})
}

func checkPF(_ context.Context, p *patient) finding {
	if len(p.pfs) > 0 {
		var all []Evidence
		for _, pf := range p.pfs {
			all = append(all, Evidence{Path: device(pf.Address, "device"), Value: fmt.Sprintf("0x%04x (%s)", pf.Family.PFDevice, pf.Family.Name)})
		}
		return ok(all...)
	}
	if n := len(p.inventory.PFs); n > 0 {
		return fail("no rule of provision.pf matches any PF", "edit "+p.ConfigFile, Evidence{Path: "/sys/bus/pci/devices", Value: fmt.Sprintf("%d PFs, all excluded", n)})
	}
	if n := len(p.inventory.Orphans); n > 0 {
		return warn("the VFs of this machine are given to it from outside, and nothing of them is checked here", "kata-qat devices", Evidence{Path: "/sys/bus/pci/devices", Value: fmt.Sprintf("%d VFs without a PF", n)})
	}
	return fail("no QAT physical function is on the PCI bus: switch it on in the firmware", "lspci -nn -d 8086:", Evidence{Path: "/sys/bus/pci/devices", Value: "no QAT device", Want: "one of kata-qat's families"})
}

func checkPFDriver(_ context.Context, p *patient) finding {
	var seen, wrong []Evidence
	mend := provisionHost
	for _, pf := range p.pfs {
		e := Evidence{Path: device(pf.Address, "driver"), Value: cmp.Or(pf.Driver, "none")}
		// pci-pf-stub makes VFs too, of a PF that nobody needs otherwise.
		if pf.Driver == pf.Family.PFDriver || pf.Driver == "pci-pf-stub" {
			seen = append(seen, e)
			continue
		}
		e.Want = fmt.Sprintf("%s (module %s)", pf.Family.PFDriver, pf.Family.PFModule)
		wrong = append(wrong, e)
		if pf.Driver != "" {
			mend = fmt.Sprintf("echo %s > /sys/bus/pci/drivers/%s/unbind && %s", pf.Address, pf.Driver, provisionHost)
		}
	}
	switch {
	case len(p.pfs) == 0:
		return skip("see pf")
	case len(wrong) == 0:
		return ok(seen...)
	}
	if f := p.found("driver"); f.state == Fail && mend == provisionHost {
		return fail(f.reason, f.mend, wrong...) // there is no such module
	}
	return fail("a device without its driver has no VFs", mend, wrong...)
}

func checkHeartbeat(_ context.Context, p *patient) finding {
	var seen, dead []Evidence
	mend := ""
	for _, pf := range p.pfs {
		e := Evidence{Path: fmt.Sprintf("/sys/kernel/debug/qat_%s_%s/heartbeat/status", pf.Family.PFDriver, pf.Address), Value: string(pf.Health)}
		switch pf.Health {
		case qat.HealthDead:
			e.Value, e.Want = "-1", "0"
			dead = append(dead, e)
			state := device(pf.Address, "qat/state")
			mend = fmt.Sprintf("echo down > %s && echo up > %[1]s  # stop the pods that hold its VFs before", state)
		case qat.HealthOK:
			seen = append(seen, e)
		}
	}
	switch {
	case len(dead) > 0:
		return fail("the firmware hangs; auto_reset = true resets it by itself (Linux 6.8)", mend, dead...)
	case len(seen) == 0:
		return skip("no heartbeat can be read: Linux 6.6 or later has it, in debugfs")
	}
	return ok(seen...)
}

// checkDenyList looks at the module's parameter. Linux before 5.9 had no list,
// and a module that is not loaded no parameter.
func checkDenyList(_ context.Context, p *patient) finding {
	const parameter = "/sys/module/vfio_pci/parameters/disable_denylist"
	for _, f := range p.families() {
		if !f.DenyListed {
			continue
		}
		value, err := p.sys(parameter)
		switch {
		case err != nil:
			return skip("vfio-pci is not loaded, or has no deny-list")
		case value != "Y":
			return fail(fmt.Sprintf("vfio-pci refuses devices of family %s", f.Name), provisionHost, Evidence{Path: parameter, Value: value, Want: "Y"})
		}
		return ok(Evidence{Path: parameter, Value: value})
	}
	return skip("no device of this host is on vfio-pci's deny-list")
}

// vfs calls f for each VF of the PFs that are not excluded.
func (p *patient) vfs(f func(*qat.VF)) {
	for _, pf := range p.pfs {
		for i := range pf.VFs {
			f(&pf.VFs[i])
		}
	}
}

// checkGroups finds what keeps groups from being handed out. A group in which a
// VF of ours is not bound yet is no fault of the group.
func checkGroups(_ context.Context, p *patient) finding {
	if len(p.pfs) == 0 || p.translating() == 0 {
		return skip("see pf and iommu")
	}
	if f := p.found("isolation"); f.state == Fail {
		f.mend = "move the other device to another slot, or set exclude = true for this PF in " + p.ConfigFile
		return f
	}
	groups := make(map[*qat.Group]bool)
	var wrong []Evidence
	p.vfs(func(vf *qat.VF) {
		if vf.Group == nil {
			wrong = append(wrong, Evidence{Path: device(vf.Address, "iommu_group"), Value: "none", Want: "a group"})
			return
		}
		groups[vf.Group] = true
	})
	if len(wrong) > 0 {
		return fail("the IOMMU does not reach these VFs", "dmesg | grep -i iommu", wrong...)
	}
	return ok(Evidence{Path: iommuGroups, Value: fmt.Sprintf("%d groups with nothing but VFs", len(groups))})
}

// checkNodes looks at the nodes of groups that VFIO has, and who may open them.
func checkNodes(_ context.Context, p *patient) finding {
	want, err := p.nodeOwner()
	if err != nil {
		return unknown("/etc/group", err)
	}
	var wrong []Evidence
	seen := make(map[string]bool)
	look := func(node, want string) {
		if seen[node] {
			return
		}
		seen[node] = true
		if got := p.owner(node); want != "" && got != want || want == "" && !strings.HasPrefix(got, "a character") {
			wrong = append(wrong, Evidence{Path: node, Value: got, Want: cmp.Or(want, "a character device")})
		}
	}
	p.vfs(func(vf *qat.VF) {
		if vf.Group != nil && (vf.Driver == vfio.DriverPCI || vf.Driver == vfio.DriverQAT) {
			look(vf.Group.Node(), want)
		}
	})
	if len(seen) == 0 {
		return skip("no VF is bound to VFIO")
	}
	// Anybody may open the control node: without a group's it is of no use
	// (systemd, rules.d/50-udev-default.rules.in).
	look(vfio.ControlNode, "")
	if len(wrong) > 0 {
		return fail("a pod gets no VF without its node, and nobody else may open it", "udevadm control --reload && udevadm trigger --settle --subsystem-match=vfio", wrong...)
	}
	return ok(Evidence{Path: "/dev/vfio", Value: fmt.Sprintf("%d nodes, %s", len(seen)-1, want)})
}

// describe says what a node is like.
func describe(mode fs.FileMode, uid, gid uint32) string {
	return fmt.Sprintf("a character device, mode %04o, uid %d, gid %d", mode.Perm(), uid, gid)
}

// owner describes a node, or says that it is none.
func (p *patient) owner(node string) string {
	var st unix.Stat_t
	switch err := unix.Lstat(filepath.Join(p.Root, node), &st); {
	case err != nil:
		return err.Error()
	case st.Mode&unix.S_IFMT != unix.S_IFCHR:
		return "no character device"
	}
	return describe(fs.FileMode(st.Mode), st.Uid, st.Gid)
}

// nodeOwner describes what provision host's udev rule makes of a node.
func (p *patient) nodeOwner() (string, error) {
	name := p.Config.Provision.NodeGroup
	if name == "" {
		return describe(0o600, 0, 0), nil
	}
	file, err := p.read("/etc/group")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(file)) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); len(fields) > 2 && fields[0] == name {
			gid, err := strconv.ParseUint(fields[2], 10, 32)
			return describe(0o660, 0, uint32(gid)), err
		}
	}
	return "", fmt.Errorf("no group %s, which provision.node_group names: %w", name, os.ErrNotExist)
}
