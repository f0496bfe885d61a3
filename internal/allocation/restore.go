package allocation

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// restored makes the ledger of what is true now, from the specs of the
// containers that live. From the old one it keeps what a spec does not tell:
// what living pods have set aside and in which order they got it, and pods that
// are still booting. The error names what does not fit together.
func (l *ledger) restored(pods []Pod, containers []PodContainer, held func([]SpecDevice) []Held) (*ledger, error) {
	fresh := newLedger(l.most, l.now, l.stopped)
	for _, pod := range pods {
		h := &holder{pod: pod, restored: true}
		if o := l.pods[pod.ID]; o != nil {
			h.held, h.shares, h.query = o.held, o.shares, o.query
		}
		fresh.pods[pod.ID] = h
	}
	for id, o := range l.pods {
		if fresh.pods[id] == nil && !o.lapses.IsZero() && !o.lapsed(l.now()) {
			fresh.pods[id] = o
		}
	}

	claims, truth, err := fresh.read(containers, held)
	for _, h := range fresh.pods {
		h.keep(truth)
		for _, v := range h.held {
			fresh.byVF[v.Device.VF.Address] = h
		}
	}
	for i, c := range containers {
		h := fresh.pods[c.PodID]
		if h == nil || len(claims[i].vfs) == 0 {
			continue
		}
		if o := l.pods[c.PodID]; o != nil {
			claims[i].remember(o)
		}
		fresh.record(h, claims[i])
	}
	for _, h := range fresh.pods {
		// A sandbox is recorded as a container without a name: only its VFs
		// matter.
		h.shares = slices.DeleteFunc(h.shares, func(s share) bool { return s.container == "" })
	}
	return fresh, err
}

// read takes the VFs out of the containers' specs. Where two pods have the same
// VF, which cannot be, it is left to the first and the other is named.
func (l *ledger) read(containers []PodContainer, held func([]SpecDevice) []Held) ([]claim, map[qat.Address]*holder, error) {
	var problems []error
	claims := make([]claim, len(containers))
	truth := make(map[qat.Address]*holder)
	for i, c := range containers {
		h := l.pods[c.PodID]
		vfs := held(c.Devices)
		if h == nil && len(vfs) > 0 {
			problems = append(problems, fmt.Errorf("container %s (%.13s) has %d QAT VFs, and its sandbox %.13s is gone", c.Name, c.ID, len(vfs), c.PodID))
			continue
		}
		vfs = slices.DeleteFunc(vfs, func(v Held) bool {
			o := truth[v.Device.VF.Address]
			if o == nil || o == h {
				truth[v.Device.VF.Address] = h
				return false
			}
			problems = append(problems, inContainer(&h.pod, c.Name, fmt.Errorf("VF %s is also in the spec of pod %s: remove one of the two", v.Device.VF.Address, o.pod.String())))
			return true
		})
		claims[i] = claim{container: c.Name, id: c.ID, source: SourceSpec, vfs: vfs}
	}
	return claims, truth, errors.Join(problems...)
}

// keep leaves the pod what no other pod is known to have. Its containers have
// to be heard of again.
func (h *holder) keep(truth map[qat.Address]*holder) {
	lost := func(v Held) bool {
		o := truth[v.Device.VF.Address]
		return o != nil && o != h
	}
	h.held = slices.DeleteFunc(slices.Clone(h.held), lost)
	h.shares = slices.DeleteFunc(slices.Clone(h.shares), func(s share) bool { return slices.ContainsFunc(s.vfs, lost) })
	for i := range h.shares {
		h.shares[i].id = ""
	}
}

// remember takes over from an earlier record of the same container what its
// spec does not tell: who gave it its VFs, and as what.
func (c *claim) remember(o *holder) {
	s := o.share(c.container)
	if s == nil {
		return
	}
	for i := range c.vfs {
		at := slices.IndexFunc(s.vfs, func(v Held) bool { return v.Device.VF.Address == c.vfs[i].Device.VF.Address })
		if at < 0 {
			return
		}
		c.vfs[i].Resource = s.vfs[at].Resource
	}
	c.source = s.source
}
