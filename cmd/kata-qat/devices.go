package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

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

Examples:
   kata-qat devices
   kata-qat devices --ready
   kata-qat devices -o json | jq -r '.pfs[].vfs[] | select(.holders == []) | .address'`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "ready", Usage: "only VFs that can be handed out"},
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
			inv, err := qat.Discover(c.String("host-root"))
			if err != nil {
				return err
			}
			table := vfio.Load(c.String("host-root"), inv, vfio.Options{AllowNoIOMMU: cfg.AllowNoIOMMU})
			ctx, cancel := context.WithTimeout(c.Context, containerdTimeout)
			defer cancel()
			holders, err := inventory.FindHolders(ctx, nodeOf(c), table)
			if err != nil {
				fmt.Fprintf(c.App.ErrWriter, "kata-qat: not all holders are known: %s\n", oneLine(err))
			}
			r := inventory.New(inv, table, holders)
			if c.Bool("ready") {
				r.OnlyReady()
			}
			return inventory.Write(c.App.Writer, format, r, output.ColoursFor(c.App.Writer))
		},
	}
}
