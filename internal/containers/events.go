package containers

import (
	"context"
	"fmt"
	"time"

	events "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
)

// topics of the events after which another container may hold a device
// (containerd 2.4, core/runtime/events.go and plugins/services/containers).
var topics = []string{"/containers/create", "/containers/update", "/containers/delete", "/tasks/start", "/tasks/exit", "/tasks/delete"}

// Changes sends on the channel whenever a container was created, started, has
// ended or was deleted, and whenever containerd could be reached again, since
// nobody knows what happened meanwhile. It waits for a containerd that is not
// there. Many at once may be sent as one. The channel is closed when the context
// ends.
func (c *Client) Changes(ctx context.Context) <-chan error {
	out := make(chan error, 1)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			c.follow(ctx, out)
			// A containerd that ends a stream at once must not keep us busy.
			const pause = time.Second
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return out
}

// follow tells of events until the stream breaks.
func (c *Client) follow(ctx context.Context, out chan<- error) {
	filters := make([]string, len(topics))
	for i, t := range topics {
		filters[i] = fmt.Sprintf("namespace==%q,topic==%q", c.namespace, t)
	}
	stream, err := events.NewEventsClient(c.conn).Subscribe(ctx, &events.SubscribeRequest{Filters: filters}, grpc.WaitForReady(true))
	for err == nil {
		select {
		case out <- nil:
		default: // one is waiting already, which says enough
		}
		_, err = stream.Recv()
	}
}
