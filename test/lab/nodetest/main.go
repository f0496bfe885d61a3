// Command nodetest runs in a guest of the lab: on a real kernel with VFs bound
// to vfio-pci it starts containerd and the node daemon, has a pod ask for one
// VF over CRI, and uses that VF from inside the container.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/lab/labnode"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nodetest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	n, err := labnode.Start(ctx, bed.RuncType)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Stop()) }()
	return usePod(ctx, n.Bed)
}

// usePod runs the pod and looks at it from inside and outside.
func usePod(ctx context.Context, b *bed.Bed) error {
	pod, err := b.RunPod(ctx, bed.PodSpec{Name: "tls", HostNetwork: true, Annotations: map[string]string{
		"kata-qat.io/request.main": "cy=1", "kata-qat.io/request.maker": "cy=1",
	}})
	if err != nil {
		return err
	}
	ctr, err := pod.RunContainer(ctx, bed.ContainerSpec{
		User:   &bed.User{UID: 1000, GID: 1000},
		Mounts: []bed.Mount{{Host: "/bin/vfiotest", Container: "/vfiotest", ReadOnly: true}},
	})
	if err != nil {
		return err
	}
	in := func(script string) (string, int, error) {
		r, err := ctr.Exec(ctx, "/bin/sh", "-c", script)
		return strings.TrimSpace(r.Stdout + r.Stderr), r.Code, err
	}
	own, _, err := in("echo $PCIDEVICE_QAT_INTEL_COM_CY")
	if err != nil {
		return err
	}
	fmt.Println("own", own)
	other, err := neighbour(own)
	if err != nil {
		return err
	}
	for _, script := range []string{"/vfiotest " + own, "ulimit -l", "/vfiotest " + other, "ls /dev/vfio"} {
		out, code, err := in(script)
		if err != nil {
			return err
		}
		fmt.Printf("$ %s\n%s\nexit code %d\n", script, out, code)
	}
	if err := makeNodes(ctx, pod, own); err != nil {
		return fmt.Errorf("a container that makes device nodes: %w", err)
	}
	if out, err := exec.Command("kata-qat", "devices").CombinedOutput(); err != nil {
		return fmt.Errorf("kata-qat devices: %w: %s", err, out)
	}
	return errors.Join(pod.Stop(ctx), pod.Remove(ctx))
}

// makeNodes has a container of the same pod, root there, make nodes of its own VF's
// group and of another container's, in a place of its own: it can open the one, and
// not the other. That is for the rules of its cgroup, which with version 2 are a
// program for the kernel.
func makeNodes(ctx context.Context, pod *bed.Pod, others string) error {
	ctr, err := pod.RunContainer(ctx, bed.ContainerSpec{Name: "maker"})
	if err != nil {
		return err
	}
	const script = `
		set -e
		open() { mknod /tmp/$1 c $2 $3; if sh -c ": </tmp/$1" 2>/tmp/why; then echo "$1: opened"; else echo "$1: $(sed 's/.*: //' /tmp/why)"; fi; }
		echo "cgroup $(cut -d: -f1,2 /proc/self/cgroup)"
		open own %s
		open other %s`
	told, err := ctr.Exec(ctx, "/bin/sh", "-c", "echo $PCIDEVICE_QAT_INTEL_COM_CY")
	if err != nil {
		return err
	}
	var numbers [2]string
	for i, vf := range []string{strings.TrimSpace(told.Stdout), others} {
		if numbers[i], err = groupNumbers(vf); err != nil {
			return err
		}
	}
	r, err := ctr.Exec(ctx, "/bin/sh", "-c", fmt.Sprintf(script, numbers[0], numbers[1]))
	if err != nil {
		return err
	}
	const want = "cgroup 0:\nown: opened\nother: Operation not permitted\n"
	if got := r.Stdout + r.Stderr; got != want {
		return fmt.Errorf("it says %q, expected %q", got, want)
	}
	fmt.Printf("device nodes that a container makes, with cgroups of version 2:\n%s", r.Stdout)
	return nil
}

// groupNumbers are the device numbers of a VF's group, "major minor".
func groupNumbers(vf string) (string, error) {
	group, err := os.Readlink("/sys/bus/pci/devices/" + vf + "/iommu_group")
	if err != nil {
		return "", err
	}
	dev, err := os.ReadFile("/sys/class/vfio/" + filepath.Base(group) + "/dev")
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(strings.TrimSpace(string(dev)), ":", " "), nil
}

// neighbour is another VF of the same PF.
func neighbour(vf string) (string, error) {
	links, err := filepath.Glob("/sys/bus/pci/devices/" + vf + "/physfn/virtfn*")
	if err != nil {
		return "", err
	}
	for _, l := range links {
		target, err := os.Readlink(l)
		if err != nil {
			return "", err
		}
		if name := filepath.Base(target); name != vf {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s has no neighbour among %v", vf, links)
}
