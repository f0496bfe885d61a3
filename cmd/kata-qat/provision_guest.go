//go:build !entry

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/node"
)

func provisionGuestCommand() *cli.Command {
	return &cli.Command{
		Name:  "guest",
		Usage: "make the kernel and the root of a Kata VM in which a QAT VF can be used",
		Description: `Takes a kernel and Kata's initrd or image, and puts into a copy of the latter
the kernel's modules that QAT and Kata need, the devices' configuration files, and
what loads them. Nothing that is there is changed: the result is a directory of
its own, to which the link "current" in --out leads as soon as it is whole.

The kernel is one that is installed here, or is built from its source with the
options of kata-qat kernel-config. A second run with the same inputs changes
nothing.

Examples:
   kata-qat provision guest --base /opt/kata/share/kata-containers/kata-containers-initrd.img
   kata-qat provision guest --base kata-initrd.img --kernel 6.12.117-cloud-amd64 --families c62x --dry-run
   kata-qat provision guest --base kata.img --kernel-source linux-6.12.tar.xz --profile guest-kernel
   kata-qat provision guest --verify

Exit codes: 0 all is as it should be; 1 it failed; 2 with --dry-run: something
would be made.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "base", Usage: "Kata's initrd or raw disk image, a `FILE` (default: that of the installation)"},
			&cli.StringFlag{Name: "base-verity", Usage: "dm-verity's `PARAMETERS` of the base, as kernel_verity_params of Kata's configuration has them (default: of the file root_hash*.txt beside it that fits)"},
			&cli.StringFlag{Name: "kernel", Usage: "installed `KERNEL`: its release, or a directory with it (default: the one that runs)"},
			&cli.StringFlag{Name: "kernel-source", Usage: "build the kernel from this tree or archive, a `DIR|TARBALL`"},
			&cli.StringFlag{Name: "kernel-config", Usage: "configuration `FILE` that --kernel-source starts from (default: x86_64_defconfig and what Kata needs)"},
			&cli.StringFlag{Name: "profile", Value: string(edits.ProfileVFIO), Usage: "`PROFILE` that the guest serves: vfio or guest-kernel"},
			&cli.StringSliceFlag{Name: "families", Usage: "QAT `FAMILY` to serve, such as c62x or \"4xxx=sym;asym\" (again for more; default: those of this machine)"},
			&cli.StringSliceFlag{Name: "module", Usage: "a further `MODULE` of the kernel to put in (again for more)"},
			&cli.StringFlag{Name: "driver-archive", Usage: "the vendor's driver package, a `TARBALL`, for families without a driver in Linux"},
			&cli.StringFlag{Name: "driver-sha256", Usage: "its `DIGEST`"},
			&cli.StringFlag{Name: "busybox", Usage: "statically linked busybox for a base without modprobe, a `FILE`"},
			&cli.StringFlag{Name: "out", Usage: "`DIR` that the guest is kept in (default: " + guest.DefaultOut + "/PROFILE below --host-root)"},
			&cli.BoolFlag{Name: "plain", Usage: "do not compress what is added to an initrd"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be made, and change nothing"},
			&cli.BoolFlag{Name: "verify", Usage: "check the guest in --out against its manifest"},
			&cli.BoolFlag{Name: "undo", Usage: "go back to the guest that was in --out before"},
			outputFlag(),
		},
		Action: provisionGuest,
	}
}

// limitMemory has the collector clean up before a lot has gathered: a window of zstd
// is up to 128 MiB, and one more is made while the last still lies around. All that
// is needed at once is less than this.
func limitMemory() {
	const most = 128 << 20
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(most)
	}
}

func provisionGuest(c *cli.Context) error {
	limitMemory()
	if err := noArguments(c); err != nil {
		return err
	}
	format, err := output.ParseFormat(c.String("output"))
	if err != nil {
		return usage(err)
	}
	o, err := guestOptions(c)
	if err != nil {
		return usage(err)
	}
	out := c.App.Writer
	switch {
	case c.Bool("verify"):
		if err := guest.Verify(c.Context, o.Out); err != nil {
			return err
		}
		m, err := guest.ReadManifest(currentGuest(o.Out))
		if err != nil {
			return err
		}
		return writeGuest(out, format, m, "The guest in "+o.Out+" is as its manifest says: "+m.Summary()+".\n")
	case c.Bool("undo"):
		m, err := guest.Undo(o.Out)
		if err != nil {
			return err
		}
		if m == nil {
			return writeGuest(out, format, nil, "There is no guest in "+o.Out+" any more.\n")
		}
		return writeGuest(out, format, m, "The guest in "+o.Out+" is the one before: "+m.Summary()+".\n")
	}
	if o.Base == "" {
		if o.Base, err = node.KatasRoot(o.Root); err != nil {
			return err
		}
	}
	if len(o.Families) == 0 {
		inv, err := qat.Discover(c.String("host-root"))
		if err != nil {
			return err
		}
		if o.Families = guest.FamiliesOf(inv); len(o.Families) == 0 {
			return usage(errors.New("this machine has no QAT device: name the families that the guest is to serve with --families"))
		}
	}
	progress := newProgress(c.App.ErrWriter)
	o.Progress = progress.show
	start := time.Now()
	d, err := guest.Prepare(c.Context, o, !c.Bool("dry-run"))
	if err != nil {
		progress.end()
		return err
	}
	for _, n := range d.Notes {
		progress.end()
		fmt.Fprintf(c.App.ErrWriter, "kata-qat: note: %s\n", n)
	}
	if c.Bool("dry-run") {
		if err := writeDesign(out, format, d, o.Out); err != nil || d.Unchanged {
			return err
		}
		return cli.Exit("", exitPending)
	}
	m, err := d.Make(c.Context)
	progress.end()
	if err != nil {
		return err
	}
	if d.Unchanged {
		return writeGuest(out, format, m, fmt.Sprintf("Nothing to do: the guest in %s was made from the same and is whole: %s.\n", o.Out, m.Summary()))
	}
	text := fmt.Sprintf("Made %s in %.1f s.\n", m.Summary(), time.Since(start).Seconds()) + m.Details(currentGuest(o.Out))
	return writeGuest(out, format, m, text)
}

func currentGuest(out string) string { return filepath.Join(out, guest.Current) }

func guestOptions(c *cli.Context) (guest.Options, error) {
	o := guest.Options{
		Root: c.String("host-root"), Kernel: c.String("kernel"), Source: c.String("kernel-source"), Config: c.String("kernel-config"),
		Base: c.String("base"), BaseVerity: c.String("base-verity"), Out: c.String("out"), Profile: edits.Profile(c.String("profile")), Modules: c.StringSlice("module"),
		DriverArchive: c.String("driver-archive"), DriverSHA256: c.String("driver-sha256"), Busybox: c.String("busybox"), Plain: c.Bool("plain"),
	}
	if _, err := edits.ParseProfile(string(o.Profile)); err != nil {
		return o, err
	}
	if o.Out == "" {
		o.Out = filepath.Join(o.Root, guest.DefaultOut, string(o.Profile))
	}
	var err error
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return o, err
	}
	o.Families, err = families(c)
	return o, err
}

// families are those that a command was given.
func families(c *cli.Context) (all []guest.Family, _ error) {
	for _, s := range c.StringSlice("families") {
		f, err := guest.ParseFamily(s)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func writeGuest(w io.Writer, f output.Format, m *guest.Manifest, text string) error {
	if f != output.Table {
		return output.Data(w, f, m)
	}
	_, err := io.WriteString(w, text)
	return err
}

func writeDesign(w io.Writer, f output.Format, d *guest.Design, out string) error {
	if f != output.Table {
		return output.Data(w, f, d)
	}
	switch {
	case len(d.Commands) > 0:
		fmt.Fprintln(w, "Would build first, and then know what goes into the root:")
		for _, c := range d.Commands {
			fmt.Fprintln(w, "  "+strings.Join(c, " "))
		}
		return nil
	case d.Unchanged:
		fmt.Fprintf(w, "Nothing to do: the guest in %s was made from the same and is whole: %s.\n", out, d.Manifest.Summary())
		return nil
	}
	fmt.Fprintf(w, "Would make Linux %s and %s from %s in %s:\n", d.Manifest.Kernel.Release, d.Manifest.Root.File, d.Manifest.Root.Base.Name, filepath.Join(out, d.Manifest.ID))
	var rows [][]string
	for _, file := range d.Manifest.Files {
		what := fmt.Sprintf("%d bytes", file.Size)
		if file.Target != "" {
			what = "link to " + file.Target
		}
		rows = append(rows, []string{file.Path, file.Mode, what})
	}
	return output.Rows(w, []string{"FILE", "MODE", "CONTENT"}, rows)
}

// progress shows on a terminal what is being done, on one line.
type progress struct {
	w     io.Writer
	last  time.Time
	shown bool
}

func newProgress(w io.Writer) *progress {
	if !output.Terminal(w) || os.Getenv("TERM") == "dumb" {
		return &progress{}
	}
	return &progress{w: w}
}

// show takes too many calls to show them all: a build prints thousands of lines.
func (p *progress) show(what string, done, of int) {
	if p.w == nil || of == 0 && time.Since(p.last) < 100*time.Millisecond {
		return
	}
	const width = 70
	line := output.Text(what)
	switch {
	case of > 0:
		line = fmt.Sprintf("[%d/%d] %s", done, of, line)
	case done > 0:
		line = fmt.Sprintf("[%d] %s", done, line)
	}
	fmt.Fprintf(p.w, "\r\x1b[K%.*s", width, line)
	p.last, p.shown = time.Now(), true
}

func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
