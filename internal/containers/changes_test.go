package containers_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	events "github.com/containerd/containerd/api/services/events/v1"
	version "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
)

// eventful is a containerd that sends events.
type eventful struct {
	events.UnimplementedEventsServer
	version.UnimplementedVersionServer
	filters chan []string
	send    chan string // topics; a subscription ends with it
}

func (e *eventful) Subscribe(r *events.SubscribeRequest, stream events.Events_SubscribeServer) error {
	e.filters <- r.GetFilters()
	for topic := range e.send {
		if err := stream.Send(&types.Envelope{Namespace: "k8s.io", Topic: topic}); err != nil {
			return err
		}
	}
	return nil
}

func (e *eventful) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: "v2.4.2"}, nil
}

func serveEvents(t *testing.T, root string) *eventful {
	t.Helper()
	e := &eventful{filters: make(chan []string, 1), send: make(chan string)}
	node := containerstest.NodeAt(root)
	socket := filepath.Join(root, node.Address)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	events.RegisterEventsServer(s, e)
	version.RegisterVersionServer(s, e)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return e
}

func client(t *testing.T, root string) *containers.Client {
	t.Helper()
	c, err := containerstest.NodeAt(root).Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestChangesOfContainersAreTold(t *testing.T) {
	root := containerstest.Root(t)
	e := serveEvents(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	changes := client(t, root).Changes(ctx)
	<-changes // it is subscribed, and nobody knows what was before
	if filters := strings.Join(<-e.filters, " "); !strings.Contains(filters, `namespace=="k8s.io",topic=="/tasks/exit"`) {
		t.Errorf("filters %s", filters)
	}
	for range 3 {
		e.send <- "/tasks/start"
		<-changes
	}
	// When containerd ends the stream, it is asked for another.
	close(e.send)
	<-changes
	<-e.filters
	cancel()
	for range changes {
	}
}

func TestContainerdTellsItsVersion(t *testing.T) {
	root := containerstest.Root(t)
	if _, err := client(t, root).Version(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("without containerd: %v", err)
	}
	serveEvents(t, root)
	if v, err := client(t, root).Version(t.Context()); err != nil || v != "2.4.2" {
		t.Errorf("version %q, %v", v, err)
	}
}
