//go:build !entry

package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/inventory"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

func devicesCommand() *cli.Command {
	return &cli.Command{
		Name:  "devices",
		Usage: "show the QAT devices of this machine, their state, and the containers that hold them",
		Description: `Shows each physical function with its services, state and health, and below it
its virtual functions: driver, IOMMU group, device node, whether it can be handed
out, and who holds it. What keeps a VF from being handed out is said under the
table, with what to do.

Holders are the containers that have the VF's node in their spec. Where
containerd cannot be asked they are shown as "?".

With --watch it goes on until it is interrupted, and then exits with 0: on a
terminal the table is kept up to date, in a pipe each change is one line, and with
-o json one JSON object: event (present, added, changed, removed), address, before
and after. It waits for the kernel's events of devices (uevents) and containerd's
of containers, and does nothing in between.

Examples:
   kata-qat devices
   kata-qat devices --ready
   kata-qat devices --watch
   kata-qat devices --watch -o json | jq -c 'select(.event != "present")'
   kata-qat devices -o json | jq -r '.pfs[].vfs[] | select(.holders == []) | .address'`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "ready", Usage: "only VFs that can be handed out"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "go on, and show every change as the kernel announces it"},
			outputFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			said := ""
			read := func(ctx context.Context) (*inventory.Report, error) {
				r, unknown, err := devicesReport(ctx, c, cfg)
				// Once is enough for as long as --watch goes on.
				if unknown != nil && oneLine(unknown) != said && ctx.Err() == nil {
					said = oneLine(unknown)
					fmt.Fprintf(c.App.ErrWriter, "kata-qat: not all holders are known: %s\n", said)
				}
				return r, err
			}
			if c.Bool("watch") {
				return watchDevices(c, format, read)
			}
			r, err := read(c.Context)
			if err != nil {
				return err
			}
			return inventory.Write(c.App.Writer, format, r, output.ColoursFor(c.App.Writer))
		},
	}
}

// devicesReport reads the devices, and who holds them. What it does not know of
// holders is the first error, which leaves the rest as it is.
func devicesReport(ctx context.Context, c *cli.Context, cfg *config.Config) (_ *inventory.Report, unknown, _ error) {
	inv, err := qat.Discover(c.String("host-root"))
	if err != nil {
		return nil, nil, err
	}
	table := vfio.Load(c.String("host-root"), inv, vfio.Options{AllowNoIOMMU: cfg.AllowNoIOMMU})
	ctx, cancel := context.WithTimeout(ctx, containerdTimeout)
	defer cancel()
	holders, unknown := inventory.FindHolders(ctx, nodeOf(c), table)
	r := inventory.New(inv, table, holders)
	if c.Bool("ready") {
		r.OnlyReady()
	}
	return r, unknown, nil
}
