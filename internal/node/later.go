package node

import (
	"sync"
	"time"
)

// later does, in order, what a pod that starts need not wait for: a line in the
// log wakes whoever reads it, at the moment when the runtime and Kata want the
// processors.
type later struct {
	mu    sync.Mutex
	queue []func()
	ended bool
}

// afterStart is when nobody waits for the answer any more: a validation follows
// the creation of a container within milliseconds.
const afterStart = 100 * time.Millisecond

// do has f called in a while; at once when everything is coming to its end.
func (l *later) do(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		f()
		return
	}
	l.queue = append(l.queue, f)
	if len(l.queue) == 1 {
		time.AfterFunc(afterStart, l.flush)
	}
}

func (l *later) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.queue {
		f()
	}
	l.queue = nil
}

// end does what is left without waiting for its time.
func (l *later) end() {
	l.flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}
