package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/qat"
	hostsetup "github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
)

func provisionCommand() *cli.Command {
	return &cli.Command{
		Name:  "provision",
		Usage: "make a machine ready, or put it back as it was",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "if-devices", Usage: "on a machine without QAT devices do nothing, and succeed"},
		},
		Before:      unlessBare,
		Subcommands: append([]*cli.Command{provisionHostCommand()}, provisioners()...),
	}
}

// unlessBare ends the command where there is nothing to provision, if it may: a
// DaemonSet comes to every node of a cluster.
func unlessBare(c *cli.Context) error {
	if !c.Bool("if-devices") {
		return nil
	}
	inv, err := qat.Discover(c.String("host-root"))
	if err != nil || len(inv.PFs) > 0 || len(inv.Orphans) > 0 {
		return err
	}
	fmt.Fprintln(c.App.Writer, "Nothing to do: this machine has no QAT device.")
	return cli.Exit("", exitOK)
}

func provisionHostCommand() *cli.Command {
	return &cli.Command{
		Name:  "host",
		Usage: "drivers, SR-IOV and VFIO: make the VFs of this machine's QAT cards ready for VMs",
		Description: `Checks the machine, then changes what is not as it should be: kernel command line,
modules, services, the number of VFs and what they are bound to. What was there
before is kept in ` + plan.Directory + `/journal.json, from which --undo restores it. A second run
changes nothing; one that was killed is completed by another. If the IOMMU is
off, it is switched on for the next boot, and a unit of systemd goes on then.

Which PFs, and what they are to be like, stands in the tables provision.pf of the
configuration, or in flags, which take the place of those tables. Without either
every PF gets all its VFs, bound to vfio-pci, and keeps its services.

Examples:
   kata-qat provision host --dry-run
   kata-qat provision host
   kata-qat provision host --pf 0000:6b:00.0 --services "sym;asym" --auto-reset on
   kata-qat provision host --driver packages
   kata-qat provision host --undo

Exit codes: 0 all is as it should be; 1 it failed; 2 with --dry-run: something
would be changed; 3 the machine must be rebooted to go on.`,
		Flags: []cli.Flag{
			dryRunFlag(),
			undoFlag(),
			&cli.StringSliceFlag{Name: "pf", Usage: "only the PF at this `ADDRESS`; may be given several times"},
			&cli.StringFlag{Name: "family", Usage: "only PFs of this `FAMILY`: 4xxx, c62x, ..."},
			&cli.IntFlag{Name: "numa", Usage: "only PFs of this NUMA `NODE`"},
			&cli.StringFlag{Name: "services", Usage: "the `SERVICES` of these PFs: \"sym;asym\", dc, ..."},
			&cli.IntFlag{Name: "vfs", Usage: "`NUMBER` of VFs of each PF (default: all)"},
			&cli.StringFlag{Name: "vf-driver", Usage: "`DRIVER` of the VFs: vfio-pci or qat_vfio_pci"},
			&cli.StringFlag{Name: "auto-reset", Usage: "`on` or off: let the driver reset a device that hangs"},
			&cli.StringFlag{Name: "driver", Usage: "`SOURCE` of drivers and firmware: packages"},
			&cli.StringFlag{Name: "driver-archive", Usage: "build and install the driver release in this local `FILE`, below --host-root"},
			&cli.StringFlag{Name: "driver-sha256", Usage: "`DIGEST` of --driver-archive"},
			outputFlag(),
		},
		Action: provisionHost,
	}
}

func provisionHost(c *cli.Context) error {
	run, err := parseRun(c)
	if err != nil {
		return err
	}
	flags, err := provisionFlags(c, &run.config.Provision)
	if err != nil {
		return usage(err)
	}
	return run.steps(c, hostsetup.Steps(hostsetup.Options{
		Root: c.String("host-root"), Config: run.config.Provision, AllowNoIOMMU: run.config.AllowNoIOMMU, BootFlags: flags,
	}))
}

// ruleFlags are the flags that make a rule for PFs. The run at boot repeats
// them; where drivers come from is for a person to say each time.
var ruleFlags = []string{"family", "numa", "services", "vfs", "vf-driver", "auto-reset"}

// plainValue is what a value of those flags can be, and systemd takes as one word
// without quotes.
var plainValue = lazyregexp.New(`^[A-Za-z0-9;:._/-]+$`)

// provisionFlags puts what flags say into the configuration, and returns the
// flags that a run at boot must have to do the same.
func provisionFlags(c *cli.Context, p *config.Provision) (flags []string, _ error) {
	for _, name := range ruleFlags {
		if c.IsSet(name) {
			flags = append(flags, fmt.Sprintf("--%s=%v", name, c.Value(name)))
		}
	}
	for _, a := range c.StringSlice("pf") {
		flags = append(flags, "--pf="+a)
	}
	rules := len(flags) > 0
	if f := bootConfig(c); f != "" {
		flags = append(flags, "--config="+f)
	}
	for _, f := range flags {
		if name, value, _ := strings.Cut(f, "="); !plainValue.MatchString(value) {
			return nil, fmt.Errorf("%s %q: see kata-qat provision host --help", name, value)
		}
	}
	if rules {
		var err error
		if p.PF, err = flagRules(c); err != nil {
			return nil, err
		}
	}
	if c.IsSet("driver") {
		p.Driver.Source = c.String("driver")
	}
	if c.IsSet("driver-archive") {
		p.Driver.Source, p.Driver.Archive, p.Driver.SHA256 = config.DriverArchive, c.String("driver-archive"), c.String("driver-sha256")
	}
	return flags, p.Check()
}

// bootConfig is the configuration that was named, as the machine sees it; "" for
// the usual one, and for one that the machine does not see, which is a
// container's.
func bootConfig(c *cli.Context) string {
	if !c.IsSet("config") {
		return ""
	}
	file, err := filepath.Abs(c.String("config"))
	if err != nil {
		return ""
	}
	below, err := filepath.Rel(c.String("host-root"), file)
	if err != nil || !filepath.IsLocal(below) {
		return ""
	}
	return "/" + below
}

// flagRules are the rules that flags make: one for each --pf, or one for all.
func flagRules(c *cli.Context) ([]config.PFRule, error) {
	rule := config.PFRule{Match: config.Match{Family: c.String("family")}, Services: c.String("services"), Driver: c.String("vf-driver")}
	if c.IsSet("numa") {
		node := c.Int("numa")
		rule.Match.NUMA = &node
	}
	if c.IsSet("vfs") {
		n := c.Int("vfs")
		rule.VFs = &n
	}
	if c.IsSet("auto-reset") {
		on := c.String("auto-reset") == "on"
		if !on && c.String("auto-reset") != "off" {
			return nil, fmt.Errorf("--auto-reset %q: expected on or off", c.String("auto-reset"))
		}
		rule.AutoReset = &on
	}
	addresses := c.StringSlice("pf")
	if len(addresses) == 0 {
		return []config.PFRule{rule}, nil
	}
	var rules []config.PFRule
	for _, a := range addresses {
		rule.Match.Address = a
		rules = append(rules, rule)
	}
	return rules, nil
}
