package activity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/inventory"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// Holders are those who hold each VF: pods as namespace/name, and processes of
// the host.
type Holders map[qat.Address][]string

func (h Holders) add(a qat.Address, who string) {
	if !slices.Contains(h[a], who) {
		h[a] = append(h[a], who)
	}
}

// patience is what the daemon gets to answer.
const patience = 5 * time.Second

// FindHolders finds out who can use a VF, for a pod that wants to know whether it
// is alone. It asks containerd, whose containers' specs have the VFs' nodes; the
// node daemon at the socket, which also knows what a pod keeps between two
// containers; and, for VFs that neither of them knows a holder of, the kernel. If
// only one of the first two can be asked that suffices; if none can, the holders
// are nil. If only some specs cannot be read, the error says which, and the rest is
// there.
func FindHolders(ctx context.Context, inv *qat.Inventory, table *vfio.Table, node containers.Node, socket, pod string) (Holders, error) {
	all := make(Holders)
	specs, specErr := inventory.FindHolders(ctx, node, table)
	for a, holders := range specs {
		for _, h := range holders {
			// A container of another pod that runs no more sends nothing.
			if who := name(h); who == pod || !h.Exited {
				all.add(a, who)
			}
		}
	}
	daemonErr := all.askDaemon(ctx, socket)
	if specs == nil && daemonErr != nil {
		return nil, fmt.Errorf("find out who holds the VFs: %w", errors.Join(specErr, daemonErr))
	}
	var unheld []*qat.VF
	for vf := range inv.VFs() {
		if len(all[vf.Address]) == 0 {
			unheld = append(unheld, vf)
		}
	}
	users, err := vfio.Users(node.Root, unheld)
	if err != nil {
		err = fmt.Errorf("find out who has the VFs open: %w", err)
	}
	for a, u := range users {
		all.add(a, u.String()+" of the host")
	}
	if specs == nil { // the daemon's word is enough
		specErr = nil
	}
	return all, errors.Join(specErr, err)
}

func name(h inventory.Holder) string {
	if h.Pod == "" {
		return "container " + h.ID[:min(len(h.ID), 12)]
	}
	return h.Namespace + "/" + h.Pod
}

func (h Holders) askDaemon(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := api.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.Assignments(ctx, &nodev1.AssignmentsRequest{Client: api.Self()})
	if err != nil {
		return c.Explain("ask who holds the VFs", err, patience)
	}
	if err := api.CheckDaemon(answer.GetDaemon()); err != nil {
		return err
	}
	for _, a := range answer.GetAssignments() {
		for _, d := range a.GetDevices() {
			h.add(qat.Address(d.GetAddress()), a.GetNamespace()+"/"+a.GetPod())
		}
	}
	return nil
}
