//go:build !entry

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/activity"
	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// exitPerhaps is verify's exit code when others could have sent what the
// hardware got.
const exitPerhaps = 3

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "find out whether a pod uses its QAT hardware",
		ArgsUsage: "NAMESPACE/POD",
		Description: `Finds the virtual functions that a pod of this node holds and the physical
functions that they belong to, reads the firmware's counters before and after some
time, and says whether the hardware got requests meanwhile. Run it while the pod
has something to do.

Counters are a PF's and do not tell its VFs apart. When other pods, or processes of
the host, hold VFs of the same PF, that is said, and what the PF got proves nothing.

Examples:
   kata-qat verify default/ingress
   kata-qat verify default/ingress --for 30s
   kata-qat verify default/ingress -o json | jq -r .hardwareInUse

Exit codes: 0 yes; 1 no, or it could not be found out; 2 the command line is wrong;
3 perhaps: the PF got requests, and others hold VFs of it.`,
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "for", Value: 10 * time.Second, Usage: "`TIME` to watch the hardware"},
			outputFlag(),
		},
		BashComplete: suggest(pods),
		Action: func(c *cli.Context) error {
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			pod := c.Args().First()
			namespace, name, _ := strings.Cut(pod, "/")
			if c.NArg() != 1 || namespace == "" || name == "" || strings.Contains(name, "/") {
				return usage(errors.New("expected one pod as namespace/pod, for example default/ingress: see kata-qat verify --help"))
			}
			if c.Duration("for") < shortest {
				return usage(fmt.Errorf("--for %s: expected at least %s", c.Duration("for"), shortest))
			}
			v, err := verify(c, pod)
			if err != nil {
				return err
			}
			if err := v.Write(c.App.Writer, format, output.ColoursFor(c.App.Writer)); err != nil {
				return err
			}
			return map[activity.Answer]error{activity.No: cli.Exit("", exitFailure), activity.Perhaps: cli.Exit("", exitPerhaps)}[v.InUse]
		},
	}
}

// verify watches the hardware of a pod.
func verify(c *cli.Context, pod string) (activity.Verdict, error) {
	var none activity.Verdict
	cfg, err := loadConfig(c)
	if err != nil {
		return none, err
	}
	root := c.String("host-root")
	inv, err := qat.Discover(root)
	if err != nil {
		return none, err
	}
	socket, err := securejoin.SecureJoin(root, filepath.Join(cfg.RunDir, api.SocketName))
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(c.Context, containerdTimeout)
	defer cancel()
	table := vfio.Load(root, inv, vfio.Options{AllowNoIOMMU: cfg.AllowNoIOMMU})
	holders, unknown := activity.FindHolders(ctx, inv, table, nodeOf(c), socket, pod)
	if holders == nil {
		return none, unknown
	}
	if unknown != nil {
		fmt.Fprintf(c.App.ErrWriter, "kata-qat: not all holders are known: %s\n", oneLine(unknown))
	}
	targets := activity.Targets(inv, holders, pod)
	before := activity.Read(root, activity.PFs(inv, targets), time.Now())
	if len(targets) > 0 {
		if output.Terminal(c.App.ErrWriter) {
			fmt.Fprintf(c.App.ErrWriter, "watching the hardware for %s\n", c.Duration("for"))
		}
		if err := wait(c.Context, c.Duration("for")); err != nil {
			return none, err
		}
	}
	after := activity.Read(root, activity.PFs(inv, targets), time.Now())
	return activity.Judge(pod, targets, &before, &after), nil
}
