package allocation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/refusal"
)

// agree returns the VFs that a container's spec has, and those that kubelet gave
// it by name only. The nodes in the spec are those of the moment when kubelet
// asked its device plugin, and it keeps them over a boot, after which another VF
// can have the number of a group (Kubernetes, pkg/kubelet/cm/devicemanager: an
// allocation is read from the checkpoint and not made again). So a VF that
// kubelet did not give the container is not its own, whatever its spec says.
// Without a word of kubelet, as of init containers, the spec is what counts.
func (i *inventory) agree(spec []Held, told *granted) ([]Held, error) {
	if told == nil {
		return spec, nil
	}
	given, err := i.fromKubelet(*told)
	if err != nil {
		return nil, err
	}
	for _, s := range spec {
		with := func(v Held) bool {
			return v.Device == s.Device || v.Device.VF.Group != nil && v.Device.VF.Group == s.Device.VF.Group
		}
		if !slices.ContainsFunc(given, with) {
			return nil, refusal.Because(refusal.DeviceGone, fmt.Errorf("its spec has the node %s, which is that of %s, and kubelet gave it %s: the node's number is of before the last boot: delete the pod, so that its devices are allocated anew", s.Device.Node.Path, s.Device.VF.Address, addresses(given)))
		}
	}
	for _, v := range given {
		if !has(spec, v.Device.VF.Address) {
			spec = append(spec, v)
		}
	}
	return spec, nil
}

func addresses(vfs []Held) string {
	all := make([]string, len(vfs))
	for i, v := range vfs {
		all[i] = string(v.Device.VF.Address)
	}
	return strings.Join(all, ", ")
}

// told is what kubelet has said of a container, as far as that is known by now;
// nil when it said nothing of it.
func (r *Resolver) told(pod Pod, container string) *granted {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.ledger.pods[pod.ID]
	if h == nil || h.query == nil {
		return nil
	}
	select {
	case <-h.query.done:
	default:
		return nil
	}
	for i := range h.query.granted {
		if h.query.granted[i].container == container {
			return &h.query.granted[i]
		}
	}
	return nil
}

// ask answers from memory what kubelet says of a pod, once the answer to Warm's
// question is there, and asks itself when Warm did not or got nothing.
func (r *Resolver) ask(ctx context.Context, pod Pod) ([]granted, error) {
	r.mu.Lock()
	q := r.query(pod)
	r.mu.Unlock()
	select {
	case <-q.done:
		return q.granted, q.err
	default:
	}
	select {
	case <-q.done:
		return q.granted, q.err
	case <-ctx.Done():
		return nil, refusal.Because(refusal.Kubelet, fmt.Errorf("pod %s: wait for kubelet at %s to tell its devices: %w: check that kubelet runs, or leave its socket out of the configuration of a node without one", pod.String(), r.kubelet.socket, context.Cause(ctx)))
	}
}

// query is the pod's question to kubelet, asked now if it was not. It needs the
// lock.
func (r *Resolver) query(pod Pod) *query {
	h := r.ledger.open(pod)
	if h.query == nil || h.query.useless() {
		h.query = r.kubelet.start(pod)
	}
	return h.query
}

// Claimed lists the VFs that pods hold: those in the record, and those that
// kubelet says are given to any container, Kata's or not. Without a kubelet that
// answers it cannot tell, which is an error.
func (r *Resolver) Claimed(ctx context.Context) (map[qat.Address]bool, error) {
	if r.kubelet == nil {
		return nil, errors.New("list the VFs of all pods: kubelet is not asked, by configuration")
	}
	ctx, cancel := context.WithTimeout(ctx, r.kubelet.timeout)
	defer cancel()
	all, err := r.kubelet.claimed(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for a := range r.ledger.byVF {
		all[a] = true
	}
	return all, nil
}
