//go:build !entry

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/doctor"
	"github.com/kata-qat/kata-qat/internal/output"
)

// exitWarnings is doctor's exit code when nothing fails, but something could be
// better.
const exitWarnings = 3

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "find out what keeps this node from giving QAT devices to Kata pods",
		Description: `Checks the host, its QAT devices, the node daemon, containerd and Kata, and for
everything that is not as it should be shows where that stands (a path and what is
there) and the command that mends it. It only reads. What each check means stands
in docs/troubleshooting.md.

What the host is to be like is the configuration's, or that of the flags that
provision host was last run with.

Examples:
   kata-qat doctor
   kata-qat doctor --problems
   kata-qat doctor -o json | jq -r '.checks[] | select(.state == "fail") | .mend'
   kata-qat doctor --host-root /host     # in a container that has the host there

Exit codes: 0 nothing is wrong; 1 at least one check fails; 2 the command line is
wrong; 3 no check fails, but there are warnings.`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "problems", Aliases: []string{"p"}, Usage: "show only what is wrong or could be better"},
			&cli.StringFlag{Name: "containerd-config", Usage: "containerd's configuration `FILE`, below --host-root (default: where containerd, k3s or RKE2 has it)"},
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
			r := examine(c)
			if err := doctor.Write(c.App.Writer, format, r, c.Bool("problems"), output.ColoursFor(c.App.Writer)); err != nil {
				return err
			}
			return map[doctor.State]error{doctor.Fail: cli.Exit("", exitFailure), doctor.Warn: cli.Exit("", exitWarnings)}[r.Worst()]
		},
	}
}

// examine runs doctor on the machine of the command line.
func examine(c *cli.Context) *doctor.Report {
	o := doctor.Options{
		Root: c.String("host-root"), ConfigFile: filepath.Join(c.String("host-root"), config.Path),
		Containerd: nodeOf(c), ContainerdConfig: c.String("containerd-config"),
	}
	if c.IsSet("config") {
		o.ConfigFile = c.String("config")
	}
	if o.Config, o.ConfigErr = loadConfig(c); o.ConfigErr == nil {
		o.BootFlags, o.ConfigErr = provisionedWith(o.Root, &o.Config.Provision)
	}
	if o.ConfigErr != nil {
		o.Config = config.Default()
	}
	return doctor.Run(c.Context, o)
}

// bootFlags is where provision host leaves the flags that it was run with, for
// the unit that repeats it at boot.
const bootFlags = "/etc/kata-qat/provision.env"

// provisionedWith puts the flags of the last provision host into the
// configuration, as that run did, and returns them.
func provisionedWith(root string, p *config.Provision) ([]string, error) {
	file, err := securejoin.SecureJoin(root, bootFlags)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var words []string
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PROVISION_FLAGS="); ok {
			words = strings.Fields(value)
		}
	}
	set := flag.NewFlagSet("provision host", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, f := range provisionHostCommand().Flags {
		if err := f.Apply(set); err != nil {
			return nil, err
		}
	}
	if err := set.Parse(words); err != nil {
		return nil, fmt.Errorf("%s: %w", bootFlags, err)
	}
	flags, err := provisionFlags(cli.NewContext(nil, set, nil), p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", bootFlags, err)
	}
	return flags, nil
}
