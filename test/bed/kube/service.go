package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// logDir has a log for each service.
const logDir = Dir + "/log"

// restartPause is how long a service is down after it died, as with
// Restart=always and systemd's RestartSec.
const restartPause = 100 * time.Millisecond

// Service is a program of the node that is started again whenever it ends, until
// it is stopped, as systemd would.
type Service struct {
	Name string
	args []string
	env  []string

	mu      sync.Mutex
	cmd     *exec.Cmd     // nil while it is down
	stopped bool          // it is to stay down
	started int           // how often
	changed chan struct{} // closed and replaced on every change
	done    chan struct{} // closed when it is down for good
}

func newService(name string, env, args []string) *Service {
	return &Service{Name: name, args: args, env: env, changed: make(chan struct{})}
}

// Start starts a service that was stopped.
func (s *Service) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return nil
	}
	s.stopped, s.done = false, make(chan struct{})
	cmd, err := s.launch()
	if err != nil {
		return err
	}
	go s.keep(cmd, s.done)
	return nil
}

// launch starts the program; the caller holds the lock.
func (s *Service) launch() (*exec.Cmd, error) {
	log, err := os.OpenFile(s.LogFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = Dir, log, log
	cmd.Env = append(os.Environ(), s.env...)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	s.cmd = cmd
	s.started++
	s.tell()
	return cmd, nil
}

func (s *Service) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// keep starts the program again whenever it has ended.
func (s *Service) keep(cmd *exec.Cmd, done chan struct{}) {
	defer close(done)
	for {
		_ = cmd.Wait() // however it ended, the log says why
		s.mu.Lock()
		s.cmd = nil
		s.tell()
		stopped := s.stopped
		s.mu.Unlock()
		if stopped {
			return
		}
		time.Sleep(restartPause)
		var err error
		s.mu.Lock()
		if !s.stopped {
			cmd, err = s.launch()
		}
		stopped = s.stopped || err != nil
		s.mu.Unlock()
		if stopped {
			return
		}
	}
}

// Stop stops the service with SIGTERM, after 10 s with SIGKILL.
func (s *Service) Stop() {
	s.mu.Lock()
	s.stopped = true
	s.signal(syscall.SIGTERM)
	done := s.done
	s.mu.Unlock()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		s.mu.Lock()
		s.signal(syscall.SIGKILL)
		s.mu.Unlock()
		<-done
	}
}

// signal sends a signal to the program; the caller holds the lock.
func (s *Service) signal(sig syscall.Signal) {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig) // it may have ended by itself
	}
}

// Kill kills the program with SIGKILL and returns when it was started again.
func (s *Service) Kill(ctx context.Context) error {
	s.mu.Lock()
	n := s.started
	if s.cmd == nil {
		s.mu.Unlock()
		return fmt.Errorf("kill %s: it does not run", s.Name)
	}
	s.signal(syscall.SIGKILL)
	s.mu.Unlock()
	return s.waitStarted(ctx, n+1)
}

// Restart ends the program as systemd does and returns when it was started again.
func (s *Service) Restart(ctx context.Context) error {
	s.mu.Lock()
	n := s.started
	s.signal(syscall.SIGTERM)
	s.mu.Unlock()
	return s.waitStarted(ctx, n+1)
}

func (s *Service) waitStarted(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		started, changed := s.started, s.changed
		s.mu.Unlock()
		if started >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be started again: %w", s.Name, ctx.Err())
		}
	}
}

// PID is the program's process id, 0 while it is down.
func (s *Service) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// LogFile is where the program's output goes.
func (s *Service) LogFile() string { return filepath.Join(logDir, s.Name+".log") }

// Log returns the program's output so far, of all its lives.
func (s *Service) Log() string {
	content, err := os.ReadFile(s.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// Tail returns the last lines of the log.
func (s *Service) Tail(lines int) string {
	all := strings.Split(strings.TrimSpace(s.Log()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// wait asks again and again until what is asked for is so, and returns the last
// reason why it is not when the context ends.
func wait(ctx context.Context, what string, ask func(context.Context) error) error {
	var last error
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-time.After(25 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, errors.Join(context.Cause(ctx), last))
		}
	}
}
