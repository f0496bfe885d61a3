package allocation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/refusal"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// need is one request of one container, and what it gets.
type need struct {
	container string
	Request
	got []*vfio.Device
}

func (n *need) missing() int { return n.Count - len(n.got) }

// pool is what is free on a node, and what decides which of it is taken next.
type pool struct {
	inventory *inventory
	free      []*vfio.Device      // by address
	used      map[qat.Address]int // VFs that are taken, by PF
	near      map[int]int         // VFs that the pod has, by NUMA node
}

// poolFor looks at what a pod could take now.
func (l *ledger) poolFor(h *holder, inv *inventory) *pool {
	p := &pool{inventory: inv, used: make(map[qat.Address]int), near: make(map[int]int)}
	for _, d := range inv.Devices() {
		switch o, _ := l.holder(d, nil); {
		case o == nil && d.Err == nil && alone(d.VF):
			p.free = append(p.free, d)
		case o == h:
			p.near[d.VF.NUMANode]++
			fallthrough
		case o != nil:
			p.used[d.VF.PF]++
		}
	}
	return p
}

// alone tells whether whoever gets the VF gets nothing else with it: Kata
// passes every device of a group. The port above the VF is not passed.
func alone(vf *qat.VF) bool {
	if vf.Group == nil {
		return false
	}
	return !slices.ContainsFunc(vf.Group.Members, func(m qat.GroupMember) bool {
		return m.Address != string(vf.Address) && m.Driver != "pcieport"
	})
}

// reserve sets aside, for every container that the pod's annotations name, what
// they ask for: for all of them or, with an error, for none. A container for
// which the pod has VFs already keeps these.
func (l *ledger) reserve(h *holder, inv *inventory) ([]containerRequest, error) {
	requests, err := podRequests(&h.pod, inv.domain, l.most)
	if err != nil {
		return nil, err
	}
	needs := h.needs(requests, inv)
	if len(needs) == 0 {
		return requests, nil
	}
	p := l.poolFor(h, inv)
	if err := p.check(l, h, needs); err != nil {
		return nil, err
	}
	p.place(slices.DeleteFunc(slices.Clone(needs), func(n *need) bool { return n.missing() == 0 }))

	var claims []claim
	for _, n := range needs {
		if len(claims) == 0 || claims[len(claims)-1].container != n.container {
			claims = append(claims, claim{container: n.container, source: SourcePool, aside: true})
		}
		c := &claims[len(claims)-1]
		for _, d := range n.got {
			c.vfs = append(c.vfs, Held{Device: d, Resource: n.Resource})
		}
	}
	return requests, l.take(h, claims...)
}

// needs are the requests of the containers that have nothing yet. What the pod
// holds for no container, as after a restart, is theirs first.
func (h *holder) needs(requests []containerRequest, inv *inventory) []*need {
	var needs []*need
	rest := h.unshared()
	for _, c := range requests {
		if h.share(c.container) != nil {
			continue
		}
		for _, r := range c.requests {
			n := &need{container: c.container, Request: r}
			rest = slices.DeleteFunc(rest, func(v Held) bool {
				d := inv.ByAddress(v.Device.VF.Address)
				fits := d != nil && n.missing() > 0 && inv.resource(d.VF) == r.Resource
				if fits {
					n.got = append(n.got, d)
				}
				return fits
			})
			needs = append(needs, n)
		}
	}
	return needs
}

// check tells whether there is enough for all needs, and who has the rest if
// there is not.
func (p *pool) check(l *ledger, h *holder, needs []*need) error {
	asked := make(map[string]int)
	for _, n := range needs {
		free := p.count(n.Resource, func(*vfio.Device) bool { return true })
		if asked[n.Resource] += n.missing(); asked[n.Resource] > free {
			return inContainer(&h.pod, n.container, refusal.Because(refusal.Shortage, fmt.Errorf("annotation %s%s: %w", RequestAnnotation, n.container, p.shortage(l, n.Resource, asked[n.Resource], free))))
		}
	}
	return nil
}

func (p *pool) shortage(l *ledger, resource string, asked, free int) error {
	all, holders, names := 0, make(map[*holder]int), []string(nil)
	for _, d := range p.inventory.Devices() {
		r := p.inventory.resource(d.VF)
		if !slices.Contains(names, r) {
			names = append(names, r)
		}
		if r != resource {
			continue
		}
		all++
		if o, _ := l.holder(d, nil); o != nil {
			holders[o]++
		}
	}
	if all == 0 {
		slices.Sort(names)
		return fmt.Errorf("%s: no VF of this node is that: expected one of %s", resource, cmp.Or(strings.Join(names, ", "), "(this node has no QAT VF)"))
	}

	var parts []string
	held := 0
	for o, n := range holders {
		held += n
		parts = append(parts, fmt.Sprintf("%d held by %s", n, o.pod.String()))
	}
	slices.Sort(parts)
	const most = 3
	if len(parts) > most {
		parts = append(parts[:most], fmt.Sprintf("others by %d more pods", len(parts)-most))
	}
	if n := all - held - free; n > 0 {
		parts = append(parts, fmt.Sprintf("%d not usable (see kata-qat devices)", n))
	}
	return fmt.Errorf("the pod needs %d more of %s, and %d of %d are free (%s): ask for fewer, or remove a pod that holds some",
		asked, resource, free, all, cmp.Or(strings.Join(parts, ", "), "none held"))
}

// place takes what is needed out of the pool, of which check has said that it
// is enough: from one NUMA node for the whole pod when one has it all, else
// for each container, else for each request.
func (p *pool) place(needs []*need) {
	if len(needs) == 0 {
		return
	}
	if node, ok := p.node(needs); ok {
		for _, n := range needs {
			p.take(n, func(d *vfio.Device) bool { return d.VF.NUMANode == node })
		}
		return
	}
	if len(needs) == 1 {
		p.take(needs[0], func(*vfio.Device) bool { return true })
		return
	}
	cut := slices.IndexFunc(needs, func(n *need) bool { return n.container != needs[0].container })
	if cut < 0 {
		cut = 1
	}
	p.place(needs[:cut])
	p.place(needs[cut:])
}

// node finds the NUMA node that has all that is needed: rather one on which the
// pod has VFs already, then the one with the most free.
func (p *pool) node(needs []*need) (int, bool) {
	free := make(map[int]int)
	for _, d := range p.free {
		free[d.VF.NUMANode]++
	}
	nodes := make([]int, 0, len(free))
	for node := range free {
		nodes = append(nodes, node)
	}
	slices.SortFunc(nodes, func(a, b int) int {
		return cmp.Or(cmp.Compare(p.near[b], p.near[a]), cmp.Compare(free[b], free[a]), cmp.Compare(a, b))
	})
	for _, node := range nodes {
		asked := make(map[string]int)
		if !slices.ContainsFunc(needs, func(n *need) bool {
			asked[n.Resource] += n.missing()
			return asked[n.Resource] > p.count(n.Resource, func(d *vfio.Device) bool { return d.VF.NUMANode == node })
		}) {
			return node, true
		}
	}
	return 0, false
}

// take moves VFs from the pool to a need, each from the PF of which the fewest
// are taken.
func (p *pool) take(n *need, from func(*vfio.Device) bool) {
	for n.missing() > 0 {
		best := -1
		for i, d := range p.free {
			if p.inventory.resource(d.VF) == n.Resource && from(d) && (best < 0 || p.used[d.VF.PF] < p.used[p.free[best].VF.PF]) {
				best = i
			}
		}
		if best < 0 {
			return
		}
		d := p.free[best]
		p.free = slices.Delete(p.free, best, best+1)
		p.used[d.VF.PF]++
		p.near[d.VF.NUMANode]++
		n.got = append(n.got, d)
	}
}

func (p *pool) count(resource string, from func(*vfio.Device) bool) int {
	n := 0
	for _, d := range p.free {
		if p.inventory.resource(d.VF) == resource && from(d) {
			n++
		}
	}
	return n
}
