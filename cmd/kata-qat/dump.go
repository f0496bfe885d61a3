//go:build !entry

package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/dump"
	"github.com/kata-qat/kata-qat/internal/output"
)

// containerdTimeout is how long containerd may take to answer.
const containerdTimeout = 15 * time.Second

func dumpCommand() *cli.Command {
	return &cli.Command{
		Name:      "dump",
		Usage:     "show the OCI specs of containers, and what kata-qat injected into them",
		ArgsUsage: "[CONTAINER-ID | NAMESPACE/POD]...",
		Description: `Shows one row for each container, or with -o json|yaml the whole specs. An id may
be shortened as long as it is the only one that begins so. A pod is its sandbox
and all its containers.

With --diff it shows exactly what was injected: the spec as it is, against the
spec as it was before. What was injected is known from the record in the spec's
annotation kata-qat.io/injected, or, where the shim rewrote a sandbox's spec,
from the original that it left beside it. A terminal that is wide enough has the
sandbox and the containers of a pod side by side.

A spec is read from the container's bundle on disk, which is what the runtime
got, or if the container does not run from containerd's record (--source).

Examples:
   kata-qat dump --all
   kata-qat dump default/qat-app --diff
   kata-qat dump 3f2a1b -o json | jq '.[0].spec.linux.devices'
   kata-qat dump --bundle /run/containerd/io.containerd.runtime.v2.task/k8s.io/ID --diff`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all containers of the node"},
			&cli.StringFlag{Name: "bundle", Usage: "the container of this bundle `DIR`; an absolute one is below --host-root"},
			&cli.BoolFlag{Name: "diff", Usage: "show what was injected"},
			&cli.StringFlag{Name: "source", Value: string(dump.Auto), Usage: "where specs are read `FROM`: auto, containerd or bundle"},
			outputFlag(),
		},
		BashComplete: suggest(podsAndContainers),
		Action: func(c *cli.Context) error {
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			entries, err := dumped(c)
			if err != nil && entries == nil {
				return err
			}
			if c.Bool("diff") {
				return errors.Join(dump.WriteDiffs(c.App.Writer, format, entries, output.ColoursFor(c.App.Writer), output.Width(c.App.Writer)), err)
			}
			return errors.Join(dump.Write(c.App.Writer, format, entries), err)
		},
	}
}

// dumped collects what the command line asks for.
func dumped(c *cli.Context) ([]dump.Entry, error) {
	source, err := dump.ParseSource(c.String("source"))
	if err != nil {
		return nil, usage(err)
	}
	if dir := c.String("bundle"); dir != "" {
		if c.Bool("all") || c.Args().Present() || c.IsSet("source") {
			return nil, usage(errors.New("--bundle stands alone: expected no container, pod, --all or --source beside it"))
		}
		if filepath.IsAbs(dir) {
			dir = filepath.Join(c.String("host-root"), dir)
		}
		e, err := dump.FromBundle(dir)
		if err != nil {
			return nil, err
		}
		return []dump.Entry{e}, nil
	}
	selection, err := dump.ParseSelection(c.Bool("all"), c.Args().Slice())
	if err != nil {
		return nil, usage(err)
	}
	ctx, cancel := context.WithTimeout(c.Context, containerdTimeout)
	defer cancel()
	return dump.Collect(ctx, nodeOf(c), source, selection)
}
