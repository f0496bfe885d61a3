// Package topology shows where a machine's QAT devices are: sockets and NUMA
// nodes, the physical functions at them, their virtual functions with their IOMMU
// groups, and the pods that hold those; as data, and as a picture for a ticket or
// a wiki. It decides nothing and knows no more than package inventory.
package topology

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/inventory"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Topology is what there is at one moment.
type Topology struct {
	Host  string    `json:"host,omitempty"`
	Time  time.Time `json:"time"`
	Nodes []Node    `json:"numaNodes"` // that have a device, by number
	Pods  []Pod     `json:"pods"`      // that hold a VF, by name
	// HoldersKnown is false when nobody could tell who holds what.
	HoldersKnown bool     `json:"holdersKnown"`
	Problems     []string `json:"problems,omitempty"`
}

// Node is a NUMA node.
type Node struct {
	NUMA   int  `json:"numaNode"` // -1 on a machine without NUMA information
	Socket *int `json:"socket,omitempty"`
	PFs    []PF `json:"pfs"`
}

// PF is a physical function. The one without an address has the VFs whose PF is
// not on this machine.
type PF struct {
	Address  qat.Address  `json:"address,omitempty"`
	Family   string       `json:"family,omitempty"`
	Driver   string       `json:"driver,omitempty"`
	Services qat.Services `json:"services,omitempty"`
	Resource string       `json:"resource,omitempty"`
	State    string       `json:"state,omitempty"`
	Health   qat.Health   `json:"health"`
	TotalVFs int          `json:"totalVFs,omitempty"`
	VFs      []VF         `json:"vfs"`
}

// VF is a virtual function.
type VF struct {
	Address qat.Address `json:"address"`
	Driver  string      `json:"driver,omitempty"`
	Group   *Group      `json:"iommuGroup,omitempty"`
	State   State       `json:"state"`
	Problem string      `json:"problem,omitempty"`
	Pods    []string    `json:"pods"` // who holds it: namespace/name; null when nobody could tell
}

// Group is an IOMMU group.
type Group struct {
	ID     int      `json:"id"`
	Node   string   `json:"node,omitempty"`
	Shared []string `json:"sharedWith,omitempty"` // the other devices in it
}

// State is what became of a VF.
type State string

// The states.
const (
	Free     State = "free"
	Held     State = "held"
	Unusable State = "unusable"
)

// Pod is a pod that holds VFs.
type Pod struct {
	Name       string        `json:"name"` // namespace/name, or a container's id
	Containers []string      `json:"containers,omitempty"`
	VFs        []qat.Address `json:"vfs"`
	NUMANodes  []int         `json:"numaNodes"` // of the VFs
}

// New makes the topology of what an inventory has. sockets tells the socket of a
// NUMA node.
func New(r *inventory.Report, sockets map[int]int, host string, now time.Time) *Topology {
	t := &Topology{Host: host, Time: now.UTC().Truncate(time.Second), Nodes: []Node{}, Pods: []Pod{}, HoldersKnown: true}
	nodes := make(map[int]*Node)
	at := func(numa int) *Node {
		if nodes[numa] == nil {
			nodes[numa] = &Node{NUMA: numa}
			if s, ok := sockets[numa]; ok {
				nodes[numa].Socket = &s
			}
		}
		return nodes[numa]
	}
	pods := make(map[string]*Pod)
	for i := range r.PFs {
		pf := &r.PFs[i]
		n := at(pf.NUMANode)
		n.PFs = append(n.PFs, PF{
			Address: pf.Address, Family: pf.Family.Name, Driver: pf.Driver, Services: pf.Services,
			Resource: qat.ResourceDomain + "/" + pf.Services.ResourceName(), State: pf.State, Health: pf.Health,
			TotalVFs: pf.TotalVFs, VFs: t.vfs(pf.VFs, pods),
		})
	}
	for i := range r.Orphans {
		n := at(r.Orphans[i].NUMANode)
		if last := len(n.PFs) - 1; last < 0 || n.PFs[last].Address != "" {
			n.PFs = append(n.PFs, PF{Health: qat.HealthUnknown})
		}
		pf := &n.PFs[len(n.PFs)-1]
		pf.VFs = append(pf.VFs, t.vfs(r.Orphans[i:i+1], pods)...)
	}
	for _, numa := range slices.Sorted(maps.Keys(nodes)) {
		t.Nodes = append(t.Nodes, *nodes[numa])
	}
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		p := pods[name]
		slices.Sort(p.Containers)
		slices.Sort(p.NUMANodes)
		t.Pods = append(t.Pods, *p)
	}
	for _, p := range r.Problems {
		t.Problems = append(t.Problems, p.Error())
	}
	return t
}

// vfs are the VFs of one PF; who holds them is added to the pods.
func (t *Topology) vfs(vfs []inventory.VF, pods map[string]*Pod) []VF {
	out := make([]VF, len(vfs))
	for i := range vfs {
		v := &vfs[i]
		o := VF{Address: v.Address, Driver: v.Driver, State: Free, Problem: v.Problem}
		if v.Group != nil {
			o.Group = group(v)
		}
		if !v.Ready {
			o.State = Unusable
		}
		if v.Holders == nil {
			t.HoldersKnown = false
		} else {
			o.Pods = []string{}
		}
		for _, h := range v.Holders {
			name := podName(h)
			if !slices.Contains(o.Pods, name) {
				o.Pods = append(o.Pods, name)
			}
			o.State = Held
			if pods[name] == nil {
				pods[name] = &Pod{Name: name}
			}
			pods[name].add(v, h)
		}
		out[i] = o
	}
	return out
}

func (p *Pod) add(v *inventory.VF, h inventory.Holder) {
	if !slices.Contains(p.VFs, v.Address) {
		p.VFs = append(p.VFs, v.Address)
	}
	if !slices.Contains(p.NUMANodes, v.NUMANode) {
		p.NUMANodes = append(p.NUMANodes, v.NUMANode)
	}
	if h.Container != "" && !slices.Contains(p.Containers, h.Container) {
		p.Containers = append(p.Containers, h.Container)
	}
}

func group(v *inventory.VF) *Group {
	g := &Group{ID: v.Group.ID}
	if v.Node != nil && v.Node.Major != 0 {
		g.Node = v.Node.Path
	}
	for _, m := range v.Group.Members {
		if m.Address != string(v.Address) {
			g.Shared = append(g.Shared, m.Address)
		}
	}
	return g
}

func podName(h inventory.Holder) string {
	if h.Pod == "" {
		return h.ID[:min(len(h.ID), 12)]
	}
	return h.Namespace + "/" + h.Pod
}

// count tells how many VFs are in each state, and how many there are.
func (t *Topology) count() (byState map[State]int, pfs, vfs int) {
	byState = make(map[State]int)
	for _, n := range t.Nodes {
		for _, pf := range n.PFs {
			if pf.Address != "" {
				pfs++
			}
			for _, vf := range pf.VFs {
				byState[vf.State]++
				vfs++
			}
		}
	}
	return byState, pfs, vfs
}

// troubles are what keeps VFs from being used, and what sysfs did not say; the
// same words about several VFs once.
func (t *Topology) troubles() []string {
	all := slices.Clone(t.Problems)
	type trouble struct {
		text  string
		count int
	}
	same := make(map[string]*trouble)
	var order []*trouble
	for _, n := range t.Nodes {
		for _, pf := range n.PFs {
			for _, vf := range pf.VFs {
				if vf.Problem == "" {
					continue
				}
				words := strings.ReplaceAll(vf.Problem, string(vf.Address), "")
				if same[words] == nil {
					same[words] = &trouble{text: vf.Problem}
					order = append(order, same[words])
				}
				same[words].count++
			}
		}
	}
	slices.SortStableFunc(order, func(a, b *trouble) int { return cmp.Compare(b.count, a.count) })
	for _, p := range order {
		if p.count > 1 {
			p.text += fmt.Sprintf(" (and %d more VFs)", p.count-1)
		}
		all = append(all, p.text)
	}
	return all
}
