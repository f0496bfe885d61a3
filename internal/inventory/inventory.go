// Package inventory puts together what is known of a machine's QAT devices: the
// functions themselves, the nodes that stand for them, and the containers that
// hold them. It is a view for people and programs; nothing is decided by it.
package inventory

import (
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// Report is all of it.
type Report struct {
	PFs      []PF          `json:"pfs"`
	Orphans  []VF          `json:"orphans,omitempty"` // VFs whose PF is not there
	Problems []qat.Problem `json:"problems,omitempty"`
}

// PF is a physical function.
type PF struct {
	qat.PF
	VFs []VF `json:"vfs"`
}

// VF is a virtual function and what became of it.
type VF struct {
	qat.VF
	Resource string     `json:"resource"`
	Node     *vfio.Node `json:"node,omitempty"`
	Ready    bool       `json:"ready"`
	Problem  string     `json:"problem,omitempty"` // why it is not ready
	// Holders are the containers whose spec has the VF's node. It is nil, and
	// null in JSON, when nobody could tell.
	Holders []Holder `json:"holders"`
}

// Holder is a container that holds a VF.
type Holder struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Container string `json:"container,omitempty"` // empty for a sandbox
	// Exited is set for a container that runs no more. Its pod may still own
	// the VF, for a container that is about to be started again.
	Exited bool `json:"exited,omitempty"`
}

// Holders are the containers that hold each VF. A nil map means that nobody
// could tell.
type Holders map[qat.Address][]Holder

// New makes the report.
func New(inv *qat.Inventory, table *vfio.Table, holders Holders) *Report {
	r := &Report{PFs: make([]PF, len(inv.PFs)), Problems: inv.Problems}
	for i, pf := range inv.PFs {
		r.PFs[i] = PF{PF: pf, VFs: view(pf.VFs, table, holders)}
	}
	if len(inv.Orphans) > 0 {
		r.Orphans = view(inv.Orphans, table, holders)
	}
	return r
}

// OnlyReady leaves out the VFs that cannot be handed out.
func (r *Report) OnlyReady() {
	for i := range r.PFs {
		r.PFs[i].VFs = ready(r.PFs[i].VFs)
	}
	r.Orphans = ready(r.Orphans)
}

func ready(vfs []VF) []VF {
	kept := make([]VF, 0, len(vfs))
	for _, vf := range vfs {
		if vf.Ready {
			kept = append(kept, vf)
		}
	}
	return kept
}

func view(vfs []qat.VF, table *vfio.Table, holders Holders) []VF {
	out := make([]VF, len(vfs))
	for i, vf := range vfs {
		v := VF{VF: vf, Resource: vf.Resource()}
		if d := table.ByAddress(vf.Address); d != nil {
			if d.Node != (vfio.Node{}) {
				v.Node = &d.Node
			}
			if v.Ready = d.Err == nil; !v.Ready {
				v.Problem = d.Err.Error()
			}
		}
		if holders != nil {
			v.Holders = append([]Holder{}, holders[vf.Address]...)
		}
		out[i] = v
	}
	return out
}
