//go:build lab

package lab

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// functions is the part of a script that the tests share: $pf is the first PF,
// enable makes its VFs and bind gives them to vfio-pci, as an administrator
// would by hand.
const functions = `
pf=$(dirname $(ls -d /sys/bus/pci/devices/*/sriov_totalvfs | head -1))
vfs() { for v in $pf/virtfn*; do basename $(readlink $v); done; }
enable() { echo 0 >$pf/sriov_drivers_autoprobe; echo 1 >$pf/sriov_numvfs; }
bind() { for v in $(vfs); do echo vfio-pci >/sys/bus/pci/devices/$v/driver_override; echo $v >/sys/bus/pci/drivers/vfio-pci/bind; done; }
group() { basename $(readlink $1/iommu_group); }
`

func TestAllVirtualFunctionsOfADeviceWorkThroughVFIO(t *testing.T) {
	t.Parallel()
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}}, IOMMU: true,
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "qat_4xxx"},
		Script: functions + `
			enable; bind
			echo totalvfs=$(cat $pf/sriov_totalvfs) numvfs=$(cat $pf/sriov_numvfs)
			echo groups=$(for v in $pf/virtfn*; do group $v; done | sort -u | wc -l)
			vfiotest $(vfs)
			awk 'NR > 1 { n += $2 } END { print "requests=" n }' /sys/kernel/debug/qat_4xxx_*/fw_counters`,
	})
	// Whatever number is asked for, the driver enables all.
	expect(t, res, "totalvfs=16 numvfs=16", "groups=16")
	if n := count(res, "PASS "); n != 16 {
		t.Errorf("%d VFs passed, expected 16", n)
	}
	// Two requests on each: one that succeeds, one that the IOMMU refuses.
	expect(t, res, "requests=32")
}

func TestVFIOPCIRefusesTheDeviceOfItsDenyListUnlessTold(t *testing.T) {
	t.Parallel()
	res := Run(t, Config{
		PFs: []PF{{Family: "c62x", ACS: true}}, IOMMU: true,
		Modules: []string{"vfio_iommu_type1", "qat_c62x"},
		Script: functions + `
			enable
			v=$(vfs | head -1)
			try() {
				modprobe $1
				echo vfio-pci >/sys/bus/pci/devices/$v/driver_override
				err=$( (echo $v >/sys/bus/pci/drivers/vfio-pci/bind) 2>&1 ) && echo "$1: ok" || echo "$1: ${err##*: }"
			}
			try vfio-pci
			echo >/sys/bus/pci/devices/$v/driver_override # or it is bound at once
			rmmod vfio-pci
			try 'vfio-pci disable_denylist=1'
			[ ! -d $pf/qat ]`,
	})
	expect(t, res, "vfio-pci: Invalid argument", "vfio-pci disable_denylist=1: ok")
}

func TestWithoutACSADeviceAndItsVirtualFunctionsShareAGroup(t *testing.T) {
	t.Parallel()
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx"}, {Family: "420xx", ACS: true, NUMA: 1}}, IOMMU: true,
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "qat_4xxx", "qat_420xx"},
		Script: functions + `
			enable; bind
			echo groups=$(for f in $pf $pf/virtfn*; do group $f; done | sort -u | wc -l)
			vfiotest $(vfs | head -1) || echo vfiotest=$?
			for d in /sys/bus/pci/devices/*/sriov_totalvfs; do echo node=$(cat ${d%/*}/numa_node); done`,
	})
	expect(t, res, "groups=1", "vfiotest=1", "node=0", "node=1")
	if n := count(res, "is not viable"); n != 1 {
		t.Errorf("vfiotest opened a VF whose group holds its PF, expected it to find the group not viable")
	}
}

func TestAVirtualFunctionOfEveryFamilyWorks(t *testing.T) {
	t.Parallel()
	cfg := Config{
		IOMMU: true,
		Modules: []string{"vfio-pci disable_denylist=1", "vfio_iommu_type1", "pci-pf-stub",
			"qat_dh895xcc", "qat_c62x", "qat_c3xxx", "qat_4xxx", "qat_420xx", "qat_6xxx"},
		// Out-of-tree drivers have no stand-in; pci-pf-stub makes the VFs of their PFs.
		Script: functions + `
			for file in /sys/bus/pci/devices/*/sriov_totalvfs; do
				pf=${file%/*}
				if [ ! -e $pf/driver ]; then
					echo pci-pf-stub >$pf/driver_override; echo ${pf##*/} >/sys/bus/pci/drivers/pci-pf-stub/bind
				fi
				enable
				v=$(basename $(readlink $pf/virtfn0))
				echo vfio-pci >/sys/bus/pci/devices/$v/driver_override; echo $v >/sys/bus/pci/drivers/vfio-pci/bind
				echo $(cat $pf/device) $(basename $(readlink $pf/driver)) $(cat $pf/sriov_totalvfs) $v
				vfiotest $v
			done`,
	}
	for _, f := range Families() {
		cfg.PFs = append(cfg.PFs, PF{Family: f, ACS: true})
	}
	res := Run(t, cfg)
	if n := count(res, "PASS "); n != len(cfg.PFs) {
		t.Errorf("%d VFs passed, expected one of each of %d families", n, len(cfg.PFs))
	}
	expect(t, res, "0x37c8 c6xx 16 0000:02:01.0", "0x18a0 pci-pf-stub 128 0000:05:01.0", "0x4942 4xxx 16 0000:08:00.1")
}

func TestTheDriverStandInBehavesAsTheRealOne(t *testing.T) {
	t.Parallel()
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}, {Family: "402xx", ACS: true}}, IOMMU: true,
		Modules: []string{"vfio-pci", "qat_4xxx"},
		Script: functions + `
			try() { ( eval "$1" ) 2>/tmp/err && echo "$1: ok" || { e=$(cat /tmp/err); echo "$1: ${e##*: }"; }; }
			cd $pf/qat; debug=/sys/kernel/debug/qat_4xxx_${pf##*/}
			echo services $(cat /sys/bus/pci/devices/*/qat/cfg_services)
			try 'echo dc >cfg_services'
			try 'echo down >state'
			try 'echo dc >cfg_services'; cat cfg_services
			try 'echo nonsense >cfg_services'
			try "cat $debug/fw_counters"
			try 'echo up >state'
			echo healthy $(od -An -c $debug/heartbeat/status)
			echo 1 >$debug/heartbeat/inject_error
			echo dead $(od -An -c $debug/heartbeat/status)
			enable
			try 'echo down >state'
			try "echo 8 >../sriov_numvfs"
			try "echo 0 >../sriov_numvfs"
			try 'echo down >state'`,
	})
	script := []string{
		"services sym;asym dc",
		"echo dc >cfg_services: Invalid argument",
		"echo down >state: ok",
		"echo dc >cfg_services: ok", "dc",
		"echo nonsense >cfg_services: Invalid argument",
		"fw_counters: Bad address",
		"echo up >state: ok",
		`healthy 0 \n \0`, `dead - 1 \n \0`,
		"echo down >state: Device or resource busy",
		"echo 8 >../sriov_numvfs: Device or resource busy",
		"echo 0 >../sriov_numvfs: ok",
		"echo down >state: ok",
	}
	if len(res.Output) != len(script) {
		t.Fatalf("%d lines, expected %d", len(res.Output), len(script))
	}
	for i, want := range script {
		if !strings.HasSuffix(res.Output[i], want) {
			t.Errorf("line %d is %q, expected %q", i, res.Output[i], want)
		}
	}
}

func TestWithoutIOMMUThereAreNoVirtualFunctions(t *testing.T) {
	t.Parallel()
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}}, Nested: true,
		Modules: []string{"vfio-pci", "qat_4xxx"},
		Script: functions + `
			[ ! -e $pf/iommu_group ]
			( enable ) 2>&1 || echo refused
			test -c /dev/kvm && echo kvm`,
	})
	expect(t, res, "refused", "kvm")
	if count(res, "Invalid argument") != 1 {
		t.Error("sriov_numvfs took a number without an IOMMU, expected EINVAL")
	}
}

func TestTheGuestsEndIsTold(t *testing.T) {
	t.Parallel()
	t.Run("exit status", func(t *testing.T) {
		t.Parallel()
		res, err := Boot(t.Context(), Config{Script: "echo before; exit 7; echo after"})
		if err != nil {
			t.Fatal(err)
		}
		if res.ExitCode != 7 || !slices.Equal(res.Output, []string{"before"}) {
			t.Errorf("exit status %d, output %q; expected 7 and [before]", res.ExitCode, res.Output)
		}
	})
	t.Run("panic", func(t *testing.T) {
		t.Parallel()
		res, err := Boot(t.Context(), Config{Script: "echo before; echo c >/proc/sysrq-trigger; sleep 100"})
		if !errors.Is(err, errWentDown) || !strings.Contains(err.Error(), "Kernel panic") {
			t.Errorf("error %v, expected %q with the kernel's panic", err, errWentDown)
		}
		if res == nil || !slices.Equal(res.Output, []string{"before"}) {
			t.Errorf("result %+v, expected the output until then", res)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		start := time.Now()
		_, err := Boot(t.Context(), Config{Run: []string{"sleep", "1000"}, Timeout: 5 * time.Second})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, expected %v", err, context.DeadlineExceeded)
		}
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("it took %s to give up after 5 s", d)
		}
	})
	t.Run("no such module", func(t *testing.T) {
		t.Parallel()
		if _, err := Boot(t.Context(), Config{Run: []string{"true"}, Modules: []string{"nonesuch"}}); err == nil {
			t.Error("a module that does not exist was taken")
		}
	})
}

func expect(t *testing.T, res *Result, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !slices.Contains(res.Output, l) {
			t.Errorf("output lacks the line %q", l)
		}
	}
}

// count is the number of lines with the text.
func count(res *Result, text string) int {
	n := 0
	for _, l := range res.Output {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}
