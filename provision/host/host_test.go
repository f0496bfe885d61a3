package host_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
)

func TestAMachineIsProvisionedAndPutBack(t *testing.T) {
	b := newBench(t, four())
	b.kernel.VFDrivers = true
	before := b.snapshot()

	out, err := b.engine().Plan(t.Context())
	if err != nil || !out.Pending {
		t.Fatalf("plan: pending %t, %v", out.Pending, err)
	}
	b.unchanged(before)

	out = b.apply()
	b.expectDrivers(map[string]int{"vfio-pci": 64})
	if got := step(out, "virtual-functions"); got.Status != plan.Changed || got.Is != "4 PFs, 64 VFs, 64 on vfio-pci" {
		t.Errorf("virtual-functions: %s, %s", got.Status, got.Is)
	}
	for name, want := range map[string]string{
		"/etc/modules-load.d/kata-qat.conf":              "vfio-pci\nvfio_iommu_type1\n",
		"/etc/modprobe.d/kata-qat.conf":                  "options vfio-pci disable_denylist=1\n",
		"/etc/udev/rules.d/70-kata-qat.rules":            `RESULT=="0x37c9*|0x4941*|0x4947*", OWNER="root", GROUP="root", MODE="0600"`,
		"/etc/kata-qat/provision.env":                    "PROVISION_FLAGS=\n",
		"/etc/systemd/system/kata-qat-provision.service": "ExecStart=/usr/local/bin/kata-qat provision host",
	} {
		if !strings.Contains(b.read(name), want) {
			t.Errorf("%s lacks %q:\n%s", name, want, b.read(name))
		}
	}
	if got, err := os.Readlink(filepath.Join(b.root, "etc/systemd/system/multi-user.target.wants/kata-qat-provision.service")); err != nil || got != "/etc/systemd/system/kata-qat-provision.service" {
		t.Errorf("the unit is not enabled: %q, %v", got, err)
	}

	after, writes, ran := b.snapshot(), len(b.kernel.Writes()), len(b.ran())
	out = b.apply()
	if out.Changed || out.Pending || len(b.kernel.Writes()) != writes || len(b.ran()) != ran {
		t.Errorf("a second run changed something: %v, %v", b.kernel.Writes()[writes:], b.ran()[ran:])
	}
	b.unchanged(after)

	b.undo()
	b.unchanged(before)
}

// half is a machine on which somebody has enabled VFs, and bound some.
func half(t *testing.T) *bench {
	pf := gen4("0000:6b:00.0")
	pf.Group, pf.VFs, pf.VFDriver, pf.FirstGroup = 3, 16, "4xxxvf", 100
	b := newBench(t, qattest.Node{PFs: []qattest.PF{pf}})
	for _, a := range []qat.Address{"0000:6b:00.1", "0000:6b:00.5"} {
		if err := b.kernel.Tree.Rebind(a, ""); err != nil && !errors.Is(err, qattest.ErrMknod) {
			t.Fatal(err)
		}
	}
	return b
}

func TestVFsThatAreThereAreOnlyBound(t *testing.T) {
	b := half(t)
	before := b.snapshot()
	b.apply()
	b.expectDrivers(map[string]int{"vfio-pci": 16})
	for _, w := range b.kernel.Writes() {
		if strings.Contains(w, "sriov_numvfs") {
			t.Errorf("%s: the VFs were there", w)
		}
	}
	b.undo()
	b.unchanged(before)
}

// What was before the first run counts, whatever later runs change, be it in
// another order of the steps.
func TestRunsThatWantDifferentThingsAreUndoneTogether(t *testing.T) {
	on, none := true, 0
	for name, start := range map[string]func(*testing.T) *bench{
		"new":              func(t *testing.T) *bench { return newBench(t, one()) },
		"half provisioned": half,
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t)
			b.files(map[string]string{"/sys/bus/pci/devices/0000:6b:00.0/qat/auto_reset": "off\n"})
			before := b.snapshot()
			for _, rule := range []config.PFRule{{AutoReset: &on}, {Services: "dc"}, {VFs: &none}, {Services: "sym"}, {}} {
				b.options.Config.PF = []config.PFRule{rule}
				b.apply()
			}
			b.expectDrivers(map[string]int{"vfio-pci": 16})
			b.undo()
			b.unchanged(before)
		})
	}
}

var errKilled = errors.New("killed")

// A run that is killed anywhere is completed by another, and undone by an undo.
// A fault is only looked at between two changes, and one that happens while PFs
// are worked on at once stops each of them there.
func TestAKilledRunIsCompletedAndUndone(t *testing.T) {
	machines := map[string]func(t *testing.T) *bench{
		"new": func(t *testing.T) *bench {
			b := newBench(t, one())
			b.grub()
			return b
		},
		"half provisioned, other services": func(t *testing.T) *bench {
			b := half(t)
			b.options.Config.PF = []config.PFRule{{Services: "dc"}}
			return b
		},
	}
	for name, start := range machines {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				if !killedAt(t, start, n) {
					if n < 20 {
						t.Errorf("only %d places to be killed at", n)
					}
					return
				}
				if t.Failed() {
					t.Fatalf("killed at place %d", n)
				}
			}
		})
	}
}

// killedAt kills a run at its n-th place and sees that another goes on, or goes
// back. It returns false if there is no such place.
func killedAt(t *testing.T, start func(*testing.T) *bench, n int) bool {
	for _, back := range []bool{false, true} {
		b := start(t)
		before := b.snapshot()
		e := b.engine()
		e.Fault = faultAt(n)
		_, err := e.Apply(context.Background())
		if err == nil {
			return false
		}
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if !back {
			b.apply()
			b.expectDrivers(map[string]int{"vfio-pci": 16})
			if out, err := b.engine().Plan(t.Context()); err != nil || out.Pending && !out.Reboot {
				t.Errorf("something is still to be changed: %v", err)
			}
		}
		b.undo()
		b.unchanged(before)
	}
	return true
}

func faultAt(n int) func(string) error {
	return func(point string) error {
		if n--; n == 0 {
			return fmt.Errorf("%w at %s", errKilled, point)
		}
		return nil
	}
}

func TestAKilledUndoIsCompletedByAnother(t *testing.T) {
	for n := 1; n < 20; n++ {
		b := half(t)
		b.options.Config.PF = []config.PFRule{{Services: "dc"}}
		before := b.snapshot()
		b.apply()
		e := b.engine()
		e.Fault = faultAt(n)
		_, err := e.Undo(context.Background())
		if err == nil {
			return
		}
		b.undo()
		b.unchanged(before)
	}
	t.Error("undo did not end")
}

func TestRulesChooseWhatAPFIsLike(t *testing.T) {
	two, node1 := 2, 1
	on := true
	tests := []struct {
		name  string
		rules []config.PFRule
		exact bool
		want  map[string]int
		check func(*bench) string // what is wrong
	}{
		{"all by default", nil, false, map[string]int{"vfio-pci": 64}, nil},
		{"by address", []config.PFRule{{Match: config.Match{Address: "0000:6B:00.0"}}}, false, map[string]int{"vfio-pci": 16}, nil},
		{"by family", []config.PFRule{{Match: config.Match{Family: "c62x"}}}, false, map[string]int{"vfio-pci": 32}, nil},
		{"by NUMA node", []config.PFRule{{Match: config.Match{NUMA: &node1}, Services: "dc;sym"}}, false, map[string]int{"vfio-pci": 16}, func(b *bench) string {
			if got := b.attribute("0000:70:00.0", "qat/cfg_services"); got != "dc;sym" {
				return "services are " + got
			}
			return ""
		}},
		{"an exclusion first", []config.PFRule{{Match: config.Match{Family: "c62x"}, Exclude: true}, {}}, false, map[string]int{"vfio-pci": 32}, nil},
		{"fewer VFs, of a driver that enables all", []config.PFRule{{VFs: &two}}, false, map[string]int{"vfio-pci": 64}, nil},
		{"fewer VFs, of a driver that can", []config.PFRule{{VFs: &two}}, true, map[string]int{"vfio-pci": 8}, nil},
		{"services in another order are the same", []config.PFRule{{Match: config.Match{Address: "0000:6b:00.0"}, Services: "asym;sym"}}, false, map[string]int{"vfio-pci": 16}, func(b *bench) string {
			return b.attribute("0000:6b:00.0", "qat/cfg_services")[len("sym;asym"):]
		}},
		{"auto reset", []config.PFRule{{Match: config.Match{Address: "0000:6b:00.0"}, AutoReset: &on}}, false, map[string]int{"vfio-pci": 16}, func(b *bench) string {
			if got := b.attribute("0000:6b:00.0", "qat/auto_reset"); got != "on" {
				return "auto_reset is " + got
			}
			return ""
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, four())
			b.kernel.Exact = tt.exact
			b.files(map[string]string{"/sys/bus/pci/devices/0000:6b:00.0/qat/auto_reset": "off\n"})
			b.options.Config.PF = tt.rules
			before := b.snapshot()
			b.apply()
			b.expectDrivers(tt.want)
			if tt.check != nil {
				if wrong := tt.check(b); wrong != "" {
					t.Error(wrong)
				}
			}
			if b.apply().Changed {
				t.Error("a second run changed something")
			}
			b.undo()
			b.unchanged(before)
		})
	}
}

func (b *bench) attribute(a qat.Address, name string) string {
	return strings.TrimSpace(b.read("/sys/bus/pci/devices/" + string(a) + "/" + name))
}

// use lets a process have the node of a group open.
func (b *bench) use(group int) {
	b.files(map[string]string{"/proc/4711/comm": "qemu\n"})
	fds := filepath.Join(b.root, "proc/4711/fd")
	if err := errors.Join(os.MkdirAll(fds, 0o755), os.Symlink(fmt.Sprintf("/dev/vfio/%d", group), filepath.Join(fds, "7"))); err != nil {
		b.t.Fatal(err)
	}
}

func TestNothingIsTakenFromWhoUsesIt(t *testing.T) {
	const user = "VF 0000:6b:00.1 is in use: process 4711 (qemu) has /dev/vfio/100 open: stop it first"
	zero := 0
	for name, tt := range map[string]struct {
		rule config.PFRule
		want string
	}{
		"other services": {config.PFRule{Services: "dc"}, "services: change the services of 0000:6b:00.0 from sym;asym to dc: " + user},
		"no VFs":         {config.PFRule{VFs: &zero}, "virtual-functions: change the VFs of 0000:6b:00.0: " + user},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, one())
			b.apply()
			b.use(100)
			b.options.Config.PF = []config.PFRule{tt.rule}
			b.refuses(tt.want)
		})
	}
	t.Run("undo", func(t *testing.T) {
		b := newBench(t, one())
		before := b.snapshot()
		b.apply()
		b.use(100)
		_, err := b.engine().Undo(t.Context())
		if err == nil || !strings.Contains(err.Error(), user) {
			t.Errorf("error %v, want one with %s", err, user)
		}
		b.expectDrivers(map[string]int{"vfio-pci": 16})
		if err := os.RemoveAll(filepath.Join(b.root, "proc/4711")); err != nil {
			t.Fatal(err)
		}
		b.undo()
		b.unchanged(before)
	})
	t.Run("what is as it should be stays in use", func(t *testing.T) {
		b := newBench(t, one())
		b.apply()
		b.use(100)
		if b.apply().Changed {
			t.Error("something was changed")
		}
	})
}

func TestAForeignDeviceInTheGroupIsRefusedAndNamed(t *testing.T) {
	igb := qattest.Device{Address: "0000:3b:00.0", Vendor: qat.Vendor, Device: 0x1521, Driver: "igb"}
	t.Run("in the group of VFs that are there", func(t *testing.T) {
		node := one()
		node.PFs[0].VFs, node.PFs[0].FirstGroup = 16, 100
		igb.Group = 103
		node.Others = []qattest.Device{igb}
		newBench(t, node).refuses("isolation: 0000:6b:00.4: IOMMU group 103 also holds 0000:3b:00.0 (igb): move it, or exclude this PF")
	})
	t.Run("in the group that VFs come into", func(t *testing.T) {
		node := one()
		igb.Group = 103
		node.Others = []qattest.Device{igb}
		b := newBench(t, node)
		before := b.snapshot()
		_, err := b.engine().Apply(t.Context())
		const want = "virtual-functions: 0000:6b:00.4: IOMMU group 103 also holds 0000:3b:00.0 (igb): move it, or exclude this PF"
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		if got := b.attribute("0000:6b:00.0", "sriov_numvfs"); got != "0" {
			t.Errorf("%s VFs were left", got)
		}
		b.undo()
		b.unchanged(before)
	})
	t.Run("a port without ACS, before there are VFs", func(t *testing.T) {
		b := newBench(t, one())
		// The PF is below a port that is in its group.
		dir := filepath.Join(b.root, "sys/devices/pci0000:6b/0000:00:01.0")
		device := filepath.Join(b.root, "sys/devices/pci0000:6b/0000:6b:00.0")
		below := filepath.Join(dir, "0000:6b:00.0")
		if err := errors.Join(
			os.Mkdir(dir, 0o755), os.Rename(device, below),
			relink(filepath.Join(b.root, "sys/bus/pci/devices/0000:6b:00.0"), below),
			relink(filepath.Join(below, "driver"), filepath.Join(b.root, "sys/bus/pci/drivers/4xxx")),
			relink(filepath.Join(below, "iommu_group"), filepath.Join(b.root, "sys/kernel/iommu_groups/3")),
			os.Symlink(dir, filepath.Join(b.root, "sys/kernel/iommu_groups/3/devices/0000:00:01.0")),
		); err != nil {
			t.Fatal(err)
		}
		b.refuses("isolation: 0000:6b:00.0 shares its IOMMU group with the port 0000:00:01.0 above it, which has no ACS")
	})
}

func relink(name, target string) error {
	return errors.Join(os.Remove(name), os.Symlink(target, name))
}

func TestTheUnitIsTheOneThatPackagesHave(t *testing.T) {
	b, err := os.ReadFile("../../deploy/systemd/kata-qat-provision.service")
	if err != nil || string(b) != host.Unit {
		t.Errorf("deploy/systemd has another unit: %v", err)
	}
}

func TestTheRunAtBootHasTheFlagsOfTheRunByHand(t *testing.T) {
	b := newBench(t, one())
	b.options.BootFlags = []string{"--services=sym;asym", "--pf=0000:6b:00.0"}
	b.apply()
	if got, want := b.read("/etc/kata-qat/provision.env"), "PROVISION_FLAGS=--services=sym;asym --pf=0000:6b:00.0\n"; !strings.HasSuffix(got, want) {
		t.Errorf("the unit's flags are %q, want %q", got, want)
	}
}

func TestWithoutTheProgramThereIsNoUnitAndANote(t *testing.T) {
	b := newBench(t, one())
	if err := os.Remove(filepath.Join(b.root, "usr/local/bin/kata-qat")); err != nil {
		t.Fatal(err)
	}
	out := b.apply()
	if r := step(out, "boot-unit"); r.Status != plan.Done || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "bootstrap-node.sh") {
		t.Errorf("boot-unit is %s with notes %q", r.Status, r.Notes)
	}
}

func TestUndoKeepsWhatSomebodyElseHasChanged(t *testing.T) {
	b := newBench(t, one())
	before := b.snapshot()
	b.apply()
	const name = "/etc/modprobe.d/kata-qat.conf"
	b.files(map[string]string{name: "# mine\n"})
	_, err := b.engine().Undo(t.Context())
	if err == nil || !strings.Contains(err.Error(), "restore "+name+": somebody has changed it since") {
		t.Errorf("error %v", err)
	}
	if got := b.read(name); got != "# mine\n" {
		t.Errorf("it holds %q", got)
	}
	if err := os.Remove(filepath.Join(b.root, name)); err != nil {
		t.Fatal(err)
	}
	b.undo()
	b.unchanged(before)
}

func TestAFileThatWasThereIsRestoredWithItsMode(t *testing.T) {
	b := newBench(t, one())
	const name = "/etc/modprobe.d/kata-qat.conf"
	b.files(map[string]string{name: "# an older release's\n"})
	if err := os.Chmod(filepath.Join(b.root, name), 0o600); err != nil {
		t.Fatal(err)
	}
	before := b.snapshot()
	b.apply()
	if info, err := os.Stat(filepath.Join(b.root, name)); err != nil || info.Mode() != 0o600 {
		t.Errorf("its mode is %v, %v; want 0600 as it was", info.Mode(), err)
	}
	b.undo()
	b.unchanged(before)
}
