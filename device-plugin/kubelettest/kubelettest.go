// Package kubelettest stands in for the device manager of a kubelet, as far as a
// device plugin can tell it from the real one: real gRPC on real sockets. It
// schedules nothing: tests say what is allocated.
package kubelettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Kubelet does what a plugin can see (Kubernetes 1.37,
// pkg/kubelet/cm/devicemanager): it connects to a plugin before it answers its
// registration, refuses a socket that it has a connection to, and removes all
// sockets when it starts.
type Kubelet struct {
	api.UnimplementedRegistrationServer
	Dir string // for device plugins

	mu        sync.Mutex
	news      chan struct{} // closed and made anew with everything that happens
	server    *grpc.Server
	endpoints map[string]map[string]*endpoint // by resource and socket
	lists     map[string]string               // what was told last of a resource
	registers int
	fail      error
}

type endpoint struct {
	client  api.DevicePluginClient
	conn    *grpc.ClientConn
	options *api.DevicePluginOptions
}

// TB is what is needed of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// New has a directory that need not be there, and does not run yet.
func New(dir string) *Kubelet { return &Kubelet{Dir: dir, news: make(chan struct{})} }

// Start runs it until the test ends, or until it is killed. It may be started
// again then.
func (k *Kubelet) Start(t TB) {
	t.Helper()
	if err := os.MkdirAll(k.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	sockets, _ := filepath.Glob(filepath.Join(k.Dir, "*.sock"))
	for _, s := range sockets {
		os.Remove(s)
	}
	l, err := net.Listen("unix", filepath.Join(k.Dir, "kubelet.sock"))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as when it is killed
	s := grpc.NewServer()
	api.RegisterRegistrationServer(s, k)
	k.mu.Lock()
	k.server, k.endpoints, k.lists = s, make(map[string]map[string]*endpoint), make(map[string]string)
	k.mu.Unlock()
	go s.Serve(l)
	t.Cleanup(k.Kill)
}

// Kill ends it without leave: its socket stays.
func (k *Kubelet) Kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.server.Stop()
	for _, es := range k.endpoints {
		for _, e := range es {
			e.conn.Close()
		}
	}
}

// Fail has every registration fail; nil lets them succeed again.
func (k *Kubelet) Fail(err error) { k.set(func() { k.fail = err }) }

// Registrations is how many there were, refused ones included.
func (k *Kubelet) Registrations() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.registers
}

// AwaitRegistrations waits for there to have been so many.
func (k *Kubelet) AwaitRegistrations(t TB, n int) {
	t.Helper()
	k.await(t, fmt.Sprintf("%d registrations", n), func() bool { return k.registers >= n })
}

func (k *Kubelet) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
	close(k.news)
	k.news = make(chan struct{})
}

// Register connects to the plugin.
func (k *Kubelet) Register(ctx context.Context, r *api.RegisterRequest) (*api.Empty, error) {
	k.mu.Lock()
	fail := k.fail
	k.mu.Unlock()
	k.set(func() { k.registers++ })
	if fail != nil {
		return nil, fail
	}
	socket := filepath.Join(k.Dir, r.Endpoint)
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return net.Dial("unix", socket) }))
	if err != nil {
		return nil, err
	}
	e := &endpoint{client: api.NewDevicePluginClient(conn), conn: conn}
	if e.options, err = e.client.GetDevicePluginOptions(ctx, &api.Empty{}); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.endpoints[r.ResourceName][socket] != nil {
		return nil, fmt.Errorf("device plugin already connected: %s", socket)
	}
	if k.endpoints[r.ResourceName] == nil {
		k.endpoints[r.ResourceName] = make(map[string]*endpoint)
	}
	k.endpoints[r.ResourceName][socket] = e
	go k.watch(r.ResourceName, socket, e)
	return &api.Empty{}, nil
}

func (k *Kubelet) watch(resource, socket string, e *endpoint) {
	stream, err := e.client.ListAndWatch(context.Background(), &api.Empty{})
	for err == nil {
		var list *api.ListAndWatchResponse
		if list, err = stream.Recv(); err == nil {
			k.set(func() { k.lists[resource] = render(list) })
		}
	}
	e.conn.Close()
	k.set(func() {
		delete(k.endpoints[resource], socket)
		if len(k.endpoints[resource]) == 0 {
			delete(k.lists, resource)
		}
	})
}

func render(list *api.ListAndWatchResponse) string {
	var all []string
	for _, d := range list.GetDevices() {
		s := d.ID + "@"
		switch nodes := d.GetTopology().GetNodes(); len(nodes) {
		case 0:
			s += "-"
		case 1:
			s += fmt.Sprint(nodes[0].ID)
		default:
			s += "?"
		}
		if d.Health != api.Healthy {
			s += "!"
		}
		all = append(all, s)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// await waits until it is as it should be.
func (k *Kubelet) await(t TB, what string, is func() bool) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		k.mu.Lock()
		done, news := is(), k.news
		k.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-timeout:
			k.mu.Lock()
			defer k.mu.Unlock()
			t.Fatalf("%s: not in a minute; kubelet knows %q by %v", what, k.lists, k.endpoints)
		}
	}
}

// Expect waits for kubelet to know exactly these devices of a resource, from one
// plugin: "0000:6b:00.1@0" is a healthy one on NUMA node 0, "0000:6b:00.2@-!" an
// unhealthy one on none.
func (k *Kubelet) Expect(t TB, resource, list string) {
	t.Helper()
	k.await(t, fmt.Sprintf("%s is %q", resource, list), func() bool {
		got, known := k.lists[resource]
		return known && got == list && len(k.endpoints[resource]) == 1
	})
}

// Gone waits for kubelet to have no plugin for a resource.
func (k *Kubelet) Gone(t TB, resource string) {
	t.Helper()
	k.await(t, resource+" is gone", func() bool { return len(k.endpoints[resource]) == 0 })
}

func (k *Kubelet) endpoint(t TB, resource string) *endpoint {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.endpoints[resource] {
		return e
	}
	t.Fatalf("no plugin for %s", resource)
	return nil
}

// Options are what a plugin said that it can be asked.
func (k *Kubelet) Options(t TB, resource string) *api.DevicePluginOptions {
	t.Helper()
	return k.endpoint(t, resource).options
}

// Allocate asks the plugin what a container needs to use devices.
func (k *Kubelet) Allocate(t TB, resource string, ids ...string) (*api.ContainerAllocateResponse, error) {
	t.Helper()
	a, err := k.endpoint(t, resource).client.Allocate(t.Context(), &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return nil, err
	}
	if len(a.ContainerResponses) != 1 {
		return nil, errors.New("not one answer")
	}
	return a.ContainerResponses[0], nil
}

// Prefer asks the plugin which devices it would take. The answer is sorted.
func (k *Kubelet) Prefer(t TB, resource string, size int, available, must []string) ([]string, error) {
	t.Helper()
	a, err := k.endpoint(t, resource).client.GetPreferredAllocation(t.Context(), &api.PreferredAllocationRequest{
		ContainerRequests: []*api.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: available, MustIncludeDeviceIDs: must, AllocationSize: int32(size)}},
	})
	if err != nil {
		return nil, err
	}
	ids := a.ContainerResponses[0].DeviceIDs
	slices.Sort(ids)
	return ids, nil
}
