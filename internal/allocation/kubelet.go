package allocation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/refusal"
)

const (
	// maxAnswer is kubelet's own bound for an answer (Kubernetes,
	// pkg/kubelet/apis/podresources, DefaultMaxMsgSize).
	maxAnswer = 16 << 20
	// retryPause is the time in which kubelet's limit of 100 requests a second
	// frees a slot (Kubernetes, DefaultQPS of podresources).
	retryPause = 10 * time.Millisecond
)

// kubelet is the PodResources service of a node's kubelet.
type kubelet struct {
	socket  string
	domain  string
	timeout time.Duration
	conn    *grpc.ClientConn
	api     podresources.PodResourcesListerClient
	noGet   atomic.Bool // it has turned out that this kubelet has no Get
}

// granted is what kubelet says that one container holds.
type granted struct {
	container string
	devices   []named
}

// query is a question to kubelet that is under way or answered. The fields but
// done may be read once done is closed.
type query struct {
	done    chan struct{}
	known   bool // kubelet knows the pod, and granted is what it says
	granted []granted
	err     error
}

// useless tells whether the query is answered, but not for good. That kubelet does not know the pod is such an answer: a
// kubelet that has just started does not know its pods yet.
func (q *query) useless() bool {
	select {
	case <-q.done:
		return !q.known
	default:
		return false
	}
}

// dialKubelet makes the client. It connects when it is first asked.
func dialKubelet(socket, domain string, timeout time.Duration) (*kubelet, error) {
	retry := backoff.Config{BaseDelay: retryPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: timeout / 8}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: timeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, fmt.Errorf("make a client for kubelet's socket %s: %w", socket, err)
	}
	return &kubelet{socket: socket, domain: domain, timeout: timeout, conn: conn, api: podresources.NewPodResourcesListerClient(conn)}, nil
}

// start asks what a pod holds, and returns at once.
func (k *kubelet) start(pod Pod) *query {
	q := &query{done: make(chan struct{})}
	go func() {
		defer close(q.done)
		ctx, cancel := context.WithTimeout(context.Background(), k.timeout)
		defer cancel()
		q.granted, q.known, q.err = k.ask(ctx, &pod)
	}()
	return q
}

// ask asks what a pod holds. A pod that kubelet does not know, such as one that
// crictl made, is no error.
func (k *kubelet) ask(ctx context.Context, pod *Pod) (all []granted, known bool, err error) {
	answer, err := k.fetch(ctx, pod)
	if err != nil {
		return nil, false, refusal.Because(refusal.Kubelet, fmt.Errorf("pod %s: ask kubelet at %s for its devices: %w", pod.String(), k.socket, err))
	}
	if answer == nil {
		return nil, false, nil
	}
	for _, c := range answer.GetContainers() {
		devices, err := k.devices(c)
		if err != nil {
			return nil, false, inContainer(pod, c.GetName(), refusal.Because(refusal.Kubelet, fmt.Errorf("kubelet at %s: %w", k.socket, err)))
		}
		if len(devices) > 0 {
			all = append(all, granted{c.GetName(), devices})
		}
	}
	return all, true, nil
}

// fetch asks in the way that this kubelet understands. It returns nil for a pod
// that kubelet does not know.
func (k *kubelet) fetch(ctx context.Context, pod *Pod) (*podresources.PodResources, error) {
	if !k.noGet.Load() {
		answer, err := call(ctx, func() (*podresources.GetPodResourcesResponse, error) {
			return k.api.Get(ctx, &podresources.GetPodResourcesRequest{PodName: pod.Name, PodNamespace: pod.Namespace})
		})
		switch {
		case err == nil && isPod(answer.GetPodResources(), pod):
			return answer.GetPodResources(), nil
		case err == nil:
			return nil, fmt.Errorf("it answered for another pod, %s/%s: upgrade kubelet", answer.GetPodResources().GetNamespace(), answer.GetPodResources().GetName())
		case podUnknown(err):
			return nil, nil
		case !getMissing(err):
			return nil, k.advise(err)
		}
		k.noGet.Store(true)
	}
	answer, err := call(ctx, func() (*podresources.ListPodResourcesResponse, error) {
		return k.api.List(ctx, &podresources.ListPodResourcesRequest{})
	})
	if err != nil {
		return nil, k.advise(err)
	}
	pods := slices.DeleteFunc(answer.GetPodResources(), func(p *podresources.PodResources) bool { return !isPod(p, pod) })
	switch len(pods) {
	case 0:
		return nil, nil
	case 1:
		return pods[0], nil
	}
	// A pod that was deleted by force can be there beside its successor, and
	// the answer has no UIDs to tell which is which.
	return nil, fmt.Errorf("it lists %d pods of that name: wait until the former one is gone", len(pods))
}

// claimed lists the VFs of all pods. What names no VF is left out here: it is told
// when the pod's containers come.
func (k *kubelet) claimed(ctx context.Context) (map[qat.Address]bool, error) {
	answer, err := call(ctx, func() (*podresources.ListPodResourcesResponse, error) {
		return k.api.List(ctx, &podresources.ListPodResourcesRequest{})
	})
	if err != nil {
		return nil, fmt.Errorf("list the VFs of all pods: ask kubelet at %s: %w", k.socket, k.advise(err))
	}
	all := make(map[qat.Address]bool)
	for _, p := range answer.GetPodResources() {
		for _, c := range p.GetContainers() {
			devices, _ := k.devices(c)
			for _, d := range devices {
				all[d.address] = true
			}
		}
	}
	return all, nil
}

// devices picks the QAT VFs out of what kubelet says of a container. A device
// of a QAT resource that names no VF is an error, one of another resource is
// nobody's business here.
func (k *kubelet) devices(c *podresources.ContainerResources) ([]named, error) {
	var all []named
	add := func(n named) {
		if !slices.ContainsFunc(all, func(o named) bool { return o.address == n.address }) {
			all = append(all, n)
		}
	}
	for _, d := range c.GetDevices() {
		if !strings.HasPrefix(d.GetResourceName(), k.domain+"/") {
			continue
		}
		for _, id := range d.GetDeviceIds() {
			n, err := fromDeviceID(d.GetResourceName(), id)
			if err != nil {
				return nil, err
			}
			add(n)
		}
	}
	for _, d := range c.GetDynamicResources() {
		for _, claim := range d.GetClaimResources() {
			found, err := k.claim(claim)
			if err != nil {
				return nil, fmt.Errorf("claim %s: %w", d.GetClaimName(), err)
			}
			for _, n := range found {
				add(n)
			}
		}
	}
	// kubelet's order is that of its maps.
	slices.SortStableFunc(all, func(a, b named) int { return a.address.Compare(b.address) })
	return all, nil
}

// claim picks the QAT VFs out of a device that a DRA driver allocated. A driver
// of our domain must name a VF, in CDI or in its own name of the device.
func (k *kubelet) claim(c *podresources.ClaimResource) ([]named, error) {
	var all []named
	for _, d := range c.GetCdiDevices() {
		n, ok, err := fromCDI(k.domain, d.GetName())
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, n)
		}
	}
	if len(all) == 0 && c.GetDriverName() == k.domain {
		n, err := fromIntelName(c.GetDeviceName())
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// call repeats a request, until its context ends, that kubelet was too busy or
// too dead to answer: it may only be starting again.
func call[T any](ctx context.Context, request func() (T, error)) (T, error) {
	for {
		answer, err := request()
		if err == nil || !passing(err) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(retryPause):
		}
	}
}

func passing(err error) bool {
	switch s := status.Convert(err); s.Code() {
	case codes.Unavailable:
		return true
	case codes.ResourceExhausted:
		// Kubernetes, pkg/kubelet/apis/grpc, ErrorLimitExceeded. A message
		// that is too large has the same code and stays too large.
		return strings.Contains(s.Message(), "rate limit")
	}
	return false
}

// getMissing tells whether kubelet has no Get: it is older than 1.27, or the
// feature gate KubeletPodResourcesGet is off, for which it has words and no code.
func getMissing(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.Unimplemented || strings.Contains(s.Message(), "Get method disabled")
}

// podUnknown tells whether kubelet does not know the pod, for which it has
// words and no code.
func podUnknown(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.NotFound ||
		s.Code() == codes.Unknown && strings.HasPrefix(s.Message(), "pod ") && strings.HasSuffix(s.Message(), " not found")
}

// advise makes of an error of the connection what a person can act on.
func (k *kubelet) advise(err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%s: check that kubelet runs, or leave its socket out of the configuration of a node without one", s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("no answer within %s: check kubelet's load, or give it more time in the configuration", k.timeout)
	default:
		return errors.New(s.Message())
	}
}

func isPod(p *podresources.PodResources, pod *Pod) bool {
	return p.GetName() == pod.Name && p.GetNamespace() == pod.Namespace
}
