package api_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
)

// daemon answers every call the same way.
type daemon struct {
	nodev1.NodeService
	answer *nodev1.Daemon
	err    error
	hang   bool
}

func (d *daemon) Health(ctx context.Context, _ *nodev1.HealthRequest) (*nodev1.HealthResponse, error) {
	if d.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &nodev1.HealthResponse{Daemon: d.answer, Ready: true}, d.err
}

func serve(t *testing.T, d *daemon) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "node.sock")
	s, err := api.Listen(socket, d)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return socket
}

func health(t *testing.T, socket string, client *nodev1.Client) (*nodev1.HealthResponse, error) {
	t.Helper()
	const limit = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := api.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.Health(ctx, &nodev1.HealthRequest{Client: client})
	if err != nil {
		return nil, c.Explain("ask for its health", err, limit)
	}
	return r, api.CheckDaemon(r.GetDaemon())
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for name, tc := range map[string]struct {
		daemon *daemon
		client *nodev1.Client
		says   string
	}{
		"a client that is too old":  {&daemon{answer: api.Daemon()}, &nodev1.Client{Version: "0.0.1"}, `the client (version "0.0.1") speaks revision 0`},
		"a daemon that is too old":  {&daemon{answer: &nodev1.Daemon{Version: "0.0.1"}}, api.Self(), `the node daemon (version "0.0.1") speaks revision 0`},
		"a daemon that says no":     {&daemon{err: status.Error(codes.FailedPrecondition, "pod a/b: no")}, api.Self(), "pod a/b: no"},
		"a daemon that is too slow": {&daemon{hang: true}, api.Self(), "did not answer within 200ms"},
		"a daemon without the call": {&daemon{err: status.Error(codes.Unimplemented, "x")}, api.Self(), "install the same version of both"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := health(t, serve(t, tc.daemon), tc.client)
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected one line with %q", err, tc.says)
			}
		})
	}
	if _, err := health(t, filepath.Join(t.TempDir(), "node.sock"), api.Self()); err == nil || !strings.Contains(err.Error(), "is kata-qat nri-plugin running") {
		t.Errorf("without a daemon: error %v", err)
	}
}

// Fields that this build does not know, from a newer peer, are no reason to fail.
func TestANewerPeerIsServed(t *testing.T) {
	socket := serve(t, &daemon{answer: &nodev1.Daemon{Revision: 1000, Version: "9.0.0"}})
	r, err := health(t, socket, &nodev1.Client{Revision: 1000, Version: "9.0.0"})
	if err != nil || !r.GetReady() {
		t.Errorf("%v, %v", r, err)
	}
}

func TestOnlyOneDaemonServesASocket(t *testing.T) {
	d := &daemon{answer: api.Daemon()}
	socket := serve(t, d)
	if _, err := api.Listen(socket, d); err == nil || !strings.Contains(err.Error(), "another node daemon serves there") {
		t.Errorf("error %v", err)
	}
	if _, err := health(t, socket, api.Self()); err != nil {
		t.Errorf("the first no longer serves: %v", err)
	}
}

// A socket that a killed daemon left is taken over.
func TestAStaleSocketIsTaken(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "node.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := api.Listen(socket, &daemon{})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, expected 0600", info.Mode(), err)
	}
	if err := s.Shutdown(t.Context()); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
		t.Error(err)
	}
}
