// Command kata-qat runs Intel QuickAssist workloads in Kata Containers: it is
// the node daemon and the tool of whoever looks after the node. The commands
// are one file each and only call the packages that know how.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/version"
)

// The exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // what was asked for could not be done, or not all of it
	exitUsage   = 2 // the command line is wrong; nothing was done
)

func main() {
	// Before signals are taken: one that comes in between must not be lost.
	if err := elsewhere(os.Args); err != nil {
		os.Exit(report(os.Stderr, err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	words, args := splitCompletion(args)
	app.Metadata[completionKey] = words
	return report(stderr, app.RunContext(ctx, flagsFirst(app, args)))
}

// report writes an error, each that it joins on one line, and returns the exit
// code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	for _, line := range flatten(err) {
		if line.Error() == "" { // only an exit code
			continue
		}
		fmt.Fprintf(stderr, "kata-qat: %s\n", oneLine(line))
	}
	var exit cli.ExitCoder
	if !errors.As(err, &exit) {
		return exitFailure
	}
	// It has such a method, too, and says how a program ended that was run here.
	if _, other := exit.(*exec.ExitError); other {
		return exitFailure
	}
	return exit.ExitCode()
}

func oneLine(err error) string {
	return output.Text(strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
}

func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// usage marks an error as one of the command line.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return cli.Exit(err, exitUsage)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:    "kata-qat",
		Usage:   "Intel QuickAssist in Kata Containers, without writing anything by hand",
		Version: version.Version,
		Description: `A pod that asks for qat.intel.com/... and has a Kata RuntimeClass gets its QAT
virtual functions into its VM. This is the daemon that does it and the tool that
shows what it did.

Examples:
   kata-qat devices                      what QAT devices are there, and who holds them
   kata-qat dump default/qat-app --diff  what was injected into the containers of a pod
   kata-qat dump --all                   all containers of this node
   kata-qat verify default/qat-app       does the pod use the hardware?
   kata-qat COMMAND --help               more about a command

Global options may stand before or after the command.

Exit codes: 0 all went well; 1 it failed, or a part of it did: the reason is on
stderr, a line for each; 2 the command line is wrong and nothing was done.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "host-root", Value: "/", Usage: "root `DIR` of the host: everything of the machine is read and written below it", EnvVars: []string{"KATA_QAT_HOST_ROOT"}},
			&cli.StringFlag{Name: "config", Value: config.Path, Usage: "configuration `FILE`; the default is below --host-root and need not exist", EnvVars: []string{"KATA_QAT_CONFIG"}},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "`LEVEL` of what is logged to stderr: error, warn, info, debug"},
			&cli.StringFlag{Name: "containerd", Value: defaults.DefaultAddress, Usage: "containerd's `SOCKET`, below --host-root"},
			&cli.StringFlag{Name: "containerd-namespace", Value: "k8s.io", Usage: "containerd's own `NAMESPACE` of the pods"},
			&cli.StringFlag{Name: "state", Value: defaults.DefaultStateDir, Usage: "containerd's state `DIR`, with the bundles in it, below --host-root"},
		},
		Commands: allCommands(),
		Before: func(c *cli.Context) error {
			level, err := logrus.ParseLevel(c.String("log-level"))
			if err != nil {
				return usage(fmt.Errorf("log level %q: expected error, warn, info or debug", c.String("log-level")))
			}
			logrus.SetLevel(level)
			return nil
		},
		Metadata:             map[string]any{},
		EnableBashCompletion: true,
		BashComplete:         suggest(nil),
		Action:               noCommand,
		OnUsageError:         badUsage,
		Writer:               stdout,
		ErrWriter:            stderr,
		ExitErrHandler:       func(*cli.Context, error) {}, // main reports
	}
	prepare(app.Commands)
	return app
}

// prepare gives every command what cli does not let it inherit.
func prepare(commands []*cli.Command) {
	for _, cmd := range commands {
		cmd.OnUsageError = badUsage
		cmd.HideHelpCommand = true // or "kata-qat dump help" is no container
		if cmd.BashComplete == nil {
			cmd.BashComplete = suggest(nil)
		}
		if cmd.Action == nil && len(cmd.Subcommands) > 0 {
			cmd.Action = noCommand
		}
		prepare(cmd.Subcommands)
	}
}

// badUsage reports what the flag parser says.
func badUsage(c *cli.Context, err error, _ bool) error {
	return usage(fmt.Errorf("%w: see %s --help", err, strings.TrimSpace(c.Command.HelpName)))
}

// noCommand is what happens when no command was named.
func noCommand(c *cli.Context) error {
	if c.Args().Present() {
		return usage(fmt.Errorf("no command %q: %s --help lists them", c.Args().First(), strings.TrimSpace(c.Command.HelpName)))
	}
	if c.Command.Name == c.App.Name {
		return cli.ShowAppHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// noArguments is for commands that take none.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return usage(fmt.Errorf("%s takes no argument, got %q: see kata-qat %[1]s --help", c.Command.Name, c.Args().First()))
	}
	return nil
}

// outputFlag chooses how the result is written.
func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: string(output.Table), Usage: "`FORMAT`: table, json or yaml"}
}

// loadConfig reads the configuration.
func loadConfig(c *cli.Context) (*config.Config, error) {
	if c.IsSet("config") {
		return config.Load(c.String("config"), true)
	}
	return config.Load(filepath.Join(c.String("host-root"), config.Path), false)
}
