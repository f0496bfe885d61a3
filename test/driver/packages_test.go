//go:build lab

package driver

import (
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/docs"
)

func TestDebiansFirmwareIsInstalledWhereItIsLookedFor(t *testing.T) {
	t.Parallel()
	lines := docs.For(t)
	plan := documented(t, lines.Line("kata-qat provision host --driver packages --dry-run"), "")
	install := documented(t, lines.Line("kata-qat provision host --driver packages"), "")
	for suite, tt := range map[string]struct{ family, packages string }{
		"bookworm": {"c62x", "firmware-misc-nonfree"},
		"trixie":   {"420xx", "firmware-intel-misc"},
	} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, suite, labRelease(t), qattest.PF{Family: tt.family})
			firmware := qat.FamilyByName(tt.family).Firmware
			none := []string{"--vfs", "0"}
			if out := m.provisions(2, slices.Concat(none, plan)...); !strings.Contains(out, "package "+tt.packages) {
				t.Errorf("the plan does not have %s", tt.packages)
			}
			m.provisions(0, slices.Concat(none, install)...)
			for _, name := range firmware {
				if !m.has("/lib/firmware/" + name) {
					t.Errorf("%s has no %s", tt.packages, name)
				}
			}
			if got := m.run("dpkg-query", "-W", "-f", "${db:Status-Status}", tt.packages); got != "installed" {
				t.Errorf("%s is %s", tt.packages, got)
			}
			m.provisions(0, slices.Concat(none, plan)...)
			m.provisions(0, "--undo")
			for _, name := range firmware {
				if m.has("/lib/firmware/" + name) {
					t.Errorf("%s is still there", name)
				}
			}
		})
	}
}

// That there is no driver, either, needs the package of the kernel, which brings
// others along.
func TestDebiansKernelPackagesHaveTheNamesOfTheirReleases(t *testing.T) {
	t.Parallel()
	for suite, firmware := range map[string]string{"bookworm": "firmware-misc-nonfree", "trixie": "firmware-intel-misc"} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, suite, "", qattest.PF{Family: "c62x", Driver: qattest.Unbound})
			var kernel string
			for line := range strings.Lines(m.run("apt-cache", "depends", "linux-image-amd64")) {
				if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: linux-image-"); ok {
					kernel = name
				}
			}
			if kernel == "" {
				t.Fatal("linux-image-amd64 depends on no kernel")
			}
			m = newMachine(t, suite, kernel, qattest.PF{Family: "c62x", Driver: qattest.Unbound})
			m.write("/lib/modules/"+kernel+"/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko:\n")
			before := m.layer()
			out := m.provisions(2, "--vfs", "0", "--driver", "packages", "--dry-run")
			for _, want := range []string{"package linux-image-" + kernel, "package initramfs-tools", "package " + firmware} {
				if !strings.Contains(out, want) {
					t.Errorf("the plan does not have %q", want)
				}
			}
			m.unchanged(before)
		})
	}
}

// Neither Debian has firmware of 4xxx: what was installed for nothing goes again.
func TestFirmwareThatDebianDoesNotHaveIsNamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "trixie", labRelease(t), qattest.PF{Family: "4xxx"})
	out := m.provisions(1, "--vfs", "0", "--driver", "packages")
	oneLine(t, out, "the packages firmware-intel-misc do not have firmware qat_4xxx.bin, firmware qat_4xxx_mmp.bin: name others in provision.driver.packages")
	if m.has("/lib/firmware/qat_420xx.bin") || m.has("/var/lib/kata-qat") {
		t.Error("something is left of it")
	}
}
