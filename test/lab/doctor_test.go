//go:build lab

package lab

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/doctor"
	"github.com/kata-qat/kata-qat/test/docs"
)

// diagnoses are doctor's reports among the output, in their order.
func diagnoses(t *testing.T, res *Result) (all []doctor.Report) {
	t.Helper()
	for _, line := range res.Output {
		if text, ok := strings.CutPrefix(line, "doctor: "); ok {
			var r doctor.Report
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			all = append(all, r)
		}
	}
	return all
}

// failures are the checks of the host and its devices that fail.
func failures(r doctor.Report) (names []string) {
	for _, c := range r.Checks {
		if c.State == doctor.Fail && (c.Area == doctor.Host || c.Area == doctor.Devices) {
			names = append(names, c.Check)
		}
	}
	return names
}

func TestDoctorFindsWhatARealMachineLacksAndNothingOnceItIsProvisioned(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	kataQAT, err := Build(t.Context(), "./cmd/kata-qat")
	if err != nil {
		t.Fatal(err)
	}
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}, {Family: "c62x", ACS: true}}, IOMMU: true,
		Cmdline: "iommu=pt",
		Files:   map[string]string{"/usr/local/bin/kata-qat": kataQAT, "/usr/bin/jq": "/usr/bin/jq"},
		Modules: []string{"qat_4xxx", "qat_c62x", "vfio-pci"},
		Script: `
			mkdir -p /etc/systemd/system /etc/udev/rules.d
			mkdir -p /lib/firmware
			for f in 4xxx c62x; do touch /lib/firmware/qat_$f.bin /lib/firmware/qat_${f}_mmp.bin; done
			doctor() { printf 'doctor: '; kata-qat doctor -o json | tr -d '\n'; echo; }
			line() { until [ "$(wc -l </tmp/watch)" -ge $1 ]; do sleep 0.05; done; }
			doctor
			` + doc.Line("kata-qat provision host") + ` >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
			doctor
			pf=$(dirname $(grep -l 0x4940 /sys/bus/pci/devices/*/device))
			vf=$(basename $(readlink $pf/virtfn0))
			: >/tmp/watch
			kata-qat devices --watch -o json >>/tmp/watch 2>/tmp/watch.err &
			mkdir /tmp/bin; printf '#!/bin/sh\ntee /tmp/raw | /usr/bin/jq "$@"\n' >/tmp/bin/jq; chmod +x /tmp/bin/jq
			PATH=/tmp/bin:$PATH sh -c '` + strings.ReplaceAll(doc.Line("kata-qat devices --watch -o json |"), "'", `'\''`) + `' >/tmp/changed &
			` + doc.Line("kata-qat devices --watch") + ` >/tmp/table &
			# Both that write JSON have shown what there is.
			line 1
			until [ -s /tmp/raw ]; do sleep 0.05; done
			n=$(wc -l </tmp/watch)
			echo $vf >/sys/bus/pci/drivers/vfio-pci/unbind
			line $((n + 1))
			tail -n +$((n + 1)) /tmp/watch | sed 's/^/watch: /'
			n=$(wc -l </tmp/watch)
			echo 0 >$pf/sriov_numvfs
			line $((n + 17))
			tail -n +$((n + 1)) /tmp/watch | grep -o '"event":"removed","address":"[^"]*"' | sed 's/^/watch: /'
			kill -INT $(pidof kata-qat)
			wait %1 && echo watching ended well
			wait %2 %3 && echo all watching ended well
			cat /tmp/watch.err
			jq -r '"changed: " + .event' /tmp/changed
			doctor
			kata-qat doctor --problems || true`,
	})
	all := diagnoses(t, res)
	if len(all) != 3 {
		t.Fatalf("%d reports, expected 3", len(all))
	}
	for i, want := range [][]string{
		{"vfio-modules", "modules-load", "modprobe", "udev-rule", "boot-unit", "autoprobe", "vfs", "deny-list"},
		nil,
		{"vfs"},
	} {
		if got := failures(all[i]); !slices.Equal(got, want) {
			t.Errorf("report %d: %q fail, expected %q", i+1, got, want)
		}
	}
	if n := count(res, "watch: "); n != 1+16 {
		t.Errorf("%d changes were watched, expected one VF unbound and 16 removed", n)
	}
	expect(t, res, "watching ended well", "all watching ended well", "changed: changed")
}
