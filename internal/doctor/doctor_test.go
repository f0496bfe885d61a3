package doctor_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/doctor"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// expectWrong expects exactly these checks to be in a state other than ok and
// skip.
func expectWrong(t *testing.T, r *doctor.Report, want map[string]doctor.State) {
	t.Helper()
	for _, c := range r.Checks {
		expected := want[c.Check]
		if wrong := c.State == doctor.Fail || c.State == doctor.Warn; wrong && expected != c.State || !wrong && expected != "" {
			t.Errorf("%s is %s (%s %v), expected %q", c.Check, c.State, c.Reason, c.Evidence, expected)
		}
	}
}

func TestNothingIsWrongWithANodeThatWasProvisioned(t *testing.T) {
	r := healthy(t, machine()).examine()
	for _, c := range r.Checks {
		if c.State != doctor.OK {
			t.Errorf("%s is %s: %s %v", c.Check, c.State, c.Reason, c.Evidence)
		}
		if c.About == "" || c.Mend != "" || c.Reason != "" {
			t.Errorf("%s is well: about %q, reason %q, mend %q", c.Check, c.About, c.Reason, c.Mend)
		}
	}
	if r.Worst() != doctor.OK || r.Summary.OK != len(doctor.Checks) {
		t.Errorf("worst is %s, %+v", r.Worst(), r.Summary)
	}
}

// fault is one thing that is wrong with a node.
type fault struct {
	name     string
	machine  func(*qattest.Node) // before the node is made
	plant    func(*node)         // after
	check    string
	state    doctor.State // "" for Fail
	evidence string       // a part of it: a path and what is there
	mend     string       // a part of it
}

var faults = []fault{
	{
		name: "the configuration is not valid", plant: func(n *node) { n.options.ConfigErr = errors.New("config.toml:3: unknown key") },
		check: "config", evidence: "/etc/kata-qat/config.toml: config.toml:3: unknown key", mend: "docs/configuration.md",
	},
	{
		name: "the kernel has no VFIO",
		plant: func(n *node) {
			n.remove("/sys/module/vfio_pci")
			n.write("/lib/modules/6.12.0-test/modules.dep", "kernel/drivers/vfio/vfio_iommu_type1.ko.xz:\n")
		},
		check: "vfio-kernel", evidence: "Linux 6.12.0-test has no module vfio-pci", mend: "kata-qat provision host --driver packages",
	},
	{
		name: "a module of VFIO is not loaded", plant: func(n *node) { n.remove("/sys/module/vfio_iommu_type1") },
		check: "vfio-modules", evidence: "module vfio_iommu_type1: not loaded, expected loaded", mend: "kata-qat provision host",
	},
	{
		name: "every device is excluded", plant: func(n *node) { n.options.Config.Provision.PF = []config.PFRule{{Exclude: true}} },
		check: "pf", evidence: "2 PFs, all excluded", mend: "/etc/kata-qat/config.toml",
	},
	{
		name: "more VFs than a device has",
		plant: func(n *node) {
			more := 5
			n.options.Config.Provision.PF = []config.PFRule{{Match: config.Match{Family: "4xxx"}, VFs: &more}, {}}
		},
		check: "sriov", evidence: "0000:6b:00.0 can have 4 VFs, and 5 are asked for", mend: "kata-qat provision host",
	},
	{
		name: "auto_reset is off",
		plant: func(n *node) {
			on := true
			n.options.Config.Provision.PF = []config.PFRule{{Match: config.Match{Family: "4xxx"}, AutoReset: &on}, {}}
			n.must(n.Set(gen4, "qat/auto_reset", "off"))
		},
		check: "auto-reset", evidence: "/sys/bus/pci/devices/0000:6b:00.0/qat/auto_reset: off, expected on", mend: "kata-qat provision host",
	},
	{
		name: "VT-d is off in the firmware", plant: func(n *node) {
			n.remove("/sys/firmware/acpi/tables/DMAR")
			n.write("/sys/firmware/acpi/tables/FACP", "")
		},
		check: "vt-d", evidence: "/sys/firmware/acpi/tables: neither DMAR nor IVRS", mend: "firmware-setup",
	},
	{
		name: "started without intel_iommu=on, with an IOMMU all the same", plant: func(n *node) { n.write("/proc/cmdline", "quiet iommu=pt\n") },
		check: "kernel-command-line", state: doctor.Warn, evidence: "/proc/cmdline: without intel_iommu=on", mend: "kata-qat provision host && reboot",
	},
	{
		name: "the IOMMU switched off by hand", plant: func(n *node) { n.write("/proc/cmdline", "intel_iommu=off intel_iommu=on iommu=pt\n") },
		check: "kernel-command-line", evidence: "/proc/cmdline: intel_iommu=off", mend: "remove intel_iommu=off",
	},
	{
		name: "no IOMMU", plant: func(n *node) {
			for _, group := range n.glob("/sys/kernel/iommu_groups/*") {
				n.remove(group)
			}
			for _, link := range n.glob("/sys/devices/pci*/*/iommu_group") {
				n.remove(link)
			}
		},
		check: "iommu", evidence: "/sys/kernel/iommu_groups: empty", mend: "dmesg",
	},
	{
		name: "locked down for confidentiality", plant: func(n *node) { n.write("/sys/kernel/security/lockdown", "none integrity [confidentiality]\n") },
		check: "lockdown", state: doctor.Warn, evidence: "/sys/kernel/security/lockdown: none integrity [confidentiality]", mend: "lockdown=integrity",
	},
	{
		name: "VFIO is not loaded at boot", plant: func(n *node) { n.remove("/etc/modules-load.d/kata-qat.conf") },
		check: "modules-load", evidence: "/etc/modules-load.d/kata-qat.conf: none", mend: "kata-qat provision host",
	},
	{
		name: "modprobe's options were edited", plant: func(n *node) { n.write("/etc/modprobe.d/kata-qat.conf", "options vfio-pci ids=8086:37c9\n") },
		check: "modprobe", evidence: "/etc/modprobe.d/kata-qat.conf: other than expected", mend: "kata-qat provision host",
	},
	{
		name: "a VF driver is loaded", plant: func(n *node) { n.write("/sys/module/qat_c62xvf/refcnt", "0\n") },
		check: "vf-modules", state: doctor.Warn, evidence: "/sys/module/qat_c62xvf: loaded", mend: "modprobe -r qat_c62xvf",
	},
	{
		name: "the udev rule is gone", plant: func(n *node) { n.remove("/etc/udev/rules.d/70-kata-qat.rules") },
		check: "udev-rule", evidence: "/etc/udev/rules.d/70-kata-qat.rules: none", mend: "kata-qat provision host",
	},
	{
		name: "the boot unit is not enabled", plant: func(n *node) { n.remove("/etc/systemd/system/multi-user.target.wants/kata-qat-provision.service") },
		check: "boot-unit", evidence: "multi-user.target.wants/kata-qat-provision.service: none", mend: "kata-qat provision host",
	},
	{
		name: "a device cannot be read", plant: func(n *node) { n.must(n.Break(gen4, "numa_node")) },
		check: "sysfs", evidence: "/sys/bus/pci/devices/0000:6b:00.0: ", mend: "dmesg",
	},
	{
		name: "firmware is missing", plant: func(n *node) { n.remove("/lib/firmware/intel/qat/qat_4xxx_mmp.bin.zst") },
		check: "firmware", state: doctor.Warn, evidence: "no qat_4xxx_mmp.bin", mend: "kata-qat provision host --driver packages",
	},
	{
		name: "a PF is bound to another driver", plant: func(n *node) { n.must(n.Rebind(gen2, "uio_pci_generic")) },
		check: "pf-driver", evidence: "/sys/bus/pci/devices/0000:3d:00.0/driver: uio_pci_generic, expected c6xx (module qat_c62x)", mend: "/sys/bus/pci/drivers/uio_pci_generic/unbind",
	},
	{
		name: "a PF is down", plant: func(n *node) { n.must(n.Set(gen4, "qat/state", "down")) },
		check: "pf-state", evidence: "/sys/bus/pci/devices/0000:6b:00.0/qat/state: down, expected up", mend: "kata-qat provision host",
	},
	{
		name: "the firmware hangs", plant: func(n *node) { n.must(n.Kill(gen4)) },
		check: "heartbeat", evidence: "/sys/kernel/debug/qat_4xxx_0000:6b:00.0/heartbeat/status: -1, expected 0", mend: "echo down > /sys/bus/pci/devices/0000:6b:00.0/qat/state",
	},
	{
		name: "other services than configured",
		plant: func(n *node) {
			n.options.Config.Provision.PF = []config.PFRule{{Match: config.Match{Family: "4xxx"}, Services: "dc"}, {}}
		},
		check: "services", evidence: "/sys/bus/pci/devices/0000:6b:00.0/qat/cfg_services: sym;asym, expected dc", mend: "kata-qat provision host",
	},
	{
		name: "the host's drivers may take new VFs", plant: func(n *node) { n.must(n.Set(gen4, "sriov_drivers_autoprobe", "1")) },
		check: "autoprobe", evidence: "/sys/bus/pci/devices/0000:6b:00.0/sriov_drivers_autoprobe: 1, expected 0", mend: "kata-qat provision host",
	},
	{
		name: "no VFs",
		plant: func(n *node) {
			for _, vf := range []qat.Address{gen2VF, "0000:3d:01.1"} {
				n.must(n.Remove(vf))
			}
			n.must(n.Set(gen2, "sriov_numvfs", "0"))
			n.remove("/var/run/cdi/qat.intel.com-generic.json") // as the daemon does
		},
		check: "vfs", evidence: "/sys/bus/pci/devices/0000:3d:00.0/sriov_numvfs: 0, expected 2", mend: "kata-qat provision host",
	},
	{
		name: "a VF is bound to its own driver", plant: func(n *node) { n.must(n.Rebind(gen4VF, "4xxxvf")) },
		check: "vf-driver", evidence: "/sys/bus/pci/devices/0000:6b:00.1/driver: 4xxxvf, expected vfio-pci", mend: "kata-qat provision host",
	},
	{
		name: "vfio-pci has its deny-list", plant: func(n *node) { n.write("/sys/module/vfio_pci/parameters/disable_denylist", "N\n") },
		check: "deny-list", evidence: "/sys/module/vfio_pci/parameters/disable_denylist: N, expected Y", mend: "kata-qat provision host",
	},
	{
		name: "a foreign device in a group",
		machine: func(m *qattest.Node) {
			m.Others = []qattest.Device{{Address: "0000:3b:00.0", Vendor: 0x8086, Device: 0x1521, Group: 100}}
		},
		plant: func(n *node) { n.must(n.Rebind("0000:3b:00.0", "igb")) },
		check: "groups", evidence: "IOMMU group 100 also holds 0000:3b:00.0 (igb)", mend: "exclude = true",
	},
	{
		name: "anybody may open a VF", plant: func(n *node) { n.must(os.Chmod(filepath.Join(n.Root, "dev/vfio/100"), 0o666)) },
		check: "nodes", evidence: "/dev/vfio/100: a character device, mode 0666", mend: "udevadm trigger",
	},
	{
		name: "a node is missing", plant: func(n *node) { n.remove("/dev/vfio/201") },
		check: "nodes", evidence: "/dev/vfio/201: no such file or directory", mend: "udevadm trigger",
	},
	{
		name: "a node's owner is another", plant: func(n *node) { n.must(unix.Chown(filepath.Join(n.Root, "dev/vfio/100"), 1000, 0)) },
		check: "nodes", evidence: "uid 1000, gid 0, expected a character device, mode 0600, uid 0", mend: "udevadm trigger",
	},
	{
		name: "standalone beside a kubelet", plant: func(n *node) { n.options.Config.Standalone = true },
		check: "standalone", evidence: "/var/lib/kubelet/pod-resources/kubelet.sock: there", mend: "standalone = false",
	},
	{
		name: "everybody may write to the run directory", plant: func(n *node) { n.must(os.Chmod(filepath.Join(n.Root, "run/kata-qat"), 0o777)) },
		check: "run-dir", evidence: "/run/kata-qat: mode 0777", mend: "chmod 0755 /run/kata-qat",
	},
	{
		name: "the daemon is away", plant: func(n *node) { n.stop(nodeSocket) },
		check: "daemon", evidence: "/run/kata-qat/node.sock: ", mend: "systemctl restart kata-qat",
	},
	{
		name: "the daemon is of another version", plant: func(n *node) { n.daemon.version = "0.0.1" },
		check: "daemon-version", state: doctor.Warn, evidence: "Health: version 0.0.1", mend: "systemctl restart kata-qat",
	},
	{
		name: "the daemon is not connected", plant: func(n *node) { n.daemon.connected = false },
		check: "nri-connected", evidence: "/var/run/nri/nri.sock: not connected", mend: "journalctl -u kata-qat",
	},
	{
		name: "kubelet is away", plant: func(n *node) { n.stop("/var/lib/kubelet/pod-resources/kubelet.sock") },
		check: "kubelet", evidence: "/var/lib/kubelet/pod-resources/kubelet.sock: ", mend: "systemctl restart kubelet",
	},
	{
		name: "no device plugin offers the VFs", plant: func(n *node) { n.offered.Store([]string{}) },
		check: "device-plugin", state: doctor.Warn, evidence: "kubelet.sock: 0 devices of qat.intel.com, expected ", mend: "enable = true in [device_plugin]",
	},
	{
		name: "one VF is not offered", plant: func(n *node) { n.offered.Store(vfs(machine())[1:]) },
		check: "device-plugin", state: doctor.Warn, evidence: "kubelet.sock: does not have 0000:6b:00.1, expected qat.intel.com/cy", mend: "journalctl -u kata-qat",
	},
	{
		name: "a CDI file lacks a VF", plant: func(n *node) {
			n.write("/var/run/cdi/qat.intel.com-cy.json", `{"kind":"qat.intel.com/cy","devices":[{"name":"0000:6b:00.1"}]}`)
		},
		check: "cdi", evidence: "/var/run/cdi/qat.intel.com-cy.json: 1 devices of kind qat.intel.com/cy, without 0000:6b:00.2", mend: "systemctl reload kata-qat",
	},
	{
		name: "a CDI file names a VF that is gone", plant: func(n *node) {
			n.write("/var/run/cdi/qat.intel.com-generic.json", `{"kind":"qat.intel.com/generic","devices":[{"name":"0000:3d:01.0"},{"name":"0000:3d:01.1"},{"name":"0000:3d:01.2"}]}`)
		},
		check: "cdi", evidence: "0000:3d:01.2, which is no VF of this machine", mend: "systemctl reload kata-qat",
	},
	{
		name: "containerd is away", plant: func(n *node) { n.stop("/run/containerd/containerd.sock") },
		check: "containerd", evidence: "/run/containerd/containerd.sock: ", mend: "systemctl restart containerd",
	},
	{
		name: "containerd has no validators", plant: func(n *node) {
			n.version.Store("1.7.35")
			n.write("/etc/containerd/conf.d/90-nri.toml", "[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n")
		},
		check: "containerd-version", state: doctor.Warn, evidence: "version 1.7.35, expected 2.2 or later", mend: "upgrade containerd",
	},
	{
		name: "containerd's configuration is broken", plant: func(n *node) { n.write("/etc/containerd/conf.d/99.toml", "[[") },
		check: "containerd-config", evidence: "/etc/containerd/conf.d/99.toml:1:2: ", mend: "containerd config dump",
	},
	{
		name: "NRI is off", plant: func(n *node) {
			n.write("/etc/containerd/conf.d/99.toml", "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n")
		},
		check: "nri", evidence: "[plugins.'io.containerd.nri.v1.nri'] disable: true, expected false", mend: "kata-qat provision runtime",
	},
	{
		name: "NRI takes no connections", plant: func(n *node) {
			n.write("/etc/containerd/conf.d/99.toml", "[plugins.'io.containerd.nri.v1.nri']\ndisable_connections = true\n")
		},
		check: "nri", evidence: "[plugins.'io.containerd.nri.v1.nri'] disable_connections: true, expected false", mend: "kata-qat provision runtime",
	},
	{
		name: "the plugin is not required", plant: func(n *node) {
			n.write("/etc/containerd/conf.d/99.toml", "[plugins.'io.containerd.nri.v1.nri'.default_validator]\nrequired_plugins = [\"other\"]\n")
		},
		check: "nri-required", evidence: "enable = true, required_plugins = [other], expected enable = true, required_plugins = [kata-qat]", mend: "kata-qat provision runtime",
	},
	{
		name: "the real shim is gone", plant: func(n *node) { n.remove("/opt/kata/bin/containerd-shim-kata-v2") },
		check: "shim-config", evidence: "/etc/kata-qat/shim.toml runtimes.kata-qat: /opt/kata/bin/containerd-shim-kata-v2: no such file", mend: "kata-qat provision runtime",
	},
	{
		name: "the shim asks another daemon", plant: func(n *node) {
			n.options.Config.RunDir, n.options.Config.CDI.Dir = "/run/other", ""
			n.must(os.Rename(filepath.Join(n.Root, "run/kata-qat"), filepath.Join(n.Root, "run/other")))
		},
		check: "shim-config", evidence: "/etc/kata-qat/shim.toml socket: /run/kata-qat/node.sock, expected /run/other/node.sock", mend: "kata-qat provision runtime",
	},
	{
		name: "the handler has Kata's shim", plant: func(n *node) {
			n.write("/etc/containerd/conf.d/99.toml", "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qat]\nruntime_path = \"/opt/kata/bin/containerd-shim-kata-v2\"\n")
		},
		check: "handlers", evidence: "/etc/containerd/conf.d/99.toml runtimes.kata-qat.runtime_path: /opt/kata/bin/containerd-shim-kata-v2, expected the path of containerd-shim-kata-qat-v2", mend: "kata-qat provision runtime",
	},
	{
		name: "Kata's configuration is gone", plant: func(n *node) { n.remove(base) },
		check: "kata-config", evidence: base + ": no such file", mend: "kata-qat provision runtime",
	},
	{
		name: "Kata's drop-in is missing", plant: func(n *node) {
			n.write(dropIn, "[hypervisor.qemu]\nenable_iommu = true\n[runtime]\nvfio_mode = \"vfio\"\n")
		},
		check: "cold-plug", evidence: base + ` [hypervisor.qemu] cold_plug_vfio: "", and hot_plug_vfio "" (handler kata-qat), expected "root-port"`, mend: "kata-qat provision runtime",
	},
	{
		name: "a leftover among Kata's drop-ins", plant: func(n *node) { n.write(dropIn+".bak", "") },
		check: "kata-config-d", evidence: dropIn + ".bak: a leftover?", mend: "mv '" + dropIn + ".bak'",
	},
	{
		name: "the profile is another", plant: func(n *node) { n.options.Config.Profile = edits.ProfileGuestKernel },
		check: "kata-profile", evidence: dropIn + ` [runtime] vfio_mode: "vfio" (handler kata-qat), expected "guest-kernel"`, mend: "kata-qat provision runtime",
	},
}

// Each fault alone is found by one check, which says where and what to do; no
// other check finds anything.
func TestEachFaultIsNamedByItsCheckAlone(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			m := machine()
			if f.machine != nil {
				f.machine(&m)
			}
			n := healthy(t, m)
			if f.plant != nil {
				f.plant(n)
			}
			r := n.examine()
			if f.state == "" {
				f.state = doctor.Fail
			}
			expectWrong(t, r, map[string]doctor.State{f.check: f.state})
			c := r.Result(f.check)
			var evidence []string
			for _, e := range c.Evidence {
				evidence = append(evidence, e.String())
			}
			if !strings.Contains(strings.Join(evidence, "\n"), f.evidence) {
				t.Errorf("evidence\n%s\nexpected\n%s", strings.Join(evidence, "\n"), f.evidence)
			}
			if !strings.Contains(c.Mend, f.mend) || f.mend == "" {
				t.Errorf("mend %q, expected %q", c.Mend, f.mend)
			}
			if r.Worst() != f.state {
				t.Errorf("worst is %s", r.Worst())
			}
		})
	}
}

// Kata looks for drop-ins beside the file that a link leads to.
func TestKatasConfigurationMayBeALink(t *testing.T) {
	n := healthy(t, machine())
	const link = "/etc/kata-containers/configuration.toml"
	n.must(os.MkdirAll(filepath.Join(n.Root, filepath.Dir(link)), 0o755))
	n.must(os.Symlink(base, filepath.Join(n.Root, link))) // absolute: on the host
	n.write("/etc/containerd/conf.d/99.toml", "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qat]\noptions.ConfigPath = \""+link+"\"\n")
	expectWrong(t, n.examine(), nil)
}

func TestThereIsAFaultForEachCheck(t *testing.T) {
	for _, c := range doctor.Checks {
		if !slices.ContainsFunc(faults, func(f fault) bool { return f.check == c.ID }) {
			t.Errorf("%s finds no fault here", c.ID)
		}
	}
}

// Where there is nothing, it is said once what there should be.
func TestABareMachineIsToldWhatIsMissingAndNothingTwice(t *testing.T) {
	root := t.TempDir()
	o := doctor.Options{Root: root, Config: config.Default(), ConfigFile: root + config.Path, Containerd: containerstest.NodeAt(root)}
	expectWrong(t, doctor.Run(t.Context(), o), map[string]doctor.State{
		"kernel-command-line": doctor.Fail, "sysfs": doctor.Fail, "pf": doctor.Fail, "run-dir": doctor.Fail, "kubelet": doctor.Fail,
		"containerd": doctor.Fail, "containerd-config": doctor.Fail, "shim-config": doctor.Fail,
	})
}

// What is examined is not changed, whatever is wrong with it.
func TestNothingIsWritten(t *testing.T) {
	n := healthy(t, machine())
	for _, f := range faults {
		if f.machine == nil && f.check != "run-dir" {
			f.plant(n)
		}
	}
	before := n.snapshot()
	n.examine()
	if diff := cmp.Diff(before, n.snapshot()); diff != "" {
		t.Errorf("the tree has changed:\n%s", diff)
	}
}

func TestTheManualHasEveryCheck(t *testing.T) {
	manual, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range doctor.Checks {
		if n := strings.Count(string(manual), "| `"+c.ID+"` |"); n != 1 {
			t.Errorf("docs/troubleshooting.md has %d rows for %s, expected 1", n, c.ID)
		}
	}
	if rows := strings.Count(string(manual), "\n| `"); rows != len(doctor.Checks) {
		t.Errorf("docs/troubleshooting.md has %d rows, and there are %d checks", rows, len(doctor.Checks))
	}
}

func TestTheTableShowsWhereAndHow(t *testing.T) {
	n := healthy(t, machine())
	n.must(n.Rebind(gen4VF, "4xxxvf"))
	n.write("/sys/module/qat_4xxxvf/refcnt", "0\n")
	r := n.examine()
	var b strings.Builder
	if err := doctor.Write(&b, output.Table, r, true, output.Colours{}); err != nil {
		t.Fatal(err)
	}
	want := `host
  WARN  vf-modules           VFs are for VMs: a driver of the host may take a new one before VFIO
                             /sys/module/qat_4xxxvf: loaded, expected not loaded
                             > modprobe -r qat_4xxxvf
devices
  FAIL  vf-driver            VMs get VFs by VFIO
                             /sys/bus/pci/devices/0000:6b:00.1/driver: 4xxxvf, expected vfio-pci
                             > kata-qat provision host
`
	if got, _, _ := strings.Cut(b.String(), fmt.Sprint(r.Summary.OK, " ok")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
