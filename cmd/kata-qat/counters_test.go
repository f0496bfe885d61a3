//go:build !entry

package main

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// busy lets a PF get requests until the test ends.
func busy(t *testing.T, root string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		for n := uint64(1); ctx.Err() == nil; n++ {
			if err := (qattest.Tree{Root: root}).SetCounters("0000:6b:00.0", qattest.Counter{Requests: n, Responses: n}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAPodThatUsesItsHardwareIsFound(t *testing.T) {
	root := host(t)
	busy(t, root)
	code, stdout, _ := kataQAT(t, "verify", "--host-root", root, "default/qat-app", "--for", "200ms")
	if code != 0 || !strings.HasPrefix(stdout, "hardware in use: yes (PF 0000:6b:00.0: +") || !strings.Contains(stdout, "the pod's VF 0000:6b:00.1") {
		t.Errorf("exit %d, %q", code, stdout)
	}
	code, stdout, _ = kataQAT(t, "verify", "--host-root", root, "default/qat-app", "--for", "200ms", "-o", "json")
	if code != 0 || !strings.Contains(stdout, `"hardwareInUse": "yes"`) {
		t.Errorf("exit %d, %q", code, stdout)
	}
}

func TestWatchingCountersGoesOnUntilItIsInterrupted(t *testing.T) {
	root := host(t)
	busy(t, root)
	ctx, interrupt := context.WithCancel(t.Context())
	pipe, stdout := io.Pipe()
	code := make(chan int)
	go func() {
		code <- run(ctx, strings.Fields("kata-qat counters --watch --interval 100ms -o json --host-root "+root), stdout, io.Discard)
		stdout.Close()
	}()
	lines := bufio.NewScanner(pipe)
	for i := range 3 {
		if !lines.Scan() || strings.Contains(lines.Text(), `"rate":{"requestsPerSecond":`) != (i > 0) {
			t.Fatalf("sample %d is %q", i, lines.Text())
		}
	}
	interrupt()
	go func() {
		for lines.Scan() { // what was on its way
		}
	}()
	if c := <-code; c != 0 {
		t.Errorf("exit %d, expected 0", c)
	}
}
