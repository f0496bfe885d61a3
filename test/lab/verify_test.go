//go:build lab

package lab

import (
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/test/docs"
)

// Counters that a real kernel shows, and that real DMA of a VF moves.
func TestVerifyTellsAPodsWorkFromItsNeighbours(t *testing.T) {
	doc := docs.For(t)
	files := make(map[string]string)
	for path, pkg := range map[string]string{"/bin/kata-qat": "./cmd/kata-qat", "/bin/holdtest": "./test/lab/holdtest"} {
		var err error
		if files[path], err = Build(t.Context(), pkg); err != nil {
			t.Fatal(err)
		}
	}
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}, {Family: "4xxx", ACS: true}}, IOMMU: true,
		Files:   files,
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "qat_4xxx"},
		Script: functions + `
			kata-qat provision host >/dev/null
			mkdir -p /etc/kata-qat; echo 'standalone = true' >/etc/kata-qat/config.toml
			` + doc.Line("kata-qat nri-plugin") + ` >/dev/null 2>&1 &
			verify="kata-qat verify default/ingress --for 3s"
			# check WHAT VF: verify the pod while the VF works.
			check() {
				touch /tmp/busy
				while [ -e /tmp/busy ]; do [ -z "$2" ] || vfiotest $2 >/dev/null || echo "vfiotest failed"; sleep 0.05; done &
				code=0; said=$($verify) || code=$?
				rm /tmp/busy; wait $!
				echo "$1: exit $code: $(echo "$said" | head -1)"
			}
			own=$(holdtest default/ingress cy=1)
			verify="` + doc.Line("kata-qat verify default/ingress --for") + `" check "at work" $own
			verify="` + doc.Line("kata-qat verify default/ingress") + `" check "at rest" ""
			free=$(vfs | grep -v $own | tail -1)
			sleep 1000 3<>/dev/vfio/$(group /sys/bus/pci/devices/$free) &
			host=$!
			check "a process of the host has a VF" $own
			kill $host
			neighbour=$(holdtest default/other cy=1)
			check "a neighbour at work" $neighbour
			` + doc.Line("kata-qat counters") + `
			echo 0 >$pf/sriov_numvfs; echo down >$pf/qat/state
			kata-qat counters`,
	})
	begins := func(prefix, rest string) {
		t.Helper()
		if !slices.ContainsFunc(res.Output, func(l string) bool { return strings.HasPrefix(l, prefix) && strings.Contains(l, rest) }) {
			t.Errorf("no line %q with %q", prefix, rest)
		}
	}
	const pf = "(PF 0000:01:00.0"
	begins("at work: exit 0: hardware in use: yes "+pf+": +", " requests)")
	begins("at rest: exit 1: hardware in use: no "+pf+" got no request in ", "")
	begins("a process of the host has a VF: exit 3: hardware in use: perhaps "+pf, "(sleep) of the host")
	begins("a neighbour at work: exit 3: hardware in use: perhaps "+pf, "shared with default/other")
	begins("0000:01:00.0   4xxx     up      healthy", "")
	begins("0000:01:00.0   4xxx     down    dead", "-")
	if count(res, "does not answer its heartbeat") != 0 {
		t.Error("a device that is down is said to be dead")
	}
	begins("  ! 0000:01:00.0: the device is down, expected up", "")
}
