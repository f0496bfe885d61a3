// Package api is the node daemon's service between processes: what the shim and
// the CLI ask, over ttrpc on a socket that only root can use. It knows how to
// reach and to refuse, not what the answers mean.
package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kata-qat/kata-qat/internal/api/oneshot"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/version"
)

// What daemon and clients have in common.
const (
	SocketName = oneshot.SocketName
	Socket     = oneshot.Socket
	Revision   = oneshot.Revision
	oldest     = oneshot.Oldest
)

// Client asks the daemon.
type Client struct {
	nodev1.NodeService
	conn   *ttrpc.Client
	socket string
}

// Dial connects to the daemon. The context bounds the connection only.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach the node daemon at %s: %w: is kata-qat nri-plugin running (systemctl status kata-qat)?", socket, cause(err))
	}
	c := ttrpc.NewClient(conn)
	return &Client{NodeService: nodev1.NewNodeClient(c), conn: c, socket: socket}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Self is what a request of this build carries.
func Self() *nodev1.Client { return &nodev1.Client{Revision: Revision, Version: version.Version} }

// CheckDaemon refuses the answer of a daemon that is too old for this build.
func CheckDaemon(d *nodev1.Daemon) error {
	return oneshot.CheckRevision(uint64(d.GetRevision()), d.GetVersion())
}

// Explain turns an error of a call into one that says what to do.
func (c *Client) Explain(call string, err error, limit time.Duration) error {
	switch st, _ := status.FromError(err); {
	case errors.Is(err, context.DeadlineExceeded) || st.Code() == codes.DeadlineExceeded:
		return fmt.Errorf("%s: the node daemon at %s did not answer within %s: see its log (journalctl -u kata-qat)", call, c.socket, limit)
	case errors.Is(err, ttrpc.ErrClosed):
		return fmt.Errorf("%s: the node daemon at %s closed the connection: it serves root only, and may be restarting; see its log (journalctl -u kata-qat)", call, c.socket)
	case st.Code() == codes.Unimplemented:
		return fmt.Errorf("%s: the node daemon at %s does not know this call: it is of another version than this program (%s); install the same version of both", call, c.socket, version.Version)
	case st.Code() == codes.Unknown || st.Code() == codes.OK:
		return fmt.Errorf("%s: %w", call, err)
	default: // an answer of the daemon: its words say enough
		return errors.New(st.Message())
	}
}

// cause strips what the net package puts before the reason: the socket is
// named already.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
