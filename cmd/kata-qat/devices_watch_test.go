//go:build !entry

package main

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// announce lets the test be the kernel that announces changes of devices.
func announce(t *testing.T) chan<- error {
	t.Helper()
	events, was := make(chan error), kernelEvents
	kernelEvents = func(context.Context) (<-chan error, error) { return events, nil }
	t.Cleanup(func() { kernelEvents = was })
	return events
}

func TestWatchingGoesOnUntilItIsInterrupted(t *testing.T) {
	root := host(t)
	events := announce(t)
	ctx, interrupt := context.WithCancel(t.Context())
	pipe, stdout := io.Pipe()
	code := make(chan int)
	go func() {
		code <- run(ctx, strings.Fields("kata-qat devices --watch -o json --host-root "+root), stdout, io.Discard)
		stdout.Close()
	}()
	lines := bufio.NewScanner(pipe)
	for range 3 { // a PF and its VFs
		if !lines.Scan() || !strings.Contains(lines.Text(), `"event":"present"`) {
			t.Fatalf("line %q, expected what is there", lines.Text())
		}
	}
	if err := (qattest.Tree{Root: root}).Rebind("0000:6b:00.1", "4xxxvf"); err != nil {
		t.Fatal(err)
	}
	events <- nil
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), `{"event":"changed","address":"0000:6b:00.1","before":{"vf":{`) {
		t.Fatalf("line %q, expected a change", lines.Text())
	}
	interrupt()
	if c := <-code; c != 0 {
		t.Errorf("exit %d, expected 0", c)
	}
}

func TestWatchingThatIsNotPossibleIsSaid(t *testing.T) {
	root := host(t)
	was := kernelEvents
	t.Cleanup(func() { kernelEvents = was })
	kernelEvents = func(context.Context) (<-chan error, error) { return nil, devices.ErrNoEvents }
	for args, want := range map[string]struct {
		code   int
		stderr string
	}{
		"devices --watch":         {1, "kata-qat: watch the devices: the kernel sends events of devices only to network namespaces"},
		"devices --watch -o yaml": {2, "--watch: expected -o table, or -o json"},
	} {
		code, stdout, stderr := kataQAT(t, append(strings.Fields(args), "--host-root", root)...)
		if code != want.code || stdout != "" || !strings.Contains(stderr, want.stderr) {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}
