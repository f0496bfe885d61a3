package oneshot_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/api/oneshot"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
)

// daemon gives every sandbox one annotation.
type daemon struct{ nodev1.NodeService }

func (daemon) PrepareSandbox(context.Context, *nodev1.PrepareSandboxRequest) (*nodev1.PrepareSandboxResponse, error) {
	return &nodev1.PrepareSandboxResponse{Daemon: api.Daemon(), Annotations: map[string]string{"a": "b"}}, nil
}

// A daemon that dies with the request in its hands, and one that is not there
// yet, are waited for.
func TestADaemonThatIsStartedAgainIsWaitedFor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "node.sock")
	dying, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		conn, err := dying.Accept()
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
			dying.Close()
		}
		if err != nil {
			served <- err
			return
		}
		s, err := api.Listen(socket, daemon{})
		if err != nil {
			served <- err
			return
		}
		go func() {
			<-stop
			_ = s.Shutdown(context.Background())
		}()
		served <- s.Serve(context.Background())
	}()
	edits, err := oneshot.PrepareSandbox(socket, 30*time.Second, oneshot.Sandbox{ID: "1", Namespace: "default", Name: "tls"})
	if err != nil || edits.Annotations["a"] != "b" {
		t.Errorf("%v, %v", edits, err)
	}
	close(stop)
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestADaemonThatDoesNotComeIsNotWaitedForLonger(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "node.sock")
	const limit = 100 * time.Millisecond
	expectGivenUp := func(what string) {
		t.Helper()
		start := time.Now()
		_, err := oneshot.PrepareSandbox(socket, limit, oneshot.Sandbox{ID: "1", Namespace: "default", Name: "tls"})
		if err == nil || !strings.Contains(err.Error(), "is kata-qat nri-plugin running") {
			t.Errorf("%s: %v", what, err)
		}
		if took := time.Since(start); took < limit/2 {
			t.Errorf("%s: given up after %s of %s", what, took, limit)
		}
	}
	expectGivenUp("no socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	expectGivenUp("a socket that nobody serves")
}
