// Command chaintest runs in a guest of the lab that our binary has provisioned.
// Pods get their VFs over CRI, through our NRI plugin and shim, and have a real
// virtual machine behind the stand-in for Kata's shim. What happened is read from
// the machines' consoles, from QEMU's processes, and from the PF, after the
// machines are gone. It exits with 1 and says what is not as it should be.
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/lab/katavm/machine"
	"github.com/kata-qat/kata-qat/test/lab/labnode"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 7*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chaintest:", err)
		os.Exit(1)
	}
	fmt.Println("the whole chain holds")
}

func run(ctx context.Context) (err error) {
	n, err := labnode.Start(ctx, bed.KataType, "KATA_STANDIN_VM=/usr/local/bin/katavm")
	if err != nil {
		return err
	}
	// What pods left behind, a QEMU for one, is an error.
	defer func() { err = errors.Join(err, n.Stop()) }()
	if err := podWithout(ctx, n.Bed); err != nil {
		return fmt.Errorf("a pod that asks for nothing: %w", err)
	}
	if err := podWith(ctx, n.Bed); err != nil {
		return fmt.Errorf("a pod that asks for a VF: %w", err)
	}
	return nil
}

// podWithout sees that nobody gets what he did not ask for.
func podWithout(ctx context.Context, b *bed.Bed) error {
	before, err := look()
	if err != nil {
		return err
	}
	pod, err := b.RunPod(ctx, bed.PodSpec{Name: "plain", HostNetwork: true})
	if err != nil {
		return err
	}
	if _, err := pod.RunContainer(ctx, bed.ContainerSpec{}); err != nil {
		return err
	}
	m := machine.Machine(pod.ID)
	if err := expectMachine(m, nil); err != nil {
		return err
	}
	requests, err := end(ctx, pod, m)
	if err != nil {
		return err
	}
	after, err := look()
	if err != nil {
		return err
	}
	fmt.Println("the VM of a pod that asks for nothing saw no VF")
	return errors.Join(
		expect("requests that the payload made", requests, 0),
		expect("counters of the PF", after.requests, before.requests),
		expect("messages of its VFs", after.messages, before.messages),
	)
}

// podWith follows a VF from the request to the PF's counters.
func podWith(ctx context.Context, b *bed.Bed) error {
	before, err := look()
	if err != nil {
		return err
	}
	pod, err := b.RunPod(ctx, bed.PodSpec{Name: "tls", HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=1"}})
	if err != nil {
		return err
	}
	ctr, err := pod.RunContainer(ctx, bed.ContainerSpec{})
	if err != nil {
		return err
	}
	told, err := ctr.Exec(ctx, "/bin/sh", "-c", "echo $PCIDEVICE_QAT_INTEL_COM_CY")
	if err != nil {
		return err
	}
	vf := before.vf(qat.Address(strings.TrimSpace(told.Stdout)))
	if vf == nil {
		return fmt.Errorf("the container was told of the VF %q: expected one of %s", told.Stdout, before.pf.Address)
	}
	m := machine.Machine(pod.ID)
	if err := expectMachine(m, vf); err != nil {
		return err
	}
	fmt.Printf("the VM of the pod has VF %s, group %d\n", vf.Address, vf.Group.ID)
	if err := verify(ctx, "default/tls"); err != nil {
		return err
	}
	requests, err := end(ctx, pod, m)
	if err != nil {
		return err
	}
	// The VM is gone, and VFIO has reset the VF.
	after, err := look()
	if err != nil {
		return err
	}
	fmt.Printf("the payload wrote %s and made %d requests\n", m.Word(), requests)
	wantRequests, wantMessages := before.requests, maps.Clone(before.messages)
	wantRequests[vf.Index%len(wantRequests)] += requests
	wantMessages[vf.Index] = m.Word()
	if requests == 0 {
		return errors.New("the payload made no request")
	}
	return errors.Join(
		expect("counters of the PF", after.requests, wantRequests),
		expect("messages of its VFs", after.messages, wantMessages),
		expectFree(ctx, after),
	)
}

// verify has our program prove that the pod uses the hardware, while it does.
func verify(ctx context.Context, pod string) error {
	out, err := exec.CommandContext(ctx, "kata-qat", "verify", pod, "--for", "3s").CombinedOutput()
	fmt.Printf("$ kata-qat verify %s\n%s", pod, out)
	if err != nil {
		return fmt.Errorf("kata-qat verify %s: %w: expected it to say yes", pod, err)
	}
	if !strings.HasPrefix(string(out), "hardware in use: yes (PF ") {
		return fmt.Errorf("kata-qat verify %s: expected it to begin with a yes", pod)
	}
	return nil
}

// end removes the pod and returns how many requests its payload made in all.
func end(ctx context.Context, pod *bed.Pod, m machine.Machine) (uint64, error) {
	if err := pod.Remove(ctx); err != nil {
		return 0, err
	}
	pids, err := qemus()
	if err != nil {
		return 0, err
	}
	if len(pids) > 0 {
		return 0, fmt.Errorf("QEMU still runs after the pod was removed, as %v", pids)
	}
	said, err := m.Said("requests")
	if err != nil {
		return 0, err
	}
	if len(said) != 1 {
		console, err := os.ReadFile(m.Console())
		return 0, errors.Join(fmt.Errorf("the payload told %d numbers of requests, expected 1; it said:\n%s", len(said), console), err)
	}
	return strconv.ParseUint(said[0], 10, 64)
}
