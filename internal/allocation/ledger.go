package allocation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/refusal"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// bootTime is how long a pod may hold VFs that ForPod gave it while nothing
// else is heard of it. kubelet gives up on a sandbox after four minutes
// (Kubernetes, runtimeRequestTimeout of 2m, doubled for RunPodSandbox).
const bootTime = 5 * time.Minute

// ledger is the record of who holds what. It is not safe for concurrent use.
type ledger struct {
	pods map[string]*holder      // by sandbox id
	byVF map[qat.Address]*holder // what is in here is held, the rest is free
	most int                     // VFs that a pod may hold
	now  func() time.Time
	// stopped is Options.Stopped, nil when nobody knows.
	stopped func(sandboxID string) bool
}

// holder is a pod and what it holds.
type holder struct {
	pod  Pod
	held []Held // every VF of the pod, in the order in which it came to it
	// shares say which of them each container has, in the order in which the
	// containers came to have any.
	shares   []share
	query    *query    // to kubelet; nil when it was not asked
	lapses   time.Time // for a pod that has yet to be seen running; zero once it was
	restored bool      // nobody may tell that it has stopped: see Options.Stopped
}

// share is what a pod keeps for one of its containers, by name: a container
// that is created again finds its VFs there.
type share struct {
	container string
	id        string // of the container that has it; empty when none does
	source    Source
	vfs       []Held
}

// claim is what a container of a pod is about to get.
type claim struct {
	container string
	id        string // empty when the container does not exist yet
	source    Source
	vfs       []Held // with an Index yet to be found
	aside     bool   // only set them aside
}

func newLedger(most int, now func() time.Time, stopped func(string) bool) *ledger {
	return &ledger{pods: make(map[string]*holder), byVF: make(map[qat.Address]*holder), most: most, now: now, stopped: stopped}
}

// open finds the pod, or takes it in as one that has yet to be seen running.
func (l *ledger) open(pod Pod) *holder {
	h := l.pods[pod.ID]
	if h != nil {
		return h
	}
	for _, o := range l.pods {
		if o.lapsed(l.now()) || o.precedes(&pod) {
			l.drop(o)
		}
	}
	h = &holder{pod: pod, lapses: l.now().Add(bootTime)}
	l.pods[pod.ID] = h
	return h
}

// gone tells that a pod has ended unheard. It is asked only of a pod that stands
// in another's way, or for people.
func (l *ledger) gone(h *holder) bool {
	return h.lapsed(l.now()) || h.restored && l.stopped != nil && l.stopped(h.pod.ID)
}

func (h *holder) lapsed(now time.Time) bool { return !h.lapses.IsZero() && now.After(h.lapses) }

// precedes tells whether h is a former sandbox of the pod, one that never came
// to run a container or was stopped unheard. kubelet makes the next sandbox of
// a pod only when the last one is stopped.
func (h *holder) precedes(pod *Pod) bool {
	return pod.UID != "" && h.pod.UID == pod.UID && h.pod.Name == pod.Name && h.pod.Namespace == pod.Namespace &&
		!slices.ContainsFunc(h.shares, func(s share) bool { return s.id != "" })
}

// drop forgets a pod and frees its VFs.
func (l *ledger) drop(h *holder) {
	for _, v := range h.held {
		if l.byVF[v.Device.VF.Address] == h {
			delete(l.byVF, v.Device.VF.Address)
		}
	}
	delete(l.pods, h.pod.ID)
}

// take gives a pod what is claimed for its containers: all of it or, with an
// error, nothing.
func (l *ledger) take(h *holder, claims ...claim) error {
	added := 0 // at most: containers of a pod may share a VF
	for i := range claims {
		c := &claims[i]
		for _, v := range c.vfs {
			if v.Device.Err != nil {
				return inContainer(&h.pod, c.container, refusal.Because(refusal.DeviceUnready, v.Device.Err))
			}
			if err := l.conflict(h, v.Device); err != nil {
				return inContainer(&h.pod, c.container, err)
			}
			if l.byVF[v.Device.VF.Address] != h {
				added++
			}
		}
	}
	if added > 0 && len(h.held)+added > l.most {
		if n := len(h.held) + l.fresh(h, claims); n > l.most {
			return inContainer(&h.pod, claims[len(claims)-1].container, tooMany(n, l.most))
		}
	}
	for _, c := range claims {
		l.record(h, c)
	}
	return nil
}

// fresh counts the VFs that claims would add to a pod.
func (l *ledger) fresh(h *holder, claims []claim) int {
	added := make(map[qat.Address]bool)
	for _, c := range claims {
		for _, v := range c.vfs {
			if a := v.Device.VF.Address; l.byVF[a] != h {
				added[a] = true
			}
		}
	}
	return len(added)
}

// conflict says which other pod holds the VF, or another device of its IOMMU
// group.
func (l *ledger) conflict(h *holder, d *vfio.Device) error {
	o, at := l.holder(d, h)
	if o == nil {
		return nil
	}
	what := ""
	if at != d.VF.Address {
		what = fmt.Sprintf("shares IOMMU group %d with %s, which is ", d.VF.Group.ID, at)
	}
	return refusal.Because(refusal.DeviceHeld, fmt.Errorf("VF %s: %sheld by %s: it is free again when that pod is removed", d.VF.Address, what, o.describe(at)))
}

// holder finds who, other than the pod that asks, holds a VF or another device
// of its group, and which of them.
func (l *ledger) holder(d *vfio.Device, asks *holder) (*holder, qat.Address) {
	if o := l.byVF[d.VF.Address]; l.other(o, asks) {
		return o, d.VF.Address
	}
	if d.VF.Group == nil {
		return nil, ""
	}
	for i := range d.VF.Group.Members {
		a := qat.Address(d.VF.Group.Members[i].Address)
		if a == d.VF.Address {
			continue
		}
		if o := l.byVF[a]; l.other(o, asks) {
			return o, a
		}
	}
	return nil, ""
}

func (l *ledger) other(o, asks *holder) bool {
	if o == nil || o == asks {
		return false
	}
	if l.gone(o) {
		l.drop(o)
		return false
	}
	return true
}

// describe names the pod, and the container if one has the VF.
func (h *holder) describe(a qat.Address) string {
	who := "pod " + h.pod.String()
	for _, s := range h.shares {
		if has(s.vfs, a) {
			who += ", container " + s.container
			break
		}
	}
	return fmt.Sprintf("%s (sandbox %.13s)", who, h.pod.ID)
}

// record gives a claim that nothing stands against to its container.
func (l *ledger) record(h *holder, c claim) {
	h.held = slices.Grow(h.held, len(c.vfs))
	for i := range c.vfs {
		v := &c.vfs[i]
		v.Index = -1
		at := slices.IndexFunc(h.held, func(o Held) bool { return o.Device.VF.Address == v.Device.VF.Address })
		if at < 0 {
			at = len(h.held)
			h.held = append(h.held, *v)
			l.byVF[v.Device.VF.Address] = h
		}
		if h.held[at].Index < 0 && !c.aside {
			h.held[at].Index = h.next(v.Device.VF.Family)
		}
		v.Index = h.held[at].Index
	}
	s := share{container: c.container, id: c.id, source: c.source, vfs: c.vfs}
	if at := slices.IndexFunc(h.shares, func(o share) bool { return o.container == c.container }); at >= 0 {
		s.id = cmp.Or(c.id, h.shares[at].id)
		h.shares[at] = s
	} else {
		h.shares = append(h.shares, s)
	}
}

// next is the number of VFs that came to the pod's VM so far and whose
// configuration files have the same name.
func (h *holder) next(f *qat.Family) int {
	n := 0
	for i := range h.held {
		if o := h.held[i].Device.VF.Family; h.held[i].Index >= 0 && (o == f || o.Conf == f.Conf) {
			n++
		}
	}
	return n
}

// share finds what the pod keeps for a container.
func (h *holder) share(container string) *share {
	for i := range h.shares {
		if h.shares[i].container == container {
			return &h.shares[i]
		}
	}
	return nil
}

// unshared lists the VFs that the pod holds and keeps for no container.
func (h *holder) unshared() []Held {
	var rest []Held
	for _, v := range h.held {
		if !slices.ContainsFunc(h.shares, func(s share) bool { return has(s.vfs, v.Device.VF.Address) }) {
			rest = append(rest, v)
		}
	}
	return rest
}

func (h *holder) assignment(s *share) Assignment {
	return Assignment{Pod: h.pod, ContainerID: s.id, Container: s.container, Source: s.source, VFs: s.vfs}
}

// assignments lists everything that is held, in an order for people.
func (l *ledger) assignments() []Assignment {
	all := []Assignment{}
	for _, h := range l.pods {
		if l.gone(h) {
			l.drop(h)
			continue
		}
		for i := range h.shares {
			all = append(all, h.assignment(&h.shares[i]))
		}
		if rest := h.unshared(); len(rest) > 0 {
			all = append(all, Assignment{Pod: h.pod, VFs: rest})
		}
	}
	slices.SortFunc(all, func(a, b Assignment) int {
		return cmp.Or(strings.Compare(a.Pod.Namespace, b.Pod.Namespace), strings.Compare(a.Pod.Name, b.Pod.Name),
			strings.Compare(a.Pod.ID, b.Pod.ID), strings.Compare(a.Container, b.Container))
	})
	return all
}

func has(vfs []Held, a qat.Address) bool {
	return slices.ContainsFunc(vfs, func(v Held) bool { return v.Device.VF.Address == a })
}

// inContainer says for which container something went wrong.
func inContainer(pod *Pod, container string, err error) error {
	return fmt.Errorf("pod %s: container %s: %w", pod.String(), container, err)
}
