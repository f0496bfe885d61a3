package allocation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// kubeletServer answers for PodResources v1 over a socket as kubelet does.
type kubeletServer struct {
	podresources.UnimplementedPodResourcesListerServer
	socket string

	mu     sync.Mutex
	server *grpc.Server
	pods   []*podresources.PodResources
	getErr error                      // what Get fails with
	answer *podresources.PodResources // what Get answers with, whatever it is asked
	limits int                        // how many requests are turned away before one is answered
	gate   chan struct{}              // answers wait for it to be closed
	asked  chan struct{}              // gets a value for each request that came
	gets   int
	lists  int
}

func startKubelet(t testing.TB) *kubeletServer {
	t.Helper()
	k := &kubeletServer{socket: filepath.Join(t.TempDir(), "kubelet.sock"), asked: make(chan struct{}, 1000)}
	k.start(t)
	t.Cleanup(func() { k.stop() })
	return k
}

func (k *kubeletServer) start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("unix", k.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(s, k)
	k.mu.Lock()
	k.server = s
	k.mu.Unlock()
	go s.Serve(l)
}

// stop kills the server: requests under way fail, and the socket is gone.
func (k *kubeletServer) stop() {
	k.mu.Lock()
	s := k.server
	k.mu.Unlock()
	s.Stop()
}

// set changes how it answers.
func (k *kubeletServer) set(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

// container finds or adds a container of the pod "namespace/name".
func (k *kubeletServer) container(pod, name string) *podresources.ContainerResources {
	namespace, podName, _ := strings.Cut(pod, "/")
	at := slices.IndexFunc(k.pods, func(p *podresources.PodResources) bool { return p.Name == podName && p.Namespace == namespace })
	if at < 0 {
		at = len(k.pods)
		k.pods = append(k.pods, &podresources.PodResources{Name: podName, Namespace: namespace})
	}
	p := k.pods[at]
	for _, c := range p.Containers {
		if c.Name == name {
			return c
		}
	}
	c := &podresources.ContainerResources{Name: name}
	p.Containers = append(p.Containers, c)
	return c
}

// grant makes kubelet say that a container holds devices of a resource.
func (k *kubeletServer) grant(pod, name, resource string, ids ...string) {
	k.set(func() {
		c := k.container(pod, name)
		for _, id := range ids {
			// One entry for each device, as kubelet has it when they have a
			// topology.
			c.Devices = append(c.Devices, &podresources.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}})
		}
	})
}

// claim makes kubelet say that a container holds CDI devices of a DRA claim.
func (k *kubeletServer) claim(pod, name, driver, device string, cdi ...string) {
	k.set(func() {
		r := &podresources.ClaimResource{DriverName: driver, PoolName: "node", DeviceName: device}
		for _, n := range cdi {
			r.CdiDevices = append(r.CdiDevices, &podresources.CDIDevice{Name: n})
		}
		c := k.container(pod, name)
		c.DynamicResources = append(c.DynamicResources, &podresources.DynamicResource{ClaimName: "accel", ClaimNamespace: "default", ClaimResources: []*podresources.ClaimResource{r}})
	})
}

// enter counts a request, waits for the gate and applies the rate limit.
func (k *kubeletServer) enter(ctx context.Context, count *int) error {
	k.mu.Lock()
	*count++
	gate := k.gate
	limited := k.limits > 0
	k.limits--
	k.mu.Unlock()
	k.asked <- struct{}{}
	if limited {
		return status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (k *kubeletServer) Get(ctx context.Context, q *podresources.GetPodResourcesRequest) (*podresources.GetPodResourcesResponse, error) {
	if err := k.enter(ctx, &k.gets); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.getErr != nil {
		return nil, k.getErr
	}
	if k.answer != nil {
		return &podresources.GetPodResourcesResponse{PodResources: k.answer}, nil
	}
	for _, p := range k.pods {
		if p.Name == q.PodName && p.Namespace == q.PodNamespace {
			return &podresources.GetPodResourcesResponse{PodResources: p}, nil
		}
	}
	return nil, fmt.Errorf("pod %s in namespace %s not found", q.PodName, q.PodNamespace)
}

func (k *kubeletServer) List(ctx context.Context, q *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	if err := k.enter(ctx, &k.lists); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return &podresources.ListPodResourcesResponse{PodResources: slices.Clone(k.pods)}, nil
}

func (k *kubeletServer) expectRequests(t *testing.T, gets, lists int) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gets != gets || k.lists != lists {
		t.Errorf("kubelet had %d Get and %d List; expected %d and %d", k.gets, k.lists, gets, lists)
	}
}

func TestKubeletTellsWhatAContainerHolds(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4), compression("0000:70:00.0", 4))
	k := startKubelet(t)
	p := pod("web")
	k.grant("default/web", "app", "example.com/nic", "eth0")
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.2", "0000:6b:00.1", "0000:6b:00.1")
	k.claim("default/web", "app", "qat.intel.com", "qatvf-0000-70-00-1", "intel.com/qat=qatvf-0000-70-00-1", "intel.com/qat=qatvf-vfio", "nvidia.com/gpu=0")
	k.claim("default/web", "side", "other", "x", "qat.intel.com/dc=0000:70:00.2")
	k.claim("default/web", "names", "qat.intel.com", "qatvf-0000-70-00-3")
	k.grant("default/other", "app", "qat.intel.com/cy", "0000:6b:00.3")

	alone := resolver(t, Options{KubeletSocket: k.socket}, table)
	expect(t, assign(t, alone, p, container(p, "side")), SourcePodResources, "dc=0000:70:00.2#0")
	expect(t, assign(t, alone, p, container(p, "app")), SourcePodResources, "cy=0000:6b:00.1#1 cy=0000:6b:00.2#2 dc=0000:70:00.1#3")

	// The sandbox has them in the order of the pod.
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	all, err := r.ForPod(background, p)
	if err != nil || len(all) != 3 {
		t.Fatalf("ForPod: %v, %v", all, err)
	}
	expect(t, all[0], SourcePodResources, "cy=0000:6b:00.1#0 cy=0000:6b:00.2#1 dc=0000:70:00.1#2")
	expect(t, all[1], SourcePodResources, "dc=0000:70:00.2#3")
	expect(t, all[2], SourcePodResources, "dc=0000:70:00.3#4")
	// And then the containers, in whatever order they come and whoever says so.
	expect(t, assign(t, r, p, container(p, "names").with(table, "0000:70:00.3")), SourceSpec, "dc=0000:70:00.3#4")
	expect(t, assign(t, r, p, container(p, "side")), SourcePodResources, "dc=0000:70:00.2#3")
	expect(t, assign(t, r, p, container(p, "none")), "", "")
}

func TestWhatIsInTheSpecIsNotAskedOfKubelet(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	k := startKubelet(t)
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.4")), SourceSpec, "cy=0000:6b:00.4#0")
	k.expectRequests(t, 0, 0)
}

func TestANameThatIsNoVFIsAnError(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 1))
	k := startKubelet(t)
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	k.grant("default/short", "app", "qat.intel.com/cy", "6b:00.1")
	k.grant("default/gone", "app", "qat.intel.com/cy", "0000:6b:00.7")
	k.grant("default/pf", "app", "qat.intel.com/cy", "0000:6b:00.0")
	k.claim("default/dra", "app", "qat.intel.com", "qatvf-0000-70-00-1", "intel.com/qat=what")
	k.claim("default/nothing", "app", "qat.intel.com", "mystery")
	for name, words := range map[string][]string{
		"short":   {`"6b:00.1"`, "qat.intel.com/cy", "expected domain:bus:device.function", k.socket},
		"gone":    {"0000:6b:00.7", "no such QAT VF", "restart the device plugin"},
		"pf":      {"0000:6b:00.0", "no such QAT VF"},
		"dra":     {"claim accel", `"what"`, "intel.com/qat"},
		"nothing": {"claim accel", `"mystery"`},
	} {
		_, err := r.Assign(background, pod(name), container(pod(name), "app"))
		refused(t, err, append(words, "pod default/"+name, "container app")...)
	}
}

func TestAKubeletWithoutGetIsAskedForItsList(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	for name, without := range map[string]error{
		"too old":      status.Error(codes.Unimplemented, "unknown method Get for service v1.PodResourcesLister"),
		"switched off": errors.New("PodResources API Get method disabled"),
	} {
		t.Run(name, func(t *testing.T) {
			k := startKubelet(t)
			k.getErr = without
			k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.1")
			k.grant("default/b", "app", "qat.intel.com/cy", "0000:6b:00.2")
			r := resolver(t, Options{KubeletSocket: k.socket}, table)
			expect(t, assign(t, r, pod("a"), container(pod("a"), "app")), SourcePodResources, "cy=0000:6b:00.1#0")
			expect(t, assign(t, r, pod("b"), container(pod("b"), "app")), SourcePodResources, "cy=0000:6b:00.2#0")
			expect(t, assign(t, r, pod("c"), container(pod("c"), "app")), "", "")
			k.expectRequests(t, 1, 3) // it tried Get once
		})
	}
}

func TestAnotherErrorOfGetIsNoReasonToList(t *testing.T) {
	k := startKubelet(t)
	k.getErr = status.Error(codes.PermissionDenied, "go away")
	r := resolver(t, Options{KubeletSocket: k.socket}, nil)
	_, err := r.Assign(background, pod("a"), container(pod("a"), "app"))
	refused(t, err, "pod default/a", k.socket, "go away")
	k.expectRequests(t, 1, 0)
}

func TestAnAnswerForAnotherPodIsNotTaken(t *testing.T) {
	k := startKubelet(t)
	k.answer = &podresources.PodResources{Name: "b", Namespace: "default"}
	r := resolver(t, Options{KubeletSocket: k.socket}, nil)
	_, err := r.Assign(background, pod("a"), container(pod("a"), "app"))
	refused(t, err, "pod default/a", k.socket, "another pod, default/b")
}

func TestABadAnswerIsNotRemembered(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 1))
	k := startKubelet(t)
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	k.grant("default/a", "app", "qat.intel.com/cy", "what")
	_, err := r.Assign(background, pod("a"), container(pod("a"), "app"))
	refused(t, err, `"what"`)
	k.set(func() { k.pods = nil })
	k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.1")
	expect(t, assign(t, r, pod("a"), container(pod("a"), "app")), SourcePodResources, "cy=0000:6b:00.1#0")
}

func TestASandboxThatIsRefusedKeepsNothing(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 1))
	k := startKubelet(t)
	k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.1")
	r := resolver(t, Options{KubeletSocket: k.socket, Standalone: true}, table)
	_, err := r.ForPod(background, asking("a", "side: cy=1"))
	refused(t, err, "pod default/a: container side")
	if all := r.Assignments(); len(all) != 0 {
		t.Errorf("it keeps %v", all)
	}
}

func TestTwoPodsOfOneNameAreNotToldApart(t *testing.T) {
	k := startKubelet(t)
	k.getErr = errors.New("PodResources API Get method disabled")
	k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.1")
	k.set(func() { k.pods = append(k.pods, &podresources.PodResources{Name: "a", Namespace: "default"}) })
	r := resolver(t, Options{KubeletSocket: k.socket}, nil)
	_, err := r.Assign(background, pod("a"), container(pod("a"), "app"))
	refused(t, err, "pod default/a", "2 pods of that name")
}

func TestWarmAsksOnceForAllContainers(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	k := startKubelet(t)
	k.gate = make(chan struct{})
	r := resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: time.Minute}, table)
	p := pod("web")
	for i := range 4 {
		k.grant("default/web", fmt.Sprint("c", i), "qat.intel.com/cy", fmt.Sprintf("0000:6b:00.%d", i+1))
	}
	r.Warm(p) // returns although kubelet does not answer
	<-k.asked
	r.Warm(p)

	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			a, err := r.Assign(background, p, container(p, fmt.Sprint("c", i)))
			if err != nil || len(a.VFs) != 1 || string(a.VFs[0].Device.VF.Address) != fmt.Sprintf("0000:6b:00.%d", i+1) {
				t.Errorf("container %d: %v, %v", i, a, err)
			}
		})
	}
	close(k.gate)
	group.Wait()
	k.stop() // from memory, from now on
	expect(t, assign(t, r, p, container(p, "none")), "", "")
	k.expectRequests(t, 1, 0)
}

func TestTheMemoryGoesWithThePod(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	k := startKubelet(t)
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.1")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	assign(t, r, p, container(p, "app"))
	r.ReleasePod(p.ID)
	k.set(func() { k.pods = nil })
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.2")
	p.ID = "sandbox-2"
	expect(t, assign(t, r, p, container(p, "app")), SourcePodResources, "cy=0000:6b:00.2#0")
	k.expectRequests(t, 2, 0)
}

func TestAnUnknownPodIsAskedForAgain(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	k := startKubelet(t)
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	expect(t, assign(t, r, p, container(p, "app")), "", "") // crictl made it, or kubelet has just started
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.1")
	expect(t, assign(t, r, p, container(p, "app")), SourcePodResources, "cy=0000:6b:00.1#0")
}

func TestASlowKubeletIsAnError(t *testing.T) {
	k := startKubelet(t)
	k.gate = make(chan struct{})
	t.Cleanup(func() { close(k.gate) })
	r := resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: 50 * time.Millisecond}, nil)
	_, err := r.Assign(background, pod("a"), container(pod("a"), "app"))
	refused(t, err, "pod default/a", k.socket, "no answer within 50ms")

	// The caller's own patience counts as well.
	r = resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: time.Minute}, nil)
	ctx, cancel := context.WithCancel(background)
	r.Warm(pod("a"))
	cancel()
	_, err = r.Assign(ctx, pod("a"), container(pod("a"), "app"))
	refused(t, err, "pod default/a", k.socket, "canceled", "check that kubelet runs")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap the context's error", err)
	}
}

func TestWithoutItsKubeletNothingIsGiven(t *testing.T) {
	k := startKubelet(t)
	k.stop()
	table := machine(t, crypto("0000:6b:00.0", 1))
	r := resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: 50 * time.Millisecond, Standalone: true}, table)
	p := asking("a", "app: cy=1")
	r.Warm(p)
	_, err := r.Assign(background, p, container(p, "app"))
	refused(t, err, "pod default/a", k.socket, "check that kubelet runs")
	_, err = r.ForPod(background, p)
	refused(t, err, "pod default/a", k.socket)
}

func TestAKubeletThatStartsAgainIsFoundAgain(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	k := startKubelet(t)
	r := resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: time.Minute}, table)
	for i := range 5 {
		name := fmt.Sprint("p", i)
		k.grant("default/"+name, "app", "qat.intel.com/cy", fmt.Sprintf("0000:6b:00.%d", i+1))
		k.set(func() { k.gate = make(chan struct{}) })
		r.Warm(pod(name))
		<-k.asked // it dies in the middle of the answer
		k.stop()
		k.set(func() { k.gate = nil })
		k.start(t)
		expect(t, assign(t, r, pod(name), container(pod(name), "app")), SourcePodResources, fmt.Sprintf("cy=0000:6b:00.%d#0", i+1))
	}
}

func TestKubeletsRateLimitIsWaitedFor(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 1))
	k := startKubelet(t)
	k.limits = 3
	k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.1")
	r := resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: time.Minute}, table)
	expect(t, assign(t, r, pod("a"), container(pod("a"), "app")), SourcePodResources, "cy=0000:6b:00.1#0")
	k.expectRequests(t, 4, 0)
}

func TestThePoolServesWhatKubeletDoesNot(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	k := startKubelet(t)
	k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.5")
	r := resolver(t, Options{KubeletSocket: k.socket, Standalone: true}, table)
	p := asking("a", "app: cy=2", "side: cy=1")
	all, err := r.ForPod(background, p)
	if err != nil || len(all) != 2 {
		t.Fatalf("ForPod: %v, %v", all, err)
	}
	expect(t, all[0], SourcePodResources, "cy=0000:6b:00.5#0")
	expect(t, all[1], SourcePool, "cy=0000:6b:00.1#1")
}

func TestClaimedIsWhatAnyPodHolds(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	k := startKubelet(t)
	k.grant("default/plain", "app", "qat.intel.com/cy", "0000:6b:00.1", "0000:6b:00.2")
	k.grant("default/plain", "app", "nvidia.com/gpu", "GPU-1")
	k.grant("default/odd", "app", "qat.intel.com/cy", "what")
	k.claim("default/dra", "app", "qat.intel.com", "qatvf-0000-6b-00-3", "intel.com/qat=qatvf-0000-6b-00-3", "intel.com/qat=qatvf-vfio")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	// Of a pod that is being stopped kubelet knows nothing any more.
	assign(t, r, pod("old"), container(pod("old"), "app").with(table, "0000:6b:00.4"))
	claimed, err := r.Claimed(background)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(claimed)), []qat.Address{"0000:6b:00.1", "0000:6b:00.2", "0000:6b:00.3", "0000:6b:00.4"}; !slices.Equal(got, want) {
		t.Errorf("claimed are %v, expected %v", got, want)
	}
	if !r.Held("0000:6b:00.4") || r.Held("0000:6b:00.1") {
		t.Error("held is what the runtime told, and no more")
	}

	k.stop()
	r = resolver(t, Options{KubeletSocket: k.socket, KubeletTimeout: 50 * time.Millisecond}, table)
	_, err = r.Claimed(background)
	refused(t, err, "list the VFs of all pods", k.socket)
	_, err = resolver(t, Options{}, table).Claimed(background)
	refused(t, err, "kubelet is not asked")
}

// warm has kubelet asked, and answer, before the pod's containers come.
func warm(t *testing.T, r *Resolver, p Pod) {
	t.Helper()
	r.Warm(p)
	if _, err := r.ask(background, p); err != nil {
		t.Fatal(err)
	}
}

// kubelet keeps the nodes that a device plugin gave over a boot, after which the
// groups can have other numbers.
func TestANodeThatIsAnotherVFsByNowIsRefused(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	k := startKubelet(t)
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.1", "0000:6b:00.2")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	warm(t, r, p)
	_, err := r.Assign(background, p, container(p, "app").with(table, "0000:6b:00.2", "0000:6b:00.3"))
	refused(t, err, "pod default/web: container app", table.ByAddress("0000:6b:00.3").Node.Path, "that of 0000:6b:00.3", "kubelet gave it 0000:6b:00.1, 0000:6b:00.2", "delete the pod")
	if r.Held("0000:6b:00.2") || r.Held("0000:6b:00.3") {
		t.Error("what was refused is held")
	}
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.2", "0000:6b:00.1")), SourceSpec, "cy=0000:6b:00.2#0 cy=0000:6b:00.1#1")
	// kubelet does not tell of init containers.
	expect(t, assign(t, r, p, container(p, "init").with(table, "0000:6b:00.3")), SourceSpec, "cy=0000:6b:00.3#2")
}

// One device plugin gives nodes, another allocator only names.
func TestNodesAndNamesAddUp(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 2), compression("0000:70:00.0", 2))
	k := startKubelet(t)
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.1")
	k.claim("default/web", "app", "qat.intel.com", "qatvf-0000-70-00-1", "intel.com/qat=qatvf-0000-70-00-1")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	warm(t, r, p)
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.1")), SourceSpec, "cy=0000:6b:00.1#0 dc=0000:70:00.1#1")
}

// A group's other VFs come with the one that was allocated.
func TestTheRestOfAGroupIsNoContradiction(t *testing.T) {
	table := machine(t, inOneGroup(crypto("0000:6b:00.0", 2)))
	k := startKubelet(t)
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.1")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	warm(t, r, p)
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.1")), SourceSpec, "cy=0000:6b:00.1#0 cy=0000:6b:00.2#1")
}

// kubelet has a VF back, and gives it on, before the runtime has told that the
// former pod's sandbox is stopped. It creates the container, or the sandbox, again
// until that is so.
func TestTheNextPodWaitsForAVFToBeFree(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 1))
	k := startKubelet(t)
	k.grant("default/old", "app", "qat.intel.com/cy", "0000:6b:00.1")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	old, next := pod("old"), pod("next")
	assign(t, r, old, container(old, "app").with(table, "0000:6b:00.1"))
	k.set(func() { k.pods = nil })
	k.grant("default/next", "app", "qat.intel.com/cy", "0000:6b:00.1")

	for try := range 3 { // with cold-plug the sandbox is refused, and each has an id of its own
		next.ID = fmt.Sprint("sandbox-next-", try)
		_, err := r.ForPod(background, next)
		refused(t, err, "pod default/next", "VF 0000:6b:00.1", "held by pod default/old")
	}
	for range 3 { // without it the container is
		warm(t, r, next)
		_, err := r.Assign(background, next, container(next, "app").with(table, "0000:6b:00.1"))
		refused(t, err, "pod default/next", "held by pod default/old")
	}
	r.ReleasePod(old.ID)
	if all, err := r.ForPod(background, next); err != nil || len(all) != 1 {
		t.Errorf("the sandbox is still refused: %v, %v", all, err)
	}
	c := container(next, "app").with(table, "0000:6b:00.1")
	expect(t, assign(t, r, next, c), SourceSpec, "cy=0000:6b:00.1#0")

	// A container that is created again finds its VF as it was.
	r.ReleaseContainer(c.ID)
	c.ID = "again"
	expect(t, assign(t, r, next, c), SourceSpec, "cy=0000:6b:00.1#0")
}

// kubelet gives an app container what an init container of the pod had.
func TestAnInitContainersVFGoesOnToTheNext(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 2))
	k := startKubelet(t)
	k.grant("default/web", "app", "qat.intel.com/cy", "0000:6b:00.1", "0000:6b:00.2")
	r := resolver(t, Options{KubeletSocket: k.socket}, table)
	p := pod("web")
	if _, err := r.ForPod(background, p); err != nil { // the sandbox has both before any container is
		t.Fatal(err)
	}
	first := container(p, "init").with(table, "0000:6b:00.2")
	expect(t, assign(t, r, p, first), SourceSpec, "cy=0000:6b:00.2#1")
	r.ReleaseContainer(first.ID)
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.1", "0000:6b:00.2")), SourceSpec, "cy=0000:6b:00.1#0 cy=0000:6b:00.2#1")
}
