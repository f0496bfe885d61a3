package node

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/output"
)

// NewLogger returns a logger that never makes its caller wait for the reader
// of the log: a pod must not start later because journald is slow. What does
// not fit is dropped and counted. Close it to have everything written.
func NewLogger(w io.Writer, level, format string) (*logrus.Logger, io.Closer, error) {
	l := logrus.New()
	lv, err := logrus.ParseLevel(level)
	if err != nil {
		return nil, nil, fmt.Errorf("log level %q: expected error, warn, info, debug or trace", level)
	}
	l.SetLevel(lv)
	switch format {
	case "text":
		l.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, DisableColors: !output.Terminal(w)})
	case "json":
		l.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, nil, fmt.Errorf("log format %q: expected text or json", format)
	}
	b := newBackground(w)
	l.SetOutput(b)
	return l, b, nil
}

// background writes lines from a goroutine of its own.
type background struct {
	lines   chan []byte
	dropped atomic.Uint64
	done    chan struct{}

	mu     sync.RWMutex // Close against Write
	closed bool
}

// queued lines are some hundred KiB at the most.
const queued = 1024

func newBackground(w io.Writer) *background {
	b := &background{lines: make(chan []byte, queued), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		for line := range b.lines {
			if n := b.dropped.Swap(0); n > 0 {
				fmt.Fprintf(w, "level=warning msg=\"log lines dropped\" lines=%d\n", n)
			}
			_, _ = w.Write(line) // there is nobody to tell
		}
	}()
	return b
}

// Write queues a line.
func (b *background) Write(p []byte) (int, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.closed {
		return len(p), nil
	}
	select {
	case b.lines <- append([]byte(nil), p...):
	default:
		b.dropped.Add(1)
	}
	return len(p), nil
}

// Close writes what is queued.
func (b *background) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.lines)
	}
	b.mu.Unlock()
	<-b.done
	return nil
}
