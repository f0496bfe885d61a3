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
	pod, err := b.RunPod(ctx, bed.PodSpec{Name: "tls", HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=1"}})
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
	if out, err := exec.Command("kata-qat", "devices").CombinedOutput(); err != nil {
		return fmt.Errorf("kata-qat devices: %w: %s", err, out)
	}
	return errors.Join(pod.Stop(ctx), pod.Remove(ctx))
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
