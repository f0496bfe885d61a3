//go:build lab

package lab

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/test/docs"
)

// provisioning is a guest with the program to be tested, and vfio not loaded.
func provisioning(t *testing.T, pfs ...PF) Config {
	t.Helper()
	files := make(map[string]string)
	for name, pkg := range map[string]string{"/usr/local/bin/kata-qat": "./cmd/kata-qat", "/bin/sysfs": "./test/lab/sysfs", "/bin/provisionbench": "./test/lab/provisionbench"} {
		p, err := Build(t.Context(), pkg)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = p
	}
	withEntry(t, files)
	cfg := Config{PFs: pfs, IOMMU: true, Files: files, Modules: []string{"qat_4xxx", "qat_c62x", "qat_420xx", "qat_c3xxx"}}
	cfg.Script = `
		mkdir -p /etc/systemd/system # as on a machine with systemd
		provision() { kata-qat provision host "$@" 2>&1 | grep -v ' note: ' || true; }
		code() { kata-qat provision host "$@" >/dev/null 2>&1 && echo "$*: 0" || echo "$*: $?"; }
		bound() { ls /sys/bus/pci/drivers/vfio-pci 2>/dev/null | grep -c : || true; }
		first() { basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn0); }
		group() { basename $(readlink /sys/bus/pci/devices/$1/iommu_group); }
		sysfs save /tmp/1; sysfs save /tmp/2
		restored() { sysfs save /tmp/3; sysfs compare /tmp/1 /tmp/2 /tmp/3; }
`
	return cfg
}

// withEntry has kata-qat as it is installed: two programs.
func withEntry(t *testing.T, files map[string]string) {
	t.Helper()
	entry, err := buildOnce(t.Context(), "./cmd/kata-qat", ".entry", "build", "-tags", lean+",entry")
	if err != nil {
		t.Fatal(err)
	}
	files["/usr/local/bin/kata-qat-full"], files["/usr/local/bin/kata-qat"] = files["/usr/local/bin/kata-qat"], entry
}

func TestProvisioningIsCompleteRepeatableAndUndone(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	cfg := provisioning(t, PF{Family: "4xxx", ACS: true}, PF{Family: "c62x", ACS: true}, PF{Family: "420xx", ACS: true}, PF{Family: "c3xxx", ACS: true})
	cfg.Script += `
		code --dry-run; restored
		code; echo bound=$(bound)
		code; code --dry-run
		for pf in /sys/bus/pci/devices/*/sriov_totalvfs; do vfiotest $(basename $(readlink ${pf%/*}/virtfn15)); done

		sleep 1000 3<>/dev/vfio/$(group $(first)) & user=$!
		provision --pf 0000:01:00.0 --services dc
		provision --vfs 0
		provision --undo
		code; echo bound=$(bound)
		kill $user; wait $user || true

		provision --pf 0000:01:00.0 --services dc
		echo services=$(cat /sys/bus/pci/devices/0000:01:00.0/qat/cfg_services) bound=$(bound)
		vfiotest $(first)
		` + doc.Line("kata-qat provision host --undo") + ` >/dev/null
		restored`
	res := Run(t, cfg)
	expect(t, res, "--dry-run: 2", ": 0", "--dry-run: 0", "bound=64", "services=dc bound=64")
	if n := count(res, "PASS "); n != 5 {
		t.Errorf("%d VFs could be used through VFIO, expected 5", n)
	}
	for _, what := range []string{"change the services of 0000:01:00.0 from sym;asym to dc: VF", "change the VFs of 0000:01:00.0: VF", "give 0000:01:00.0 back its 0 VFs: VF"} {
		if !regexp.MustCompile(regexp.QuoteMeta(what) + ` 0000:01:00.1 is in use: process \d+ \((sleep|busybox)\) has /dev/vfio/\d+ open: stop it first`).MatchString(strings.Join(res.Output, "\n")) {
			t.Errorf("no refusal to %s", what)
		}
	}
	if n := count(res, "same: "); n != 2 {
		t.Error("sysfs is not as it was before")
	}
}

// A run is killed by itself at places that its build for tests names.
func TestAProvisioningThatIsKilledIsCompletedAndUndone(t *testing.T) {
	t.Parallel()
	cfg := provisioning(t, PF{Family: "c62x", ACS: true})
	program, err := buildOnce(t.Context(), "./cmd/kata-qat", ".faults", "build", "-tags", lean+",entry,faults")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Files["/usr/local/bin/kata-qat"] = program
	cfg.Script += `
		# The places, but of those that are alike only the first and the last.
		KATA_QAT_KILL_AT=0 kata-qat provision host 2>&1 | sed -n 's/^fault //p' >/tmp/places
		KATA_QAT_KILL_AT=0 kata-qat provision host --undo 2>&1 | sed -n 's/^fault \(.*: undone\)/\1/p' >/tmp/back
		awk '/: (before|after)/ { next } /: bound/ { if (!b) print; b = $0; next } { if (b) print b; b = ""; print }' /tmp/places >/tmp/chosen
		while IFS=: read n place; do
			KATA_QAT_KILL_AT=$n kata-qat provision host >/dev/null 2>&1 && echo not killed at $n || true
			kata-qat provision host >/dev/null 2>&1 || echo not completed after $place
			echo "killed at $n $place: bound=$(bound)"
			kata-qat provision host --undo >/dev/null 2>&1 || echo not undone after $place
		done </tmp/chosen
		while IFS=: read n place; do
			kata-qat provision host >/dev/null 2>&1
			KATA_QAT_KILL_AT=$n kata-qat provision host --undo >/dev/null 2>&1 && echo not killed at $n || true
			kata-qat provision host --undo >/dev/null 2>&1 || echo not undone after $place
		done </tmp/back
		echo undos=$(wc -l </tmp/back)
		restored`
	res := Run(t, cfg)
	if n := count(res, "not "); n != 0 {
		t.Errorf("%d of them went wrong", n)
	}
	kills, bound := count(res, "killed at "), count(res, "bound=16")
	if kills < 10 || bound != kills {
		t.Errorf("%d runs were killed, and %d of them completed by another, expected the same and at least 10", kills, bound)
	}
	expect(t, res, "undos=4")
	if n := count(res, "same: "); n != 1 {
		t.Error("sysfs is not as it was before")
	}
}

func TestWhatCannotBeProvisionedIsRefusedBeforeAnythingIsChanged(t *testing.T) {
	t.Parallel()
	t.Run("a port without ACS", func(t *testing.T) {
		t.Parallel()
		cfg := provisioning(t, PF{Family: "4xxx"}, PF{Family: "420xx", ACS: true})
		cfg.Script += `
			provision; restored
			code --pf 0000:02:00.0; echo bound=$(bound)
			provision --undo; restored`
		res := Run(t, cfg)
		if count(res, "0000:01:00.0 shares its IOMMU group with the port 0000:00:01.0 above it") == 0 {
			t.Error("the port is not named")
		}
		expect(t, res, "--pf 0000:02:00.0: 0", "bound=16")
		if n := count(res, "same: "); n != 2 {
			t.Error("sysfs is not as it was before")
		}
	})
	// As with Secure Boot the kernel takes only modules that are signed, which the
	// stand-ins are not.
	t.Run("no IOMMU, and a kernel in lockdown", func(t *testing.T) {
		t.Parallel()
		cfg := provisioning(t, PF{Family: "4xxx", ACS: true})
		cfg.IOMMU, cfg.Modules, cfg.Cmdline = false, nil, "lockdown=integrity"
		cfg.Script += `
			mount -t securityfs securityfs /sys/kernel/security
			modprobe qat_4xxx 2>/dev/null && echo taken || echo "not taken: unsigned module"
			modprobe vfio-pci && echo vfio-pci is signed && modprobe -r vfio-pci vfio_iommu_type1
			kata-qat provision host --dry-run 2>&1 | grep '/sys/kernel/security/lockdown is none \[integrity\] confidentiality' || true
			provision; restored`
		res := Run(t, cfg)
		if count(res, "IOMMU: the firmware offers none: /sys/firmware/acpi/tables has neither DMAR nor IVRS") == 0 || count(res, "same: ") != 1 {
			t.Error("expected a refusal that says that the firmware offers no IOMMU, and no change")
		}
		if count(res, "note: lockdown: ") == 0 {
			t.Error("nothing is said of the lockdown")
		}
		expect(t, res, "not taken: unsigned module", "vfio-pci is signed")
	})
	t.Run("another run at the same time", func(t *testing.T) {
		t.Parallel()
		cfg := provisioning(t, PF{Family: "4xxx", ACS: true})
		cfg.Script += `
			kata-qat provision host >/dev/null 2>&1 & other=$!
			until [ -s /var/lib/kata-qat/lock ]; do :; done
			provision | sed "s/process $other /process OTHER /"
			wait $other; echo other=$? bound=$(bound)`
		res := Run(t, cfg)
		if count(res, "process OTHER is provisioning this machine") == 0 {
			t.Error("the other process is not named")
		}
		expect(t, res, "other=0 bound=16")
	})
}

func TestVFsThatAreThereGoBackToTheirDriver(t *testing.T) {
	t.Parallel()
	cfg := provisioning(t, PF{Family: "4xxx", ACS: true})
	cfg.Modules = []string{"qat_4xxx", "qat_4xxxvf"}
	cfg.Script = "echo 16 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs; echo 0000:01:00.3 >/sys/bus/pci/drivers/4xxxvf/unbind\n" + cfg.Script + `
		code; echo bound=$(bound)
		provision --undo; restored`
	res := Run(t, cfg)
	expect(t, res, ": 0", "bound=16")
	if n := count(res, "same: "); n != 1 {
		t.Error("sysfs is not as it was before")
	}
}

// The figures are printed; what must be reached on a machine that does nothing
// else is for a person to look at, after KATA_QAT_BENCH_ROUNDS=7; here there is
// room for noise.
func TestProvisioningTakesLittleMoreThanTheKernelItself(t *testing.T) {
	cfg := provisioning(t, PF{Family: "4xxx", ACS: true}, PF{Family: "4xxx", ACS: true}, PF{Family: "420xx", ACS: true}, PF{Family: "4xxx", ACS: true})
	cfg.Cmdline = "iommu=pt" // as on a machine that was rebooted after it was provisioned
	rounds := 1
	if n, err := strconv.Atoi(os.Getenv("KATA_QAT_BENCH_ROUNDS")); err == nil {
		rounds = n
	}
	cfg.Script += fmt.Sprintf("provision >/dev/null; provisionbench %d", rounds)
	seconds := figures(t, Run(t, cfg))
	if seconds["provision"] > 3*seconds["floor"] || seconds["shell"] < 2*seconds["provision"] {
		t.Errorf("provisioning takes %.2f s, the kernel itself %.2f s and a shell loop %.2f s", seconds["provision"], seconds["floor"], seconds["shell"])
	}
}

var figure = regexp.MustCompile(`^bench (\w+) median ([\d.]+)`)

// figures are the medians that provisionbench printed, in seconds.
func figures(t *testing.T, res *Result) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for _, line := range res.Output {
		if m := figure.FindStringSubmatch(line); m != nil {
			s, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			all[m[1]] = s
		}
	}
	for _, name := range []string{"start", "floor", "provision", "step", "shell", "first", "again"} {
		if all[name] == 0 {
			t.Fatal(fmt.Errorf("provisionbench did not measure %s", name))
		}
	}
	return all
}
