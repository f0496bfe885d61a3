package deviceplugin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// socketPrefix begins the names of our sockets in kubelet's directory.
const socketPrefix = "kata-qat-"

// server serves one resource on one socket. It is started for one registration
// and stopped when that has come to nothing: kubelet refuses a socket that it
// believes it knows, and then forgets neither (Kubernetes 1.37,
// pkg/kubelet/cm/devicemanager, PluginConnected and server.connectClient), so
// every registration has a socket of its own.
type server struct {
	api.UnimplementedDevicePluginServer
	plugin  *Plugin
	name    string // of the resource, without domain
	socket  string
	kubelet identity // with which it is registered
	since   time.Time
	grpc    *grpc.Server
	streams atomic.Int32 // of ListAndWatch
	lost    atomic.Bool  // kubelet had a stream, and it has ended
}

// serve starts a server.
func (p *Plugin) serve(name string) (*server, error) {
	unique := make([]byte, 4)
	_, _ = rand.Read(unique) // it never fails
	s := &server{plugin: p, name: name, socket: filepath.Join(p.o.Dir, socketPrefix+name+"-"+hex.EncodeToString(unique)+".sock"), grpc: grpc.NewServer()}
	l, err := net.Listen("unix", s.socket)
	if errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("serve %s: %w: a unit of systemd may write only where a directory was when it was started: restart kata-qat", p.full(name), err)
	}
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", p.full(name), err)
	}
	if err := os.Chmod(s.socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("serve %s: %w", p.full(name), err), l.Close())
	}
	api.RegisterDevicePluginServer(s.grpc, s)
	go func() { _ = s.grpc.Serve(l) }() // it ends with stop, which closes l
	return s, nil
}

// stop ends kubelet's connection and removes the socket.
func (s *server) stop() {
	s.grpc.Stop()
	_ = os.Remove(s.socket) // the listener has, unless kubelet did
}

// there tells whether kubelet's way to the server is open: kubelet removes all
// sockets of the directory when it starts.
func (s *server) there() bool {
	_, err := os.Lstat(s.socket)
	return err == nil && !s.lost.Load()
}

// register tells kubelet of the server. kubelet connects to it before it answers.
func (s *server) register(ctx context.Context, kubelet string) error {
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", kubelet)
		}),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return err
	}
	defer conn.Close()
	options, _ := s.GetDevicePluginOptions(ctx, nil)
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: filepath.Base(s.socket), ResourceName: s.plugin.full(s.name), Options: options,
	})
	if err != nil {
		return errors.New(status.Convert(err).Message())
	}
	return nil
}

// GetDevicePluginOptions tells kubelet what it can ask.
func (s *server) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{GetPreferredAllocationAvailable: true}, nil
}

// ListAndWatch sends the devices, and again whenever they change.
func (s *server) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	s.streams.Add(1)
	defer func() {
		if s.streams.Add(-1) == 0 {
			s.lost.Store(true)
			s.plugin.poke()
		}
	}()
	var sent *api.ListAndWatchResponse
	for {
		now := s.plugin.now()
		list := &api.ListAndWatchResponse{}
		if r := now.resources[s.name]; r != nil {
			list = r.list
		}
		if sent == nil || !proto.Equal(sent, list) {
			if err := stream.Send(list); err != nil {
				return err
			}
			sent = list
		}
		select {
		case <-now.replaced:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// GetPreferredAllocation chooses devices by the policy.
func (s *server) GetPreferredAllocation(_ context.Context, q *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	now := s.plugin.now()
	answer := &api.PreferredAllocationResponse{}
	for _, c := range q.GetContainerRequests() {
		ids, err := now.prefer(s.plugin.o.Policy, s.name, c.GetAvailableDeviceIDs(), c.GetMustIncludeDeviceIDs(), int(c.GetAllocationSize()), s.plugin.o.Held)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerPreferredAllocationResponse{DeviceIDs: ids})
	}
	return answer, nil
}

// Allocate says what a container needs to use the devices that kubelet gives it.
// kubelet does not create a pod for which it fails.
func (s *server) Allocate(_ context.Context, q *api.AllocateRequest) (*api.AllocateResponse, error) {
	now := s.plugin.now()
	answer := &api.AllocateResponse{}
	for _, c := range q.GetContainerRequests() {
		a, err := now.allocate(s.name, c.GetDevicesIds())
		if err != nil {
			s.plugin.log.WithError(err).WithField("devices", c.GetDevicesIds()).Error("allocation refused")
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		answer.ContainerResponses = append(answer.ContainerResponses, a)
	}
	return answer, nil
}
