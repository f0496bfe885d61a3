package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// poll is how often something is looked at that cannot be waited for.
const poll = 10 * time.Millisecond

var dialBackoff = backoff.Config{BaseDelay: poll, Multiplier: 1.5, MaxDelay: 10 * poll}

// process is a child that may be waited for by many.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it is gone
}

// startProcess starts cmd in a session of its own: an interrupt from the
// terminal is for the test, which then stops the bed in order.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // a containerd that is killed does not exit with 0
	}()
	return p, nil
}

func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.exited
	return nil
}

// terminate asks the process to end, and kills it if it does not in time.
func (p *process) terminate(timeout time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(timeout):
		return errors.Join(fmt.Errorf("containerd (pid %d) did not end within %v of SIGTERM and was killed", p.cmd.Process.Pid, timeout), p.kill())
	}
}

// startContainerd starts containerd and returns when its CRI is ready.
func (b *Bed) startContainerd(ctx context.Context) error {
	log, err := os.OpenFile(b.Log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(b.tools.containerd, "--config", b.configPath())
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, log, log
	cmd.Env = append(containerdEnv(os.Environ()),
		"PATH="+b.tools.path,
		marker(b.dir),
		"KATA_STANDIN_RECORD="+b.recordPath(),
		"KATA_STANDIN_RUNC="+b.tools.runc,
		"KATA_STANDIN_RUNC_ROOT="+b.RuncRoot(),
	)
	cmd.Env = append(cmd.Env, b.opts.Env...)
	if b.containerd, err = startProcess(cmd); err != nil {
		return err
	}
	return b.waitReady(ctx)
}

// containerdEnv drops from an environment what would change containerd or its
// shims: a service manager's sockets, tracing, another containerd's address.
func containerdEnv(env []string) []string {
	var kept []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "OTEL_"), strings.HasPrefix(name, "CONTAINERD_"), name == "NOTIFY_SOCKET", name == "LISTEN_FDS", name == "LISTEN_PID", name == "PATH":
		default:
			kept = append(kept, kv)
		}
	}
	return kept
}

// waitReady waits until the runtime is ready. The network never is in a bed
// without CNI, and nobody needs it.
func (b *Bed) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	containerd := b.containerd
	go func() {
		select {
		case <-containerd.exited:
			cancel(fmt.Errorf("containerd ended: %v", containerd.cmd.ProcessState))
		case <-ctx.Done():
		}
	}()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var why string
	for {
		status, err := b.runtime.Status(ctx, &cri.StatusRequest{}, grpc.WaitForReady(true))
		if err != nil {
			why = err.Error()
		}
		for _, c := range status.GetStatus().GetConditions() {
			if c.Type != cri.RuntimeReady {
				continue
			}
			if c.Status {
				return nil
			}
			why = c.Reason + ": " + c.Message
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd's CRI: %w; it last said: %s", context.Cause(ctx), why)
		case <-tick.C:
		}
	}
}

// KillContainerd kills containerd with SIGKILL. Pods and shims live on.
func (b *Bed) KillContainerd() error {
	if err := b.containerd.kill(); err != nil {
		return fmt.Errorf("kill containerd: %w", err)
	}
	return nil
}

// RestartContainerd stops containerd if it runs, starts it, and returns when
// its CRI is ready. Pods and shims live on.
func (b *Bed) RestartContainerd(ctx context.Context) error {
	if err := b.containerd.terminate(10 * time.Second); err != nil {
		return fmt.Errorf("restart containerd: %w", err)
	}
	if err := b.startContainerd(ctx); err != nil {
		return fmt.Errorf("restart containerd: %w", err)
	}
	return nil
}
