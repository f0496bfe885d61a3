//go:build !entry

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	daemon "github.com/kata-qat/kata-qat/internal/node"
	"github.com/kata-qat/kata-qat/internal/output"
	runtimesetup "github.com/kata-qat/kata-qat/provision/runtime"
)

func provisionRuntimeCommand() *cli.Command {
	return &cli.Command{
		Name:  "runtime",
		Usage: "Kata and containerd: make them use the guest, the shim and the NRI plugin",
		Description: `Finds Kata (kata-deploy's, a release's or a package's; runtime-rs or the Go
runtime) and containerd (1.7 or 2, or that of k3s or RKE2), and gives each runtime
handler a configuration directory of Kata's, our shim, and an entry in containerd's
configuration. NRI is switched on, and with containerd 2.2 or later no container is
created without our plugin. Kata's files are not touched: run this again when it was
updated. containerd is restarted only if its configuration changed, and everything
is put back if it does not come back healthy.

The profile of a handler is what the configuration says (profile and profiles).

Examples:
   kata-qat provision runtime --dry-run
   kata-qat provision runtime
   kata-qat provision runtime --handler kata-qat --handler kata-qat-gk
   kata-qat provision runtime --print
   kata-qat provision runtime --undo

Exit codes: 0 all is as it should be; 1 it failed; 2 with --dry-run: something
would be changed.`,
		Flags: []cli.Flag{
			dryRunFlag(),
			&cli.BoolFlag{Name: "print", Usage: "write the files as they are to be to stdout, and change nothing"},
			undoFlag(),
			&cli.StringSliceFlag{Name: "handler", Usage: "runtime `HANDLER`, which a RuntimeClass names (again for more)", DefaultText: runtimesetup.DefaultHandler},
			&cli.StringFlag{Name: "kata", Usage: "`RUNTIME` of Kata's: rust or go (default: rust if it is there)"},
			&cli.StringFlag{Name: "base", Usage: "Kata's configuration to build upon, a `FILE` of the machine (default: that of the installation)"},
			&cli.StringFlag{Name: "guest", Usage: "`DIR` of the machine with a guest that provision guest made, or \"kata\" for Kata's own (default: the profile's)"},
			&cli.StringFlag{Name: "containerd-of", Usage: "`WHO` runs containerd: containerd, k3s or rke2 (default: find out)"},
			&cli.StringFlag{Name: "containerd-config", Usage: "containerd's configuration, a `FILE` of the machine, if it is not at its usual place"},
			&cli.StringFlag{Name: "programs", Usage: "install our programs from this `DIR`, as a container has them, first"},
			&cli.BoolFlag{Name: "not-required", Usage: "let containers be created while our NRI plugin is not there"},
			&cli.BoolFlag{Name: "replace", Usage: "replace what somebody else wrote for the same handler; --undo brings it back"},
			&cli.BoolFlag{Name: "no-restart", Usage: "do not restart containerd, as in an image that is being built"},
			&cli.DurationFlag{Name: "timeout", Usage: "`TIME` for containerd to come back", Value: runtimesetup.DefaultHealthTimeout},
			outputFlag(),
		},
		Action: provisionRuntime,
	}
}

func provisionRuntime(c *cli.Context) error {
	run, err := parseRun(c, "print")
	if err != nil {
		return err
	}
	o := runtimesetup.Options{
		Root: c.String("host-root"), Config: run.config, Handlers: c.StringSlice("handler"), Kata: runtimesetup.Language(c.String("kata")),
		Base: c.String("base"), Guest: c.String("guest"), Flavour: c.String("containerd-of"), ContainerdConfig: c.String("containerd-config"),
		Programs:    c.String("programs"),
		NotRequired: c.Bool("not-required"), Replace: c.Bool("replace"), NoRestart: c.Bool("no-restart"), HealthTimeout: c.Duration("timeout"),
	}
	if c.IsSet("containerd") {
		o.Socket = c.String("containerd")
	}
	steps, err := runtimesetup.Steps(o)
	if err != nil {
		return usage(err)
	}
	if c.Bool("print") {
		files, err := runtimesetup.Files(c.Context, o)
		if err != nil {
			return err
		}
		return writeFiles(c.App.Writer, run.format, files)
	}
	if err := run.steps(c, steps); err != nil || !run.undo {
		return err
	}
	return daemon.Leave(o.Root, run.config)
}

// writeFiles shows files whole, each behind its name.
func writeFiles(w io.Writer, format output.Format, files []runtimesetup.File) error {
	if format != output.Table {
		return output.Data(w, format, files)
	}
	colours := output.ColoursFor(w)
	for i, f := range files {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if f.Target != "" {
			fmt.Fprintf(w, "%s\n", colours.Bold("==> "+output.Text(f.Path+" -> "+f.Target)))
			continue
		}
		fmt.Fprintf(w, "%s\n", colours.Bold("==> "+output.Text(f.Path)))
		for _, line := range strings.Split(strings.TrimSuffix(f.Content, "\n"), "\n") {
			fmt.Fprintln(w, output.Text(line))
		}
	}
	return nil
}
