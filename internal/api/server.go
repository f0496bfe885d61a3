package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/version"
)

// Server serves the API on one socket.
type Server struct {
	rpc      *ttrpc.Server
	listener net.Listener
	socket   string
}

// Listen takes the socket, which only root can connect to: by its mode, and
// because the peer's credentials are checked on every connection. A socket that
// somebody serves already is an error; one that a dead daemon left is taken.
func Listen(socket string, service nodev1.NodeService) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the API's socket: %w", err)
	}
	if conn, err := net.Dial("unix", socket); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on %s: another node daemon serves there: stop it first (systemctl stop kata-qat)", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the API's former socket: %w", err)
	}
	l, err := listenPrivate(socket)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, cause(err))
	}
	rpc, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireUidGid(os.Geteuid(), os.Getegid())), ttrpc.WithUnaryServerInterceptor(checkClient))
	if err != nil {
		l.Close()
		return nil, err
	}
	nodev1.RegisterNodeService(rpc, service)
	return &Server{rpc: rpc, listener: l, socket: socket}, nil
}

// listenPrivate binds the socket under another name and gives it its mode
// before anybody can find it.
func listenPrivate(socket string) (net.Listener, error) {
	hidden := socket + ".new"
	if err := os.Remove(hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// The listener would remove the name that it was bound to.
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, socket)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Serve answers until Close.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.rpc.Serve(ctx, s.listener); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown ends the service: calls in hand are finished until the context
// ends, and the socket is removed.
func (s *Server) Shutdown(ctx context.Context) error {
	return errors.Join(os.Remove(s.socket), s.rpc.Shutdown(ctx))
}

// checkClient refuses a client that is too old for this build.
func checkClient(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	return method(ctx, func(request any) error {
		if err := unmarshal(request); err != nil {
			return err
		}
		c := request.(interface{ GetClient() *nodev1.Client }).GetClient()
		if c.GetRevision() < oldest {
			return status.Errorf(codes.FailedPrecondition, "the client (version %q) speaks revision %d of the node daemon's API, the daemon (%s) needs %d: install the same version of both",
				c.GetVersion(), c.GetRevision(), version.Version, oldest)
		}
		return nil
	})
}

// Daemon is what a response of this build carries.
func Daemon() *nodev1.Daemon { return &nodev1.Daemon{Revision: Revision, Version: version.Version} }
