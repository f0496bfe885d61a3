package host_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// grub gives a machine GRUB as Debian has it, and a kernel that was started
// without the parameters, though with an IOMMU.
func (b *bench) grub() {
	b.files(map[string]string{
		"/proc/cmdline":       "root=/dev/sda1 quiet\n",
		"/etc/default/grub":   "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
		"/boot/grub/grub.cfg": "\tlinux /vmlinuz root=/dev/sda1 quiet\n",
	})
	b.program("update-grub", `
GRUB_CMDLINE_LINUX_DEFAULT=quiet
if [ -e $HOST_ROOT/etc/default/grub.d/90-kata-qat.cfg ]; then . $HOST_ROOT/etc/default/grub.d/90-kata-qat.cfg; fi
printf '\tlinux /vmlinuz root=/dev/sda1 %s\n' "$GRUB_CMDLINE_LINUX_DEFAULT" >$HOST_ROOT/boot/grub/grub.cfg`)
}

// grubby gives a machine grubby, with two kernels.
func (b *bench) grubby() {
	b.files(map[string]string{
		"/proc/cmdline":       "root=/dev/sda1 quiet\n",
		"/boot/vmlinuz-1":     "",
		"/boot/vmlinuz-2":     "",
		"/boot/1":             "ro quiet\n",
		"/boot/2":             "ro quiet intel_iommu=on\n",
		"/etc/kernel/cmdline": "ro quiet\n",
	})
	b.program("grubby", `
case $1 in
--info=ALL) for k in 1 2; do echo "index=$k"; echo "kernel=\"/boot/vmlinuz-$k\""; echo "args=\"$(cat $HOST_ROOT/boot/$k)\""; done ;;
--update-kernel=*)
	f=$HOST_ROOT/boot/${1##*-}
	case $2 in
	--args=*) echo "$(cat $f) ${2#--args=}" >$f ;;
	--remove-args=*) for a in ${2#--remove-args=}; do sed -i "s| $a||" $f; done ;;
	esac ;;
esac`)
}

// loaderEntries gives a machine systemd-boot.
func (b *bench) loaderEntries() {
	b.files(map[string]string{
		"/proc/cmdline":                     "root=/dev/sda1 quiet\n",
		"/etc/kernel/cmdline":               "root=/dev/sda1 quiet\n",
		"/boot/loader/entries/a.conf":       "title Linux\noptions root=/dev/sda1 quiet\ninitrd /a\n",
		"/boot/loader/entries/memtest.conf": "title Memtest\nefi /memtest\n",
	})
}

// unified gives a machine kernels with their command line inside.
func (b *bench) unified() {
	b.files(map[string]string{
		"/proc/cmdline":       "root=/dev/sda1 quiet\n",
		"/etc/kernel/cmdline": "root=/dev/sda1 quiet\n",
		"/boot/uki":           "root=/dev/sda1 quiet\n",
	})
	b.program("kernel-install", `cat $HOST_ROOT/etc/kernel/cmdline >$HOST_ROOT/boot/uki`)
}

const parameters = " intel_iommu=on iommu=pt"

var bootLoaders = map[string]struct {
	install func(*bench)
	file    string // what the next kernel is started with stands here
	want    string
}{
	"GRUB":         {(*bench).grub, "/boot/grub/grub.cfg", "\tlinux /vmlinuz root=/dev/sda1 quiet" + parameters + "\n"},
	"grubby":       {(*bench).grubby, "/boot/2", "ro quiet intel_iommu=on iommu=pt\n"},
	"systemd-boot": {(*bench).loaderEntries, "/boot/loader/entries/a.conf", "title Linux\noptions root=/dev/sda1 quiet" + parameters + "\ninitrd /a\n"},
	"UKI":          {(*bench).unified, "/boot/uki", "root=/dev/sda1 quiet" + parameters + "\n"},
}

// noIOMMU is a machine whose IOMMU is off until it is started anew.
func noIOMMU(t *testing.T) *bench {
	node := one()
	node.PFs[0].Group = 0
	b := newBench(t, node)
	b.files(map[string]string{"/sys/firmware/acpi/tables/DMAR": ""})
	b.kernel.NewGroups = nil
	return b
}

// reboot starts a machine with a kernel command line.
func (b *bench) reboot(cmdline string) {
	b.files(map[string]string{
		"/proc/cmdline": cmdline + "\n", "/proc/sys/kernel/random/boot_id": "second\n",
		"/sys/kernel/iommu_groups/1/type": "DMA-FQ\n",
	})
	b.kernel.NewGroups = map[qat.Address]int{"0000:6b:00.0": 100}
	for _, m := range []string{"vfio_pci", "vfio_pci_core", "vfio", "vfio_iommu_type1"} {
		if err := os.RemoveAll(filepath.Join(b.root, "sys/module", m)); err != nil {
			b.t.Fatal(err)
		}
	}
}

func TestTheKernelIsStartedWithAnIOMMUNextTime(t *testing.T) {
	for name, tt := range bootLoaders {
		t.Run(name, func(t *testing.T) {
			b := noIOMMU(t)
			tt.install(b)
			before := b.snapshot()
			out := b.apply()
			if !out.Reboot || step(out, "virtual-functions").Status != plan.Waiting || step(out, "boot-unit").Status != plan.Changed {
				t.Errorf("reboot %t, virtual functions %s, unit %s: want the unit to go on after the reboot", out.Reboot, step(out, "virtual-functions").Status, step(out, "boot-unit").Status)
			}
			if got := b.read(tt.file); got != tt.want {
				t.Errorf("%s holds\n%q, want\n%q", tt.file, got, tt.want)
			}
			ran := len(b.ran())
			out = b.apply()
			if out.Changed || !out.Reboot || slices.ContainsFunc(b.ran()[ran:], func(s string) bool { return !strings.HasPrefix(s, "grubby --info") }) {
				t.Errorf("a second run before the reboot did something: %v", b.ran()[ran:])
			}

			b.reboot("root=/dev/sda1 quiet" + parameters)
			afterReboot := b.snapshot()
			out = b.apply()
			if out.Reboot || out.Pending {
				t.Errorf("after the reboot something waits: %+v", out)
			}
			b.expectDrivers(map[string]int{"vfio-pci": 16})

			b.undo()
			if got := b.read(tt.file); strings.Contains(got, "iommu=pt") {
				t.Errorf("undo left %s: %q", tt.file, got)
			}
			// Everything but what the reboot changed is as it was.
			for n, v := range before {
				if strings.HasPrefix(n, "/etc") || strings.HasPrefix(n, "/boot") {
					afterReboot[n] = v
				}
			}
			got := b.snapshot()
			for n, v := range before {
				if (strings.HasPrefix(n, "/etc") || strings.HasPrefix(n, "/boot") || strings.HasPrefix(n, "/var")) && got[n] != v {
					t.Errorf("%s was %q, is %q", n, v, got[n])
				}
			}
			for n, v := range got {
				if _, ok := before[n]; !ok && !strings.HasPrefix(n, "/sys") {
					t.Errorf("%s was left: %q", n, v)
				}
			}
		})
	}
}

func TestAKilledChangeOfTheBootLoaderIsCompleted(t *testing.T) {
	for name, tt := range bootLoaders {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				b := noIOMMU(t)
				tt.install(b)
				before := b.snapshot()
				e := b.engine()
				e.Fault = faultAt(n)
				if _, err := e.Apply(context.Background()); err == nil {
					return
				}
				if out := b.apply(); !out.Reboot {
					t.Error("it does not wait for the reboot")
				}
				if got := b.read(tt.file); got != tt.want {
					t.Errorf("%s holds\n%q, want\n%q", tt.file, got, tt.want)
				}
				b.undo()
				b.unchanged(before)
				if t.Failed() {
					t.Fatalf("killed at place %d", n)
				}
			}
		})
	}
}

func TestARebootThatChangedNothingIsTold(t *testing.T) {
	b := noIOMMU(t)
	b.loaderEntries()
	b.apply()
	b.files(map[string]string{"/proc/sys/kernel/random/boot_id": "second\n"})
	b.refuses("systemd-boot has intel_iommu=on iommu=pt, and the machine was started anew without: is another boot entry or boot loader in use?")
}

func TestAnIOMMUThatCannotBeSwitchedOnIsRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(*bench)
		want   string
	}{
		{"by no boot loader that is known", func(b *bench) { b.files(map[string]string{"/proc/cmdline": "quiet\n"}) }, "no boot loader is known here"},
		{"because the firmware has none", func(b *bench) {
			if err := os.Remove(filepath.Join(b.root, "sys/firmware/acpi/tables/DMAR")); err != nil {
				b.t.Fatal(err)
			}
		}, "IOMMU: the firmware offers none: /sys/firmware/acpi/tables has neither DMAR nor IVRS: switch VT-d"},
		{"because somebody has switched it off", func(b *bench) { b.files(map[string]string{"/proc/cmdline": "quiet intel_iommu=off\n"}) }, "IOMMU: /proc/cmdline has intel_iommu=off"},
		{"because it is not to be", func(b *bench) { b.options.Config.KernelCommandLine = false }, "boot with intel_iommu=on iommu=pt, or set provision.kernel_command_line = true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := noIOMMU(t)
			tt.change(b)
			b.refuses(tt.want)
		})
	}
}

func TestWithAnIOMMUTheParametersNeedNoReboot(t *testing.T) {
	b := newBench(t, one())
	b.grub()
	out := b.apply()
	if out.Reboot || step(out, "kernel-command-line").Status != plan.Changed {
		t.Errorf("reboot %t, kernel command line %s", out.Reboot, step(out, "kernel-command-line").Status)
	}
	b.expectDrivers(map[string]int{"vfio-pci": 16})
}

func TestABuiltInVFIOGetsItsOptionFromTheCommandLine(t *testing.T) {
	pf := gen2("0000:3d:00.0")
	pf.Group = 3
	b := newBench(t, qattest.Node{PFs: []qattest.PF{pf}})
	b.grub()
	b.files(map[string]string{"/lib/modules/" + release + "/modules.builtin": "kernel/drivers/vfio/pci/vfio-pci.ko\n"})
	out := b.apply()
	if want := "vfio-pci.disable_denylist=1"; !out.Reboot || !strings.Contains(b.read("/boot/grub/grub.cfg"), want) {
		t.Errorf("reboot %t, GRUB has %q, want %s", out.Reboot, b.read("/boot/grub/grub.cfg"), want)
	}
}
