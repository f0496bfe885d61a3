package activity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

const (
	first  = qat.Address("0000:6b:00.0")
	second = qat.Address("0000:e8:00.0")
)

// machine has two PFs of four VFs.
func machine(t *testing.T) (qattest.Tree, *qat.Inventory) {
	t.Helper()
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{
		{Address: first, Family: "4xxx", Services: "sym;asym", State: qat.StateUp, Group: 1, VFs: 4, VFDriver: "vfio-pci", FirstGroup: 100},
		{Address: second, Family: "4xxx", NUMA: 1, Services: "dc", State: qat.StateUp, Group: 2, VFs: 4, VFDriver: "vfio-pci", FirstGroup: 200},
	}})
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	return tree, inv
}

func count(t *testing.T, tree qattest.Tree, pf qat.Address, requests, responses uint64) {
	t.Helper()
	if err := tree.SetCounters(pf, qattest.Counter{Requests: requests, Responses: responses}); err != nil {
		t.Fatal(err)
	}
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func TestRatesAreOfTheTimeBetweenTwoSamples(t *testing.T) {
	tree, inv := machine(t)
	count(t, tree, first, 100, 100)
	count(t, tree, second, 50, 50)
	before := Read(tree.Root, inv.PFs, noon)
	count(t, tree, first, 300, 200)
	count(t, tree, second, 10, 10) // it was started again
	after := Read(tree.Root, inv.PFs, noon.Add(4*time.Second))
	after.Rates(&before)
	if r := after.PFs[0].Rate; r == nil || r.Requests != 50 || r.Responses != 25 {
		t.Errorf("rate %+v, expected 50 and 25 a second", r)
	}
	if r := after.PFs[1].Rate; r != nil {
		t.Errorf("a device that was started again has the rate %+v", *r)
	}
}

func TestATableSaysWhyThereAreNoCounters(t *testing.T) {
	tree, inv := machine(t)
	count(t, tree, first, 1234567, 1234560)
	if err := errors.Join(tree.Kill(second), tree.SetCounters(second)); err != nil {
		t.Fatal(err)
	}
	s := Read(tree.Root, inv.PFs, noon)
	var out bytes.Buffer
	if err := Write(&out, output.Table, &s, true, output.Colours{}); err != nil {
		t.Fatal(err)
	}
	want := `PF             FAMILY   STATE   HEALTH    REQUESTS    RESPONSES   IN FLIGHT
0000:6b:00.0   4xxx     up      healthy   1,234,567   1,234,560   7
  engine 0     -        -       -         1,234,567   1,234,560   7
0000:e8:00.0   4xxx     up      dead      -           -           -
  ! 0000:e8:00.0 does not answer its heartbeat: see dmesg, then write down and up to /sys/bus/pci/devices/0000:e8:00.0/qat/state, or reset it
  ! 0000:e8:00.0: firmware counters: no engine: expected a line for each
`
	if out.String() != want {
		t.Errorf("the table is\n%s\nexpected\n%s", out.String(), want)
	}
}

// watched is what a view shows of n+1 samples, between which the first PF gets
// 1,000 requests.
func watched(t *testing.T, tree qattest.Tree, inv *qat.Inventory, n int, view func(*bytes.Buffer) View) string {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	ticks := make(chan time.Time, n)
	var out bytes.Buffer
	taken := 0
	err := Watch(ctx, func() (Sample, error) {
		s := Read(tree.Root, inv.PFs[:1], noon.Add(time.Duration(taken)*time.Second))
		count(t, tree, first, uint64(1000*(taken+1)), uint64(1000*(taken+1)))
		if taken++; taken > n {
			end()
		} else {
			ticks <- noon
		}
		return s, nil
	}, ticks, view(&out))
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestWatchingInAPipeGivesALineForEachSample(t *testing.T) {
	tree, inv := machine(t)
	got := watched(t, tree, inv, 2, func(b *bytes.Buffer) View { return Lines{W: b} })
	want := `TIME      PF            HEALTH               REQUESTS            RESPONSES    IN FLIGHT     REQUESTS/S
12:00:00  0000:6b:00.0  healthy                     0                    0            0              -
12:00:01  0000:6b:00.0  healthy                 1,000                1,000            0          1,000
12:00:02  0000:6b:00.0  healthy                 2,000                2,000            0          1,000
`
	if got != want {
		t.Errorf("\n%s\nexpected\n%s", got, want)
	}
}

func TestWatchingForProgramsGivesAnObjectForEachSample(t *testing.T) {
	tree, inv := machine(t)
	got := watched(t, tree, inv, 1, func(b *bytes.Buffer) View { return JSONLines{W: b} })
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, expected 2:\n%s", len(lines), got)
	}
	var s Sample
	if err := json.Unmarshal([]byte(lines[1]), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.PFs) != 1 || s.PFs[0].Requests != 1000 || s.PFs[0].Rate.Requests != 1000 || len(s.PFs[0].Engines) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestWatchingOnATerminalKeepsOneTable(t *testing.T) {
	tree, inv := machine(t)
	got := watched(t, tree, inv, 1, func(b *bytes.Buffer) View {
		return Screen{Screen: output.Screen{W: b, Height: func() int { return 0 }}, Interval: time.Second}
	})
	if strings.Count(got, "\x1b[2J") != 1 || !strings.Contains(got, "REQUESTS/S") || !strings.Contains(got, "as of 12:00:01, every 1s; ^C ends it") {
		t.Errorf("%q", got)
	}
}

// What a pod's hardware did, and what is said of it.
func TestVerdicts(t *testing.T) {
	const pod = "default/ingress"
	own := Holders{"0000:6b:00.1": {pod}, "0000:6b:00.2": {pod}}
	both := Holders{"0000:6b:00.1": {pod}, "0000:e8:00.1": {pod}}
	shared := Holders{"0000:6b:00.1": {pod}, "0000:6b:00.2": {"other/app"}, "0000:6b:00.3": {"other/app"}}
	for name, tc := range map[string]struct {
		holders Holders
		gains   map[qat.Address]uint64
		spoil   func(qattest.Tree) error
		answer  Answer
		why     string
	}{
		"its PF got requests":           {own, map[qat.Address]uint64{first: 18242}, nil, Yes, "PF 0000:6b:00.0: +18,242 requests"},
		"one of its PFs got requests":   {both, map[qat.Address]uint64{second: 5}, nil, Yes, "PF 0000:e8:00.0: +5 requests"},
		"another PF got requests":       {own, map[qat.Address]uint64{second: 5}, nil, No, "PF 0000:6b:00.0 got no request in 10s"},
		"no request":                    {both, nil, nil, No, "PFs 0000:6b:00.0, 0000:e8:00.0 got no request in 10s"},
		"requests that others can send": {shared, map[qat.Address]uint64{first: 7}, nil, Perhaps, "PF 0000:6b:00.0: +7 requests, shared with other/app"},
		"shared, and no request":        {shared, nil, nil, No, "PF 0000:6b:00.0 got no request in 10s"},
		"no VF":                         {Holders{"0000:6b:00.1": {"other/app"}}, nil, nil, No, "the pod holds no QAT VF of this node"},
		"the same VF in two containers": {Holders{"0000:6b:00.1": {pod, pod}}, map[qat.Address]uint64{first: 1}, nil, Yes, "PF 0000:6b:00.0: +1 requests"},
		"a process of the host holds one": {Holders{"0000:6b:00.1": {pod}, "0000:6b:00.4": {"process 7 (dpdk-test) of the host"}}, map[qat.Address]uint64{first: 1}, nil, Perhaps,
			"PF 0000:6b:00.0: +1 requests, shared with process 7 (dpdk-test) of the host"},
		"a dead PF": {own, nil, func(t qattest.Tree) error { return t.Kill(first) }, No, "PF 0000:6b:00.0 does not answer its heartbeat"},
		"no counters": {own, nil, func(t qattest.Tree) error { return t.SetCounters(first) }, No,
			"PF 0000:6b:00.0: firmware counters: no engine: expected a line for each"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, inv := machine(t)
			count(t, tree, first, 1000, 1000)
			count(t, tree, second, 1000, 1000)
			targets := Targets(inv, tc.holders, pod)
			before := Read(tree.Root, PFs(inv, targets), noon)
			for pf, n := range tc.gains {
				count(t, tree, pf, 1000+n, 1000+n)
			}
			if tc.spoil != nil {
				if err := tc.spoil(tree); err != nil {
					t.Fatal(err)
				}
			}
			after := Read(tree.Root, PFs(inv, targets), noon.Add(10*time.Second))
			v := Judge(pod, targets, &before, &after)
			if v.InUse != tc.answer || v.Why != tc.why {
				t.Errorf("%s (%s), expected %s (%s)", v.InUse, v.Why, tc.answer, tc.why)
			}
			var out bytes.Buffer
			if err := v.Write(&out, output.Table, output.Colours{}); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("hardware in use: %s (%s)\n", tc.answer, tc.why); !strings.HasPrefix(out.String(), want) {
				t.Errorf("it says %q, expected it to begin with %q", out.String(), want)
			}
		})
	}
}

func TestADeviceThatWasStartedAgainCountsFromZero(t *testing.T) {
	tree, inv := machine(t)
	count(t, tree, first, 1000, 1000)
	targets := Targets(inv, Holders{"0000:6b:00.1": {"a/b"}}, "a/b")
	before := Read(tree.Root, PFs(inv, targets), noon)
	count(t, tree, first, 3, 3)
	after := Read(tree.Root, PFs(inv, targets), noon.Add(time.Second))
	if v := Judge("a/b", targets, &before, &after); v.InUse != Yes || v.PFs[0].Requests != 3 {
		t.Errorf("%+v", v)
	}
}

func TestNumbersAreWrittenForPeople(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 18446744073709551615: "18,446,744,073,709,551,615"} {
		if got := Count(n); got != want {
			t.Errorf("%d: %s, expected %s", n, got, want)
		}
	}
	if got := []string{perSecond(0), perSecond(0.25), perSecond(1234.5)}; !slices.Equal(got, []string{"0", "0.2", "1,235"}) {
		t.Errorf("%v", got)
	}
}
