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

// do has f called in a while; at once when everything is coming to its end. It
// waits for nothing.
func (l *later) do(f func()) {
	if !l.add(f) {
		f()
	}
}

func (l *later) add(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.queue = append(l.queue, f)
	if len(l.queue) == 1 {
		time.AfterFunc(afterStart, l.flush)
	}
	return true
}

// flush does what is due without the lock: a pod may start meanwhile.
func (l *later) flush() {
	for _, f := range l.take(false) {
		f()
	}
}

func (l *later) take(last bool) []func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.queue
	l.queue, l.ended = nil, l.ended || last
	return due
}

// end does what is left without waiting for its time.
func (l *later) end() {
	for _, f := range l.take(true) {
		f()
	}
}
