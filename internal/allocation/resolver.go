package allocation

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/refusal"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// MaxVFsPerPod is how many VFs Kata can give one VM on root ports.
const MaxVFsPerPod = 16

// Options say which sources there are besides the containers' specs.
type Options struct {
	// KubeletSocket is the socket of kubelet's PodResources service, usually
	// /var/lib/kubelet/pod-resources/kubelet.sock. Empty on a node without
	// kubelet. With a socket, a kubelet that does not answer is an error of
	// every container that does not have its VFs in its spec.
	KubeletSocket string
	// KubeletTimeout bounds one question to kubelet. 0 means one second.
	KubeletTimeout time.Duration
	// Domain is that of the extended resources. Empty means
	// qat.ResourceDomain.
	Domain string
	// Standalone lets pods ask for VFs by annotation. Without it the
	// annotations mean nothing.
	Standalone bool
	// MaxVFsPerPod bounds what one pod may hold. 0 means MaxVFsPerPod.
	MaxVFsPerPod int
	// Stopped tells that a sandbox which Restore was told of has stopped. Of
	// such a sandbox it may be that nobody says so: a containerd that was
	// started anew sends plugins no event of the end of older sandboxes
	// (2.4, internal/nri, syncPlugin notes the state of containers only). nil
	// when there is no other way to know. It is called with a lock held and
	// must not wait.
	Stopped func(sandboxID string) bool
}

// Resolver tells which VFs a container holds and keeps the record of it. It is
// safe for concurrent use, and holds no lock while it waits for kubelet.
type Resolver struct {
	domain     string
	standalone bool
	kubelet    *kubelet // nil on a node without one
	devices    atomic.Pointer[inventory]

	mu     sync.Mutex
	ledger *ledger
}

// inventory is a table together with the names of its VFs' resources.
type inventory struct {
	*vfio.Table
	domain    string
	resources map[qat.Services]string
}

// NewResolver returns a resolver that knows no device yet. It does not wait for
// kubelet, which may be started later.
func NewResolver(o Options) (*Resolver, error) {
	r := &Resolver{
		domain:     cmp.Or(o.Domain, qat.ResourceDomain),
		standalone: o.Standalone,
		ledger:     newLedger(cmp.Or(o.MaxVFsPerPod, MaxVFsPerPod), time.Now, o.Stopped),
	}
	if o.KubeletSocket != "" {
		var err error
		if r.kubelet, err = dialKubelet(o.KubeletSocket, r.domain, cmp.Or(o.KubeletTimeout, time.Second)); err != nil {
			return nil, err
		}
	}
	r.SetTable(nil)
	return r, nil
}

// Close ends the connection to kubelet.
func (r *Resolver) Close() error {
	if r.kubelet == nil {
		return nil
	}
	return r.kubelet.conn.Close()
}

// SetTable makes the resolver use the devices as they are now. Who holds what
// stays as it is, by address.
func (r *Resolver) SetTable(t *vfio.Table) {
	inv := &inventory{Table: t, domain: r.domain, resources: make(map[qat.Services]string)}
	for _, d := range t.Devices() {
		inv.resources[d.VF.Services] = r.domain + "/" + d.VF.Services.ResourceName()
	}
	r.devices.Store(inv)
}

func (i *inventory) resource(vf *qat.VF) string { return i.resources[vf.Services] }

// Warm begins to find out what a pod holds and returns at once; call it when the
// sandbox runs. What is wrong with the pod is told when its containers come.
func (r *Resolver) Warm(pod Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.kubelet != nil:
		r.live(pod)
		r.query(pod)
	case r.standalone && requested(&pod):
		// Errors come again from Assign.
		_, _ = r.ledger.reserve(r.live(pod), r.devices.Load())
	case r.ledger.pods[pod.ID] != nil:
		r.live(pod)
	}
}

// live finds the pod and notes that it runs.
func (r *Resolver) live(pod Pod) *holder {
	h := r.ledger.open(pod)
	h.pod, h.lapses = pod, time.Time{}
	return h
}

// Assign tells which VFs a container holds, gives them to it in the record and
// keeps them for its pod until ReleasePod. A container that holds none gets an
// Assignment without VFs. The error names pod, container and device, and what to
// do; then nothing was given.
func (r *Resolver) Assign(ctx context.Context, pod Pod, c Container) (Assignment, error) {
	inv := r.devices.Load()
	if vfs := inv.fromSpec(c.Devices); len(vfs) > 0 {
		vfs, err := inv.agree(vfs, r.told(pod, c.Name))
		if err != nil {
			return Assignment{}, inContainer(&pod, c.Name, err)
		}
		return r.give(pod, claim{container: c.Name, id: c.ID, source: SourceSpec, vfs: vfs})
	}
	if r.kubelet != nil {
		all, err := r.ask(ctx, pod)
		if err != nil {
			return Assignment{}, err
		}
		if at := slices.IndexFunc(all, func(g granted) bool { return g.container == c.Name }); at >= 0 {
			vfs, err := inv.fromKubelet(all[at])
			if err != nil {
				return Assignment{}, inContainer(&pod, c.Name, err)
			}
			return r.give(pod, claim{container: c.Name, id: c.ID, source: SourcePodResources, vfs: vfs})
		}
	}
	if r.standalone && requested(&pod) {
		return r.draw(pod, c)
	}
	return Assignment{Pod: pod, ContainerID: c.ID, Container: c.Name}, nil
}

// ForPod tells which VFs the containers of a pod are going to hold, in the
// order of the pod, as far as kubelet or the pool knows; and keeps them for the
// pod. It is for the sandbox, which has to have them when its VM boots. If
// neither Warm nor Assign is called for the pod within some minutes, the pod
// loses them.
func (r *Resolver) ForPod(ctx context.Context, pod Pod) ([]Assignment, error) {
	inv := r.devices.Load()
	var claims []claim
	if r.kubelet != nil {
		all, err := r.ask(ctx, pod)
		if err != nil {
			return nil, err
		}
		for _, g := range all {
			vfs, err := inv.fromKubelet(g)
			if err != nil {
				return nil, inContainer(&pod, g.container, err)
			}
			claims = append(claims, claim{container: g.container, source: SourcePodResources, vfs: vfs})
		}
	}
	pooled := r.standalone && requested(&pod)
	if len(claims) == 0 && !pooled {
		return nil, nil
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.ledger.open(pod)
	err := r.ledger.take(h, claims...)
	if err == nil && pooled {
		claims, err = r.drawAll(h, inv, claims)
	}
	if err != nil {
		if !h.lapses.IsZero() {
			r.ledger.drop(h)
		}
		return nil, err
	}
	all := make([]Assignment, len(claims))
	for i, c := range claims {
		all[i] = h.assignment(h.share(c.container))
	}
	return all, nil
}

// drawAll adds to claims what the pod's annotations ask for containers that
// have none there.
func (r *Resolver) drawAll(h *holder, inv *inventory, claims []claim) ([]claim, error) {
	requests, err := r.ledger.reserve(h, inv)
	if err != nil {
		return nil, err
	}
	for _, q := range requests {
		if slices.ContainsFunc(claims, func(c claim) bool { return c.container == q.container }) {
			continue
		}
		c, err := h.redeem(inv, q.container)
		if err != nil {
			return nil, err
		}
		if err := r.ledger.take(h, c); err != nil {
			return nil, err
		}
		claims = append(claims, c)
	}
	return claims, nil
}

// draw gives a container what its pod's annotations ask for it.
func (r *Resolver) draw(pod Pod, c Container) (Assignment, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	inv := r.devices.Load()
	h := r.live(pod)
	_, asks := pod.Annotations[RequestAnnotation+c.Name]
	// What was set aside when the sandbox started need not be asked for again.
	if !asks || h.share(c.Name) == nil {
		if _, err := r.ledger.reserve(h, inv); err != nil {
			return Assignment{}, err
		}
	}
	if !asks {
		return Assignment{Pod: pod, ContainerID: c.ID, Container: c.Name}, nil
	}
	k, err := h.redeem(inv, c.Name)
	if err != nil {
		return Assignment{}, err
	}
	k.id = c.ID
	if err := r.ledger.take(h, k); err != nil {
		return Assignment{}, err
	}
	return h.assignment(h.share(c.Name)), nil
}

// redeem claims what the pod has set aside for a container, as the devices are
// now.
func (h *holder) redeem(inv *inventory, container string) (claim, error) {
	s := h.share(container)
	c := claim{container: container, source: SourcePool, vfs: make([]Held, 0, len(s.vfs))}
	for _, v := range s.vfs {
		d := inv.ByAddress(v.Device.VF.Address)
		if d == nil {
			return claim{}, inContainer(&h.pod, container, refusal.Because(refusal.DeviceGone, fmt.Errorf("VF %s, which the pod has, is gone from this node: create the pod anew", v.Device.VF.Address)))
		}
		c.vfs = append(c.vfs, Held{Device: d, Resource: v.Resource})
	}
	return c, nil
}

// give records a claim of a container that is being created.
func (r *Resolver) give(pod Pod, c claim) (Assignment, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.live(pod)
	if err := r.ledger.take(h, c); err != nil {
		return Assignment{}, err
	}
	return h.assignment(h.share(c.container)), nil
}

// fromSpec finds the VFs among a container's devices. The numbers of a node
// tell what it is; its path is anybody's choice.
func (i *inventory) fromSpec(devices []SpecDevice) []Held {
	var vfs []Held
	for _, s := range devices {
		for _, d := range i.ByNumber(s.Major, s.Minor) {
			if has(vfs, d.VF.Address) {
				continue
			}
			if vfs == nil {
				vfs = make([]Held, 0, len(devices))
			}
			vfs = append(vfs, Held{Device: d, Resource: i.resource(d.VF)})
		}
	}
	return vfs
}

// fromKubelet finds the VFs that kubelet named.
func (i *inventory) fromKubelet(g granted) ([]Held, error) {
	vfs := make([]Held, 0, len(g.devices))
	for _, n := range g.devices {
		d := i.ByAddress(n.address)
		if d == nil {
			return nil, refusal.Because(refusal.DeviceGone, fmt.Errorf("kubelet says that it holds %s (%s), and this node has no such QAT VF: see kata-qat devices, and restart the device plugin or DRA driver that offers it", n.address, cmp.Or(n.resource, intelKind)))
		}
		vfs = append(vfs, Held{Device: d, Resource: cmp.Or(n.resource, i.resource(d.VF))})
	}
	return vfs, nil
}

// ReleaseContainer notes that a container is gone, or was never created. Its
// pod keeps its VFs for the next container of that name.
func (r *Resolver) ReleaseContainer(id string) {
	if id == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.ledger.pods {
		for i := range h.shares {
			if h.shares[i].id == id {
				h.shares[i].id = ""
			}
		}
	}
}

// ReleasePod frees everything that a pod holds. Call it when its sandbox has
// stopped: kubelet may give its VFs to another pod from then on, long before it
// removes the sandbox.
func (r *Resolver) ReleasePod(sandboxID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.ledger.pods[sandboxID]; h != nil {
		r.ledger.drop(h)
	}
}

// Restore replaces the record by the truth, for which SetTable has to come
// first: the pods that live, whether they
// are Kata's or not, and the devices in their containers' specs. List containers
// in the order in which they were created, and leave out sandboxes that have
// stopped. What a living pod has set aside stays with it, and so does a pod that
// is still booting. The error names what does not fit together; the rest is
// restored all the same.
func (r *Resolver) Restore(pods []Pod, containers []PodContainer) error {
	inv := r.devices.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	r.ledger, err = r.ledger.restored(pods, containers, inv.fromSpec)
	return err
}

// Held tells whether a pod holds a VF.
func (r *Resolver) Held(a qat.Address) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ledger.other(r.ledger.byVF[a], nil)
}

// Lookup returns what a container was given.
func (r *Resolver) Lookup(containerID string) (Assignment, bool) {
	if containerID == "" {
		return Assignment{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.ledger.pods {
		for i := range h.shares {
			if h.shares[i].id == containerID {
				return h.assignment(&h.shares[i]), true
			}
		}
	}
	return Assignment{}, false
}

// Assignments lists what is held and set aside, by namespace, pod and
// container.
func (r *Resolver) Assignments() []Assignment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ledger.assignments()
}
