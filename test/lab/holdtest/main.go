// Command holdtest has the node daemon keep VFs for a pod, as the shim does before
// the pod's VM boots, and prints the address of each:
//
//	holdtest NAMESPACE/POD REQUEST
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "holdtest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("expected NAMESPACE/POD and a request, for example cy=1")
	}
	namespace, pod, _ := strings.Cut(args[0], "/")
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.PrepareSandbox(ctx, &nodev1.PrepareSandboxRequest{
		Client: api.Self(), SandboxId: "sandbox-of-" + pod, Namespace: namespace, Name: pod, RuntimeHandler: "kata-qat",
		Annotations: map[string]string{"kata-qat.io/request.main": args[1]},
	}); err != nil {
		return err
	}
	answer, err := c.Assignments(ctx, &nodev1.AssignmentsRequest{Client: api.Self()})
	if err != nil {
		return err
	}
	for _, a := range answer.GetAssignments() {
		if a.GetPod() == pod && a.GetNamespace() == namespace {
			for _, d := range a.GetDevices() {
				fmt.Println(d.GetAddress())
			}
		}
	}
	return nil
}

// dial waits until the daemon is there.
func dial(ctx context.Context) (*api.Client, error) {
	for {
		c, err := api.Dial(ctx, api.Socket)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
