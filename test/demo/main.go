// Demo shows kata-qat at work on a machine without QAT: a simulated node, a real
// containerd, and a pod that asks for two virtual functions. It needs root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) (err error) {
	step("A node with two QAT devices of 16 virtual functions each (simulated), and a real containerd")
	node, err := simnode.Start(simnode.Options{
		Bed: bed.Options{
			Handlers:        map[string]bed.Handler{"kata-qat": {RuntimeType: bed.RuncType}},
			RequiredPlugins: []string{"kata-qat"},
		},
		// runc stands in for Kata: what the VM would get can be looked at.
		Shims: map[string]string{"kata-qat": "containerd-shim-runc-v2"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()

	step("The node daemon connects to containerd as an NRI plugin: kata-qat nri-plugin")
	daemon, err := node.StartDaemon(ctx)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, daemon.Stop())
		if err != nil {
			fmt.Fprint(os.Stderr, daemon.Log())
		}
	}()

	step(`A pod over CRI, runtime handler kata-qat, annotation kata-qat.io/request.tls: "cy=2"`)
	pod, err := node.RunPod(ctx, bed.PodSpec{
		Name: "ingress", HostNetwork: true,
		Annotations: map[string]string{"kata-qat.io/request.tls": "cy=2"},
	})
	if err != nil {
		return err
	}
	ctr, err := pod.RunContainer(ctx, bed.ContainerSpec{Name: "tls", User: &bed.User{UID: 1000, GID: 1000}})
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"devices"}, {"dump", "default/ingress"}, {"dump", "--diff", "default/ingress"}} {
		if err := show(node.CLI(args...)); err != nil {
			return err
		}
	}

	step("What the container itself sees, as user 1000")
	if !bed.RaisesLimits() {
		fmt.Println("(this machine's root may not raise limits: the container gets the machine's own, its spec says what it would get)")
	}
	for _, command := range []string{
		"ls -l /dev/vfio",
		"ulimit -l",
		"env | grep PCIDEVICE",
		"ls -l /etc/*.conf",
		"head -12 /etc/4xxxvf_dev0.conf",
	} {
		fmt.Println("$ " + command)
		r, err := ctr.Exec(ctx, "/bin/sh", "-c", command)
		if err != nil {
			return err
		}
		fmt.Print(r.Stdout, r.Stderr)
		if r.Code != 0 {
			return fmt.Errorf("%s: exit code %d", command, r.Code)
		}
	}

	step("The pod is removed, and its virtual functions are free again")
	if err := errors.Join(pod.Stop(ctx), pod.Remove(ctx)); err != nil {
		return err
	}
	return show(node.CLI("devices"))
}

// show runs a command with its output on ours.
func show(cmd *exec.Cmd) error {
	args := cmd.Args[1:]
	for len(args) > 1 && strings.HasPrefix(args[0], "--") { // the flags that point to the simulated node
		args = args[2:]
	}
	step("kata-qat " + strings.Join(args, " "))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("kata-qat %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func step(text string) {
	if _, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS); err == nil && os.Getenv("NO_COLOR") == "" {
		text = "\x1b[1;34m" + text + "\x1b[0m"
	}
	fmt.Printf("\n== %s\n", text)
}
