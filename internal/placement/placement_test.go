package placement_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/placement"
)

// pf describes what of a PF is free: PF "a" on node 0 with 4 VFs left of 16.
type pf struct {
	name       string
	numa       int
	free, used int
	last       int // of free, how many are only to be taken last
}

func machine(pfs ...pf) (free []placement.Candidate, used map[string]int) {
	used = make(map[string]int)
	for _, p := range pfs {
		used[p.name] = p.used
		for i := range p.free {
			free = append(free, placement.Candidate{ID: fmt.Sprint(p.name, i), PF: p.name, NUMA: p.numa, Last: i < p.last})
		}
	}
	rand.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	return free, used
}

func ids(vfs []placement.Candidate) string {
	var all []string
	for _, v := range vfs {
		all = append(all, v.ID)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestChoose(t *testing.T) {
	for _, tt := range []struct {
		name             string
		pfs              []pf
		must             []string
		n                int
		balanced, packed string
	}{
		{name: "one VF of an idle machine", pfs: []pf{{name: "a", free: 4}, {name: "b", free: 4}}, n: 1, balanced: "a0", packed: "a0"},
		{name: "the idle PF, or the one that is used", pfs: []pf{{name: "a", free: 3, used: 1}, {name: "b", free: 4}}, n: 1, balanced: "b0", packed: "a0"},
		{name: "several VFs", pfs: []pf{{name: "a", free: 4}, {name: "b", free: 4}}, n: 4, balanced: "a0 a1 b0 b1", packed: "a0 a1 a2 a3"},
		{name: "until all are used alike", pfs: []pf{{name: "a", free: 2, used: 2}, {name: "b", free: 4}, {name: "c", free: 3, used: 1}}, n: 3, balanced: "b0 b1 c0", packed: "c0 c1 c2"},
		{name: "the PF that just fits", pfs: []pf{{name: "a", free: 4}, {name: "b", free: 2, used: 2}, {name: "c", free: 1, used: 3}}, n: 2, balanced: "a0 a1", packed: "b0 b1"},
		{name: "more than one PF has", pfs: []pf{{name: "a", free: 2, used: 2}, {name: "b", free: 3, used: 1}}, n: 4, balanced: "a0 a1 b0 b1", packed: "a0 b0 b1 b2"},
		{name: "the idler node", pfs: []pf{{name: "a", numa: 0, free: 3, used: 1}, {name: "b", numa: 1, free: 4}}, n: 2, balanced: "b0 b1", packed: "a0 a1"},
		{name: "one node rather than two", pfs: []pf{{name: "a", numa: 0, free: 1}, {name: "b", numa: 1, free: 2, used: 8}, {name: "c", numa: 1, free: 1, used: 8}}, n: 3, balanced: "b0 b1 c0", packed: "b0 b1 c0"},
		{name: "two nodes where one has not enough", pfs: []pf{{name: "a", numa: 0, free: 2}, {name: "b", numa: 1, free: 2}}, n: 3, balanced: "a0 a1 b0", packed: "a0 a1 b0"},
		{name: "a node with more PFs carries more", pfs: []pf{{name: "a", numa: 0, free: 4}, {name: "b", numa: 1, free: 4}, {name: "c", numa: 1, free: 4}}, n: 2, balanced: "b0 c0", packed: "a0 a1"},
		{name: "beside what it must have", pfs: []pf{{name: "a", numa: 0, free: 4}, {name: "b", numa: 1, free: 4, used: 5}}, must: []string{"b3"}, n: 2, balanced: "b0 b3", packed: "b0 b3"},
		{name: "what it must have is enough", pfs: []pf{{name: "a", free: 4}}, must: []string{"a2", "a3"}, n: 2, balanced: "a2 a3", packed: "a2 a3"},
		{name: "unknown nodes", pfs: []pf{{name: "a", numa: -1, free: 1}, {name: "b", numa: -1, free: 1}}, n: 2, balanced: "a0 b0", packed: "a0 b0"},
		{name: "the last ones are last", pfs: []pf{{name: "a", free: 2, last: 2}, {name: "b", free: 2, used: 9}}, n: 3, balanced: "a0 b0 b1", packed: "a0 b0 b1"},
		{name: "more than there are", pfs: []pf{{name: "a", free: 2, last: 1}}, n: 5, balanced: "a0 a1", packed: "a0 a1"},
		{name: "none", pfs: []pf{{name: "a", free: 2}}, n: 0},
		{name: "from nothing", n: 2},
	} {
		for policy, want := range map[placement.Policy]string{placement.Balanced: tt.balanced, placement.Packed: tt.packed} {
			t.Run(tt.name+"/"+string(policy), func(t *testing.T) {
				free, used := machine(tt.pfs...)
				var must []placement.Candidate
				free = slices.DeleteFunc(free, func(v placement.Candidate) bool {
					if !slices.Contains(tt.must, v.ID) {
						return false
					}
					must = append(must, v)
					return true
				})
				if got := ids(policy.Choose(tt.n, must, free, used)); got != want {
					t.Errorf("chose %q, expected %q", got, want)
				}
			})
		}
	}
}

// Whatever is asked in whatever order, no VF is chosen twice, all that was asked
// for is there, and balanced leaves PFs that differ by one VF at the most.
func TestContainersThatComeAndGoAreBalanced(t *testing.T) {
	free, _ := machine(pf{name: "a", free: 16}, pf{name: "b", free: 16}, pf{name: "c", numa: 1, free: 16}, pf{name: "d", numa: 1, free: 16})
	used := make(map[string]int)
	for len(free) >= 2 {
		chosen := placement.Balanced.Choose(2, nil, free, used)
		if len(chosen) != 2 || chosen[0].ID == chosen[1].ID || chosen[0].NUMA != chosen[1].NUMA {
			t.Fatalf("chose %v", chosen)
		}
		free = slices.DeleteFunc(free, func(v placement.Candidate) bool { return slices.Contains(chosen, v) })
		for _, v := range chosen {
			used[v.PF]++
		}
		if lo, hi := min(used["a"], used["b"], used["c"], used["d"]), max(used["a"], used["b"], used["c"], used["d"]); hi-lo > 1 {
			t.Fatalf("in use: %v", used)
		}
	}
}

func TestAnUnknownPolicyIsRefused(t *testing.T) {
	if _, err := placement.ParsePolicy("random"); err == nil || !strings.Contains(err.Error(), `expected "balanced" or "packed"`) {
		t.Errorf("error %v", err)
	}
}
