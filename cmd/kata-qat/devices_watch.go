//go:build !entry

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/inventory"
	"github.com/kata-qat/kata-qat/internal/output"
)

// watchDevices shows the devices, and shows them again whenever the kernel or
// containerd say that something has changed, until it is interrupted.
func watchDevices(c *cli.Context, format output.Format, read func(context.Context) (*inventory.Report, error)) error {
	view, err := watchView(c.App.Writer, format)
	if err != nil {
		return usage(err)
	}
	ctx, cancel := context.WithCancel(c.Context)
	defer cancel()
	events, err := changes(ctx, nodeOf(c))
	if err != nil {
		return fmt.Errorf("watch the devices: %w", err)
	}
	return inventory.Watch(ctx, read, events, view)
}

func watchView(w io.Writer, format output.Format) (inventory.View, error) {
	switch {
	case format == output.JSON:
		return inventory.JSONLines{W: w}, nil
	case format != output.Table:
		return nil, errors.New("--watch: expected -o table, or -o json for a line of JSON for each change")
	case output.Terminal(w):
		return inventory.Screen{Screen: output.ScreenOf(w), Now: time.Now}, nil
	}
	return inventory.Lines{W: w}, nil
}

// kernelEvents is where events of devices come from.
var kernelEvents = devices.Events

// changes joins what the kernel says of devices with what containerd says of
// containers. It ends with the former.
func changes(ctx context.Context, n containers.Node) (<-chan error, error) {
	kernel, err := kernelEvents(ctx)
	if err != nil {
		return nil, err
	}
	client, err := n.Client()
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { client.Close() })
	runtime := client.Changes(ctx)
	all := make(chan error, 1)
	go func() {
		defer close(all)
		for {
			var ok bool
			select {
			case _, ok = <-kernel:
			case _, ok = <-runtime:
			}
			if !ok {
				return
			}
			select {
			case all <- nil:
			default: // one is waiting already
			}
		}
	}()
	return devices.Settled(ctx, all), nil
}
