// Package containerstest has containers without a container runtime: a gRPC
// server that answers as containerd's containers service does, and bundles on
// disk. Only tests and demonstrations use it.
package containerstest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	api "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kata-qat/kata-qat/internal/containers"
)

const (
	namespace = "k8s.io"
	state     = "/run/containerd"
	socket    = state + "/containerd.sock"
)

// Server is a containerd that knows some containers.
type Server struct {
	api.UnimplementedContainersServer
	// Connections and Calls count what clients have made.
	Connections, Calls atomic.Int64

	root    string
	records []*api.Container
}

// Serve runs a containerd on the socket below root until the test ends.
func Serve(t testing.TB, root string, records ...*api.Container) *Server {
	t.Helper()
	s := &Server{root: root, records: records}
	path := filepath.Join(root, socket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	api.RegisterContainersServer(g, s)
	go func() { _ = g.Serve(&counting{l, &s.Connections}) }()
	t.Cleanup(g.Stop)
	return s
}

// Node is where the server's containers are.
func (s *Server) Node() containers.Node { return NodeAt(s.root) }

// NodeAt is a node below a root directory, with the usual paths.
func NodeAt(root string) containers.Node {
	return containers.Node{Root: root, Address: socket, Namespace: namespace, State: state}
}

// ListStream is all that kata-qat needs of the service.
func (s *Server) ListStream(_ *api.ListContainersRequest, stream api.Containers_ListStreamServer) error {
	s.Calls.Add(1)
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md["containerd-namespace"]) != 1 || md["containerd-namespace"][0] != namespace {
		return status.Errorf(codes.FailedPrecondition, "namespace %v: expected %s", md["containerd-namespace"], namespace)
	}
	for _, r := range s.records {
		if err := stream.Send(&api.ListContainerMessage{Container: r}); err != nil {
			return err
		}
	}
	return nil
}

type counting struct {
	net.Listener
	n *atomic.Int64
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// Sandbox is containerd's record of a pod sandbox with the handler kata-qat.
func Sandbox(id, podNamespace, pod, spec string) *api.Container {
	// As containerd 2.4 writes it, internal/cri/store/sandbox.
	extension, err := json.Marshal(map[string]any{"Version": "v1", "Metadata": map[string]string{"ID": id, "RuntimeHandler": "kata-qat"}})
	if err != nil {
		panic(err)
	}
	r := record(id, id, "sandbox", podNamespace, pod, spec)
	r.Extensions = map[string]*anypb.Any{"io.cri-containerd.sandbox.metadata": {
		TypeUrl: "github.com/containerd/cri/pkg/store/sandbox/Metadata", Value: extension,
	}}
	return r
}

// Container is containerd's record of a container of a pod.
func Container(id, sandbox, podNamespace, pod, name, spec string) *api.Container {
	r := record(id, sandbox, "container", podNamespace, pod, spec)
	r.Labels["io.kubernetes.container.name"] = name
	return r
}

func record(id, sandbox, kind, podNamespace, pod, spec string) *api.Container {
	return &api.Container{
		ID: id, Sandbox: sandbox,
		Runtime: &api.Container_Runtime{Name: "io.containerd.kata-qat.v2"},
		Labels: map[string]string{
			"io.cri-containerd.kind": kind, "io.kubernetes.pod.namespace": podNamespace,
			"io.kubernetes.pod.name": pod, "io.kubernetes.pod.uid": "uid-of-" + pod,
		},
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(spec)},
	}
}

// WriteBundle writes a file into the bundle of a container, which it makes if
// there is none, and returns the bundle's directory.
func WriteBundle(t testing.TB, root, id, file, content string) string {
	t.Helper()
	dir := filepath.Join(root, state, "io.containerd.runtime.v2.task", namespace, id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if file == "" {
		return dir
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ID makes a whole container id of its beginning.
func ID(prefix string) string { return fmt.Sprintf("%s%0*d", prefix, 64-len(prefix), 0) }

// Root is a directory for a root, whose path is short enough for a socket.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kata-qat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
