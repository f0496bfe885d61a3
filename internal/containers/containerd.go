package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"sync/atomic"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// sandboxMetadata is the extension in which the CRI plugin keeps what it knows
// of a sandbox, the runtime handler among it.
const sandboxMetadata = "io.cri-containerd.sandbox.metadata"

// Client reads from one containerd, over one connection.
type Client struct {
	address, namespace string

	conn    *grpc.ClientConn
	service api.ContainersClient
	refused atomic.Pointer[error] // why the socket could not be reached
}

// NewClient returns a client of the containerd at a unix socket, for one of
// containerd's own namespaces ("k8s.io"). It connects when it is first used.
func NewClient(address, namespace string) (*Client, error) {
	if !identifier.MatchString(namespace) {
		return nil, fmt.Errorf("containerd namespace %q: expected letters, digits and dots, for example k8s.io", namespace)
	}
	c := &Client{address: address, namespace: namespace}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
		if err != nil {
			cause := err
			if op := (*net.OpError)(nil); errors.As(err, &op) {
				cause = op.Err // the address is said anyway
			}
			c.refused.Store(&cause)
		}
		return conn, err
	}
	var err error
	c.conn, err = grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	c.service = api.NewContainersClient(c.conn)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// All streams the containers in one call: one reply with all of them would be
// more than gRPC takes. It stops after the first error, which is an *Error.
func (c *Client) All(ctx context.Context) iter.Seq2[Container, error] {
	return func(yield func(Container, error) bool) {
		ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, c.namespace))
		defer cancel()
		stream, err := c.service.ListStream(ctx, &api.ListContainersRequest{})
		for err == nil {
			var m *api.ListContainerMessage
			if m, err = stream.Recv(); err == nil && !yield(fromRecord(m.GetContainer()), nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(Container{}, c.explain(err))
		}
	}
}

// Error tells that containerd could not be asked.
type Error struct {
	Address string
	Err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("list the containers of containerd at %s: %v: check that it runs there (--containerd names another socket) and that you may use it (root)", e.Address, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// explain says why the containers could not be listed.
func (c *Client) explain(err error) error { return &Error{c.address, c.cause(err)} }

// cause prefers the reason why the socket could not be reached to what gRPC
// makes of it.
func (c *Client) cause(err error) error {
	s := status.Convert(err)
	if refused := c.refused.Load(); s.Code() == codes.Unavailable && refused != nil {
		return *refused
	}
	if s.Code() == codes.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	return errors.New(s.Message())
}

func fromRecord(r *api.Container) Container {
	c := Container{
		ID: r.GetID(), SandboxID: r.GetSandbox(), Runtime: r.GetRuntime().GetName(), Source: FromContainerd,
		Namespace: r.GetLabels()[labelNamespace], Pod: r.GetLabels()[labelPod], PodUID: r.GetLabels()[labelPodUID],
		Type: Type(r.GetLabels()[labelType]), Spec: r.GetSpec().GetValue(),
	}
	if c.Type == Workload {
		c.Name = r.GetLabels()[labelName]
	}
	if ext, ok := r.GetExtensions()[sandboxMetadata]; ok {
		var m struct {
			Metadata struct{ RuntimeHandler string }
		}
		// What cannot be read is only not shown.
		if json.Unmarshal(ext.GetValue(), &m) == nil {
			c.Handler = m.Metadata.RuntimeHandler
		}
	}
	return c
}
