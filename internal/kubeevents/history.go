package kubeevents

import "time"

// observed is a refusal that may have come several times.
type observed struct {
	Refusal
	first, last time.Time
	count       int32

	name    string    // of the event; empty as long as there is none
	written time.Time // when it last was
}

// history remembers the refusals that came last.
type history struct {
	most int
	seen map[Refusal]*observed
}

func newHistory(most int) *history { return &history{most, make(map[Refusal]*observed)} }

// add counts a refusal. To make room it forgets the one that has not come for
// the longest time.
func (h *history) add(f seen) *observed {
	o := h.seen[f.Refusal]
	if o == nil {
		if len(h.seen) >= h.most {
			h.forget()
		}
		o = &observed{Refusal: f.Refusal, first: f.at}
		h.seen[f.Refusal] = o
	}
	o.last = f.at
	o.count++
	return o
}

func (h *history) forget() {
	var oldest *observed
	for _, o := range h.seen {
		if oldest == nil || o.last.Before(oldest.last) {
			oldest = o
		}
	}
	delete(h.seen, oldest.Refusal)
}
