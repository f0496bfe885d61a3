//go:build !entry

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/output"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
)

func kernelConfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "kernel-config",
		Usage: "show, check and merge the kernel options that QAT in Kata needs",
		Description: `The options come as fragments: for the host or the guest, by profile and QAT
family, each option with its reason and the Linux release that it came with.

--for guest and --profile or --family choose among them. What is not named so is
shown but not required.

Examples:
   kata-qat kernel-config list
   kata-qat kernel-config check                       the kernel that runs here
   kata-qat kernel-config merge --help`,
		Subcommands: []*cli.Command{kernelConfigList(), kernelConfigShow(), kernelConfigCheck(), kernelConfigMerge()},
	}
}

// selectionFlags choose fragments.
func selectionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "for", Value: string(kernelconfig.Host), Usage: "`SIDE` whose kernel it is: host or guest"},
		&cli.StringSliceFlag{Name: "profile", Usage: "`PROFILE` that the guest serves: vfio or guest-kernel (again for more)"},
		&cli.StringSliceFlag{Name: "family", Usage: "QAT `FAMILY`, such as c62x or 4xxx (again for more)"},
		&cli.BoolFlag{Name: "vendor", Usage: "the vendor's out-of-tree drivers instead of Linux's"},
	}
}

func selection(c *cli.Context) ([]kernelconfig.Selected, error) {
	s := kernelconfig.Selection{Side: kernelconfig.Side(c.String("for")), Families: c.StringSlice("family"), Vendor: c.Bool("vendor")}
	for _, p := range c.StringSlice("profile") {
		s.Profiles = append(s.Profiles, edits.Profile(p))
	}
	selected, err := kernelconfig.Select(s)
	return selected, usage(err)
}

func kernelConfigList() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the fragments",
		Description: `Lists the fragments, and with -o json|yaml their options.

Examples:
   kata-qat kernel-config list
   kata-qat kernel-config list -o json | jq -r '.[].symbols[].name' | sort -u`,
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			return kernelconfig.WriteList(c.App.Writer, format, kernelconfig.Fragments())
		},
	}
}

func kernelConfigShow() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "print fragments, for the kernel's merge_config.sh or to read",
		ArgsUsage: "[FRAGMENT...]",
		Description: `Prints the fragments that are named, or those that the flags choose. --kernel
leaves out what that release does not have.

Examples:
   kata-qat kernel-config show guest/vfio
   kata-qat kernel-config show --for guest --profile guest-kernel --family c62x --kernel 6.12 >qat.config`,
		Flags: append(selectionFlags(), kernelFlag()),
		BashComplete: suggest(func(*cli.Context) []string {
			var all []string
			for _, f := range kernelconfig.Fragments() {
				all = append(all, f.Name)
			}
			return all
		}),
		Action: func(c *cli.Context) error {
			version, err := kernelVersion(c)
			if err != nil {
				return err
			}
			fragments, err := namedFragments(c)
			if err != nil {
				return err
			}
			for i, f := range fragments {
				if i > 0 {
					fmt.Fprintln(c.App.Writer)
				}
				fmt.Fprintf(c.App.Writer, "## %s\n", f.Name)
				if _, err := io.WriteString(c.App.Writer, f.For(version)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func namedFragments(c *cli.Context) ([]kernelconfig.Fragment, error) {
	var all []kernelconfig.Fragment
	if !c.Args().Present() {
		selected, err := selection(c)
		for _, s := range selected {
			all = append(all, s.Fragment)
		}
		return all, err
	}
	for _, name := range c.Args().Slice() {
		f, err := kernelconfig.ByName(name)
		if err != nil {
			return nil, usage(err)
		}
		all = append(all, f)
	}
	return all, nil
}

func kernelFlag() cli.Flag {
	return &cli.StringFlag{Name: "kernel", Usage: "Linux `RELEASE`, such as 6.12"}
}

func kernelVersion(c *cli.Context) (kernelconfig.Version, error) {
	if !c.IsSet("kernel") {
		return kernelconfig.Version{}, nil
	}
	v, err := kernelconfig.ParseVersion(c.String("kernel"))
	return v, usage(err)
}

func kernelConfigCheck() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "tell what a kernel's configuration lacks",
		ArgsUsage: "[CONFIG|-]",
		Description: `Tells of each option whether the kernel has it: set, module, missing, impossible
in its release, or off as it is to be. CONFIG may be compressed by gzip; "-" is stdin; without it,
the configuration of the kernel that runs below --host-root is checked:
/proc/config.gz or /boot/config-RELEASE. The exit code is 1 when something that
is required is not as it must be.

Examples:
   kata-qat kernel-config check --family 4xxx
   kata-qat kernel-config check /boot/config-6.1.0-18-amd64
   kata-qat kernel-config check --for guest --profile vfio vmlinux.config`,
		Flags: append(selectionFlags(), kernelFlag(), outputFlag()),
		Action: func(c *cli.Context) error {
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			version, err := kernelVersion(c)
			if err != nil {
				return err
			}
			selected, err := selection(c)
			if err != nil {
				return err
			}
			config, name, err := readKernelConfig(c)
			if err != nil {
				return err
			}
			checked := kernelconfig.NewChecked(name, config, version, selected)
			if err := kernelconfig.WriteChecked(c.App.Writer, format, checked); err != nil {
				return err
			}
			return checked.Err()
		},
	}
}

func readKernelConfig(c *cli.Context) (*kernelconfig.Config, string, error) {
	switch name := c.Args().First(); {
	case c.NArg() > 1:
		return nil, "", usage(fmt.Errorf("check takes one configuration, got %q too: see kata-qat kernel-config check --help", c.Args().Get(1)))
	case name == "-":
		config, err := kernelconfig.ParseConfig(os.Stdin)
		if err != nil {
			err = fmt.Errorf("read kernel config from stdin: %w", err)
		}
		return config, "stdin", err
	case name != "":
		config, err := kernelconfig.ReadConfig(name)
		return config, name, err
	}
	name, err := kernelconfig.Running(c.String("host-root"))
	if err != nil {
		return nil, "", err
	}
	config, err := kernelconfig.ReadConfig(name)
	return config, name, err
}

func kernelConfigMerge() *cli.Command {
	return &cli.Command{
		Name:      "merge",
		Usage:     "configure a kernel tree with the fragments",
		ArgsUsage: "[FILE...]",
		Description: `Merges the fragments that the flags choose, then the FILEs, into a base, with the
tree's own merge_config.sh and make. The result is BUILD/.config; the tree stays
as it is. It fails, and names each option and why, when one is not in the result.
Nothing is compiled but the kernel's configuration tool: needs make, gcc, flex, bison.

Examples:
   kata-qat kernel-config merge --source linux-6.12 --build /tmp/guest --for guest --profile vfio
   kata-qat kernel-config merge --source linux-6.12 --build /tmp/guest --for guest \
      --profile guest-kernel --family c62x --base kata.config --minimal`,
		Flags: append(selectionFlags(),
			&cli.StringFlag{Name: "source", Usage: "`DIR` of the kernel tree"},
			&cli.StringFlag{Name: "build", Usage: "`DIR` to write to (make's O=)"},
			&cli.StringFlag{Name: "base", Usage: "configuration `FILE` to begin with; without it, --defconfig"},
			&cli.StringFlag{Name: "defconfig", Value: "x86_64_defconfig", Usage: "make `TARGET` to begin with"},
			&cli.BoolFlag{Name: "minimal", Usage: "turn off what neither the base nor a fragment names, as Kata does"},
			&cli.BoolFlag{Name: "verbose", Usage: "show what make says"},
			outputFlag()),
		Action: func(c *cli.Context) error {
			format, err := output.ParseFormat(c.String("output"))
			if err != nil {
				return usage(err)
			}
			if c.String("source") == "" || c.String("build") == "" {
				return usage(errors.New("merge needs --source and --build: see kata-qat kernel-config merge --help"))
			}
			if c.IsSet("base") && c.IsSet("defconfig") {
				return usage(errors.New("--base and --defconfig: expected one of them"))
			}
			m := kernelconfig.Merge{Source: c.String("source"), Output: c.String("build"), Base: c.String("base"), Minimal: c.Bool("minimal"), Extra: c.Args().Slice()}
			if m.Base == "" {
				m.Target = c.String("defconfig")
			}
			if c.Bool("verbose") {
				m.Log = c.App.ErrWriter
			}
			if m.Fragments, err = selection(c); err != nil {
				return err
			}
			merged, err := m.Run(c.Context)
			if err != nil {
				return err
			}
			return kernelconfig.WriteMerged(c.App.Writer, format, *merged)
		},
	}
}
