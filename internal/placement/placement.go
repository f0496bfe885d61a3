// Package placement chooses which of the VFs that are free a container had
// better get. It knows PFs, NUMA nodes and how much of each is in use; it does
// not know who asks, and gives nothing to anybody.
package placement

import (
	"cmp"
	"fmt"
	"slices"
)

// Policy says what is a good choice.
type Policy string

// The policies. Both keep a container's VFs on one NUMA node if any has enough
// of them.
const (
	// Balanced takes each VF from the PF of which the fewest are in use, so
	// that containers share the engines of all PFs and nodes evenly.
	Balanced Policy = "balanced"
	// Packed takes VFs from as few PFs as it can, and from those that are used
	// already, so that other PFs stay idle or free for who needs many.
	Packed Policy = "packed"
)

// ParsePolicy checks a policy's name.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case Balanced, Packed:
		return p, nil
	}
	return "", fmt.Errorf("policy %q: expected %q or %q", s, Balanced, Packed)
}

// Candidate is a VF that can be chosen.
type Candidate struct {
	ID   string
	PF   string // a VF without one counts as a PF of its own
	NUMA int    // -1 where it is not known
	// Last is a VF to take only when no other is left.
	Last bool
}

// Choose picks n VFs: all of must, and the rest from free. used is how many VFs
// of each PF are in use, must and free not counted. With fewer than n to choose
// from it returns them all. The same question has the same answer whatever the
// order of free.
func (p Policy) Choose(n int, must, free []Candidate, used map[string]int) []Candidate {
	c := newChoice(must, used)
	for _, last := range []bool{false, true} {
		need := n - len(c.taken)
		if need <= 0 {
			break
		}
		pfs := sources(free, last)
		if p == Packed {
			c.pack(need, pfs)
		} else {
			c.balance(need, pfs)
		}
	}
	return c.taken
}

// source is a PF with the VFs of it that can still be taken, by address.
type source struct {
	pf   string
	numa int
	free []Candidate
}

// sources sorts candidates by PF.
func sources(all []Candidate, last bool) []*source {
	byPF := make(map[string]*source)
	var pfs []*source
	for _, v := range all {
		if v.Last != last {
			continue
		}
		name := cmp.Or(v.PF, v.ID)
		s := byPF[name]
		if s == nil {
			s = &source{pf: name, numa: v.NUMA}
			byPF[name] = s
			pfs = append(pfs, s)
		}
		s.free = append(s.free, v)
	}
	for _, s := range pfs {
		slices.SortFunc(s.free, func(a, b Candidate) int { return compareIDs(a.ID, b.ID) })
	}
	slices.SortFunc(pfs, func(a, b *source) int { return compareIDs(a.pf, b.pf) })
	return pfs
}

// compareIDs orders PCI addresses: a domain of more than four digits is higher.
func compareIDs(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }

// choice is what was taken so far.
type choice struct {
	taken []Candidate
	load  map[string]int // VFs of each PF that are in use or taken
	nodes map[int]bool   // NUMA nodes that something was taken from
}

func newChoice(must []Candidate, used map[string]int) *choice {
	c := &choice{load: make(map[string]int, len(used)), nodes: make(map[int]bool)}
	for pf, n := range used {
		c.load[pf] = n
	}
	for _, v := range must {
		c.note(v)
	}
	return c
}

func (c *choice) note(v Candidate) {
	c.taken = append(c.taken, v)
	c.load[cmp.Or(v.PF, v.ID)]++
	c.nodes[v.NUMA] = true
}

func (c *choice) take(s *source, n int) {
	n = min(n, len(s.free))
	for _, v := range s.free[:n] {
		c.note(v)
	}
	s.free = s.free[n:]
}

// balance takes n VFs from the node that is left with the least busy PFs, and
// from all nodes if none has that many.
func (c *choice) balance(n int, pfs []*source) {
	best, level := pfs, -1
	for _, node := range c.within(n, pfs) {
		if l := c.level(n, node); level < 0 || l < level {
			best, level = node, l
		}
	}
	for range n {
		s := c.idlest(best)
		if s == nil {
			return
		}
		c.take(s, 1)
	}
}

// idlest is the PF of which the fewest VFs are in use, nil when none has any
// left.
func (c *choice) idlest(pfs []*source) *source {
	var best *source
	for _, s := range pfs {
		if len(s.free) > 0 && (best == nil || c.load[s.pf] < c.load[best.pf]) {
			best = s
		}
	}
	return best
}

// level is how busy the busiest of the PFs would be that balance takes n VFs
// from, and finer than that how busy all of them are.
func (c *choice) level(n int, pfs []*source) int {
	const fine = 1 << 20
	extra := make(map[string]int, len(pfs))
	highest, sum := 0, 0
	for range n {
		var best *source
		for _, s := range pfs {
			if extra[s.pf] < len(s.free) && (best == nil || c.load[s.pf]+extra[s.pf] < c.load[best.pf]+extra[best.pf]) {
				best = s
			}
		}
		extra[best.pf]++
		highest = max(highest, c.load[best.pf]+extra[best.pf])
		sum += c.load[best.pf] + extra[best.pf]
	}
	return highest*fine + sum
}

// within groups the PFs by node, as far as one node has n VFs left. A node that
// something was taken from already goes before all others.
func (c *choice) within(n int, pfs []*source) [][]*source {
	byNode := make(map[int][]*source)
	left := make(map[int]int)
	var order []int
	for _, s := range pfs {
		if byNode[s.numa] == nil {
			order = append(order, s.numa)
		}
		byNode[s.numa] = append(byNode[s.numa], s)
		left[s.numa] += len(s.free)
	}
	slices.Sort(order)
	var near, all [][]*source
	for _, node := range order {
		if left[node] < n {
			continue
		}
		all = append(all, byNode[node])
		if c.nodes[node] {
			near = append(near, byNode[node])
		}
	}
	if len(near) > 0 {
		return near
	}
	return all
}

// pack takes n VFs from as few PFs as possible: from the one that has the fewest
// left of those that have enough, or else from the one that has the most.
func (c *choice) pack(n int, pfs []*source) {
	if nodes := c.within(n, pfs); len(nodes) > 0 {
		pfs = slices.MinFunc(nodes, func(a, b []*source) int {
			return cmp.Or(cmp.Compare(fewest(n, a), fewest(n, b)), cmp.Compare(left(a), left(b)))
		})
	}
	for n > 0 {
		s := c.fullest(n, pfs)
		if s == nil {
			return
		}
		before := len(c.taken)
		c.take(s, n)
		n -= len(c.taken) - before
	}
}

func (c *choice) fullest(n int, pfs []*source) *source {
	var best *source
	better := func(s *source) bool {
		fits, bestFits := len(s.free) >= n, len(best.free) >= n
		switch {
		case fits != bestFits:
			return fits
		case len(s.free) != len(best.free):
			return (len(s.free) < len(best.free)) == fits
		}
		return c.load[s.pf] > c.load[best.pf]
	}
	for _, s := range pfs {
		if len(s.free) > 0 && (best == nil || better(s)) {
			best = s
		}
	}
	return best
}

// fewest is the least number of PFs that have n VFs.
func fewest(n int, pfs []*source) int {
	sizes := make([]int, len(pfs))
	for i, s := range pfs {
		sizes[i] = len(s.free)
	}
	slices.Sort(sizes)
	count := 0
	for _, size := range slices.Backward(sizes) {
		if n <= 0 {
			break
		}
		n -= size
		count++
	}
	return count
}

func left(pfs []*source) int {
	n := 0
	for _, s := range pfs {
		n += len(s.free)
	}
	return n
}
