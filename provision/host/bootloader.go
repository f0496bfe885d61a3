package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// loader is a boot loader whose configuration can be changed.
type loader interface {
	name() string
	// plan says what is to be changed for the next kernel to be started with
	// these parameters; nothing if it is already.
	plan([]parameter) ([]plan.Change, error)
	apply(ctx context.Context, j *plan.Journal, step string, params []parameter) error
}

// loader finds out how this machine's kernel is started; nil if that is not
// known. Where there is grubby, it knows all that the distribution uses.
func (s *commandLine) loader(ctx context.Context) (loader, error) {
	if s.runner.Find("grubby") != "" {
		out, err := s.runner.RunUnconfined(ctx, "", "grubby", "--info=ALL")
		if err != nil {
			return nil, err
		}
		return &grubby{s.machine, parseGrubby(out)}, nil
	}
	if s.exists("/etc/default/grub") {
		for _, c := range grubCommands {
			if s.runner.Find(c.argv[0]) != "" && (c.output == "" || s.exists(path.Dir(c.output))) {
				return &grub{s.machine, c.argv}, nil
			}
		}
	}
	entries, err := s.loaderEntries()
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 || s.exists(kernelCmdline) {
		return &systemdBoot{s.machine, entries}, nil
	}
	return nil, nil
}

// --- GRUB, as Debian and Ubuntu have it ---

// grubDropIn is read after /etc/default/grub, and after the drop-ins of cloud
// images, which set the variable anew (50-cloudimg-settings.cfg).
const grubDropIn = "/etc/default/grub.d/90-kata-qat.cfg"

// grubCommands make GRUB's configuration from /etc/default/grub.
var grubCommands = []struct {
	argv   []string
	output string
}{
	{argv: []string{"update-grub"}},
	{argv: []string{"grub2-mkconfig", "-o", "/boot/grub2/grub.cfg"}, output: "/boot/grub2/grub.cfg"},
	{argv: []string{"grub-mkconfig", "-o", "/boot/grub/grub.cfg"}, output: "/boot/grub/grub.cfg"},
}

type grub struct {
	*machine
	update []string
}

func (*grub) name() string { return "GRUB (" + grubDropIn + ")" }

// file is the drop-in. GRUB_CMDLINE_LINUX_DEFAULT comes last on the command line
// (grub.d/10_linux), and of intel_iommu= the last counts.
func (g *grub) file(params []parameter) file {
	var why []string
	for _, p := range params {
		why = append(why, p.text+": "+p.why)
	}
	return file{
		name: grubDropIn,
		content: "# Written by kata-qat provision host, which takes it away with --undo.\n" +
			"GRUB_CMDLINE_LINUX_DEFAULT=\"${GRUB_CMDLINE_LINUX_DEFAULT} " + strings.Join(texts(params), " ") + "\"\n",
		why: strings.Join(why, "; "),
	}
}

func (g *grub) plan(params []parameter) ([]plan.Change, error) {
	// What GRUB made of it shows that update-grub ran, too.
	for _, cfg := range []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"} {
		b, err := g.read(cfg)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if bootsWith(string(b), params) {
			return nil, nil
		}
	}
	changes, err := g.planFiles(g.file(params))
	if err != nil || len(changes) > 0 {
		return changes, err
	}
	return g.planRerun(g.update), nil
}

// bootsWith tells whether a grub.cfg's first entry starts Linux with parameters.
func bootsWith(cfg string, params []parameter) bool {
	for line := range strings.Lines(cfg) {
		if f := strings.Fields(line); len(f) > 0 && (f[0] == "linux" || f[0] == "linuxefi" || f[0] == "linux16") {
			return len(lacks(line, params)) == 0
		}
	}
	return false
}

func (g *grub) apply(ctx context.Context, j *plan.Journal, step string, params []parameter) error {
	return g.writeAndRun(ctx, j, step, g.update, g.file(params))
}

// rerunMark is there from before a boot loader's files are changed until its
// program has read them, so that a run after one that was killed in between runs
// it.
const rerunMark = plan.Directory + "/boot-loader-to-be-run"

func (m *machine) planRerun(argv []string) []plan.Change {
	if !m.exists(rerunMark) {
		return nil
	}
	return []plan.Change{{Object: "boot loader", From: "not run since its files were changed", To: "run: " + strings.Join(argv, " "), Why: "an earlier run was stopped before"}}
}

// writeAndRun changes files and runs the program that reads them, which Undo
// runs too.
func (m *machine) writeAndRun(ctx context.Context, j *plan.Journal, step string, argv []string, files ...file) error {
	r, err := plan.NewRecord(step, kindRun, argv[0], argv, nil)
	if err != nil {
		return err
	}
	if err := j.Save(r); err != nil {
		return err
	}
	if err := m.applyFiles(j, step, append([]file{{name: rerunMark, content: argv[0] + "\n"}}, files...)...); err != nil {
		return err
	}
	if err := j.Reached("boot loader's files written"); err != nil {
		return err
	}
	if _, err := m.runner.RunUnconfined(ctx, "", argv[0], argv[1:]...); err != nil {
		return err
	}
	if err := j.Reached("boot loader run"); err != nil {
		return err
	}
	mark, err := m.path(rerunMark)
	if err != nil {
		return err
	}
	return os.Remove(mark)
}

// --- grubby, as Fedora and RHEL have it ---

// entry is a boot entry of grubby's.
type entry struct{ kernel, args string }

type grubby struct {
	*machine
	entries []entry
}

// grubbyState is what a boot entry lacked.
type grubbyState struct {
	Kernel string   `json:"kernel"`
	Lacked []string `json:"lacked"`
}

func parseGrubby(out string) (entries []entry) {
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"`)
		switch key {
		case "kernel":
			entries = append(entries, entry{kernel: value})
		case "args":
			if len(entries) > 0 {
				entries[len(entries)-1].args = value
			}
		}
	}
	return entries
}

func (*grubby) name() string { return "the boot loader (grubby)" }

func (g *grubby) plan(params []parameter) (changes []plan.Change, _ error) {
	for _, e := range g.entries {
		if missing := lacks(e.args, params); len(missing) > 0 {
			changes = append(changes, plan.Change{
				Object: "boot entry of " + e.kernel, From: e.args,
				To: strings.TrimSpace(e.args + " " + strings.Join(texts(missing), " ")), Why: missing[0].why,
			})
		}
	}
	later, err := g.newKernels().plan(params)
	return append(changes, later...), err
}

// newKernels is the line that kernel-install gives kernels to come.
func (g *grubby) newKernels() *systemdBoot { return &systemdBoot{machine: g.machine} }

func (g *grubby) apply(ctx context.Context, j *plan.Journal, step string, params []parameter) error {
	for _, e := range g.entries {
		missing := texts(lacks(e.args, params))
		if len(missing) == 0 {
			continue
		}
		// What is added is noted, not the whole line: others may change it too.
		r, err := plan.NewRecord(step, kindGrubby, e.kernel+" "+strings.Join(missing, " "), grubbyState{e.kernel, missing}, nil)
		if err != nil {
			return err
		}
		if err := j.Save(r); err != nil {
			return err
		}
		if _, err := g.runner.RunUnconfined(ctx, "", "grubby", "--update-kernel="+e.kernel, "--args="+strings.Join(missing, " ")); err != nil {
			return err
		}
	}
	files, err := g.newKernels().files(params)
	if err != nil {
		return err
	}
	return g.applyFiles(j, step, files...)
}

func (s *commandLine) undoGrubby(ctx context.Context, r plan.Record) error {
	var was grubbyState
	if err := json.Unmarshal(r.Before, &was); err != nil {
		return err
	}
	if s.runner.Find("grubby") == "" || !s.exists(was.Kernel) {
		return nil // a kernel that is gone has no boot entry
	}
	_, err := s.runner.RunUnconfined(ctx, "", "grubby", "--update-kernel="+was.Kernel, "--remove-args="+strings.Join(was.Lacked, " "))
	return err
}

// --- systemd-boot, and other readers of loader entries ---

// kernelCmdline is what kernel-install gives new kernels.
const kernelCmdline = "/etc/kernel/cmdline"

// entryDirs are where loader entries may be (UAPI.1 Boot Loader Specification).
var entryDirs = []string{"/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"}

type systemdBoot struct {
	*machine
	entries []string
}

func (m *machine) loaderEntries() (entries []string, _ error) {
	for _, dir := range entryDirs {
		p, err := m.path(dir)
		if err != nil {
			return nil, err
		}
		files, err := os.ReadDir(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".conf") {
				entries = append(entries, path.Join(dir, f.Name()))
			}
		}
	}
	return entries, nil
}

func (*systemdBoot) name() string { return "systemd-boot" }

var optionsLine = lazyregexp.New(`(?m)^options[ \t].*$`)

// files are what the entries and the line for new kernels are to be.
func (b *systemdBoot) files(params []parameter) (files []file, _ error) {
	for _, name := range append(slices.Clone(b.entries), kernelCmdline) {
		content, err := b.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f := file{name: name, content: string(content)}
		line := strings.TrimRight(f.content, "\n")
		if name != kernelCmdline {
			line = strings.Join(optionsLine.FindAllString(f.content, -1), " ")
			if line == "" {
				continue // not an entry of Linux
			}
		}
		missing := lacks(line, params)
		if len(missing) == 0 {
			continue
		}
		f.why = missing[0].why
		added := " " + strings.Join(texts(missing), " ")
		if name == kernelCmdline {
			f.content = line + added + "\n"
		} else {
			at := optionsLine.FindAllStringIndex(f.content, -1)
			end := at[len(at)-1][1]
			f.content = f.content[:end] + added + f.content[end:]
		}
		files = append(files, f)
	}
	return files, nil
}

func (b *systemdBoot) plan(params []parameter) ([]plan.Change, error) {
	files, err := b.files(params)
	if err != nil {
		return nil, err
	}
	changes, err := b.planFiles(files...)
	if err != nil || len(changes) > 0 {
		return changes, err
	}
	return b.planRerun(kernelInstall), nil
}

func (b *systemdBoot) apply(ctx context.Context, j *plan.Journal, step string, params []parameter) error {
	files, err := b.files(params)
	if err != nil {
		return err
	}
	if len(b.entries) > 0 {
		return b.applyFiles(j, step, files...)
	}
	// Without entries the line is inside of the kernels' images.
	if b.runner.Find(kernelInstall[0]) == "" {
		return fmt.Errorf("the machine has no kernel-install to put %s into the kernels' images: expected one, or loader entries", kernelCmdline)
	}
	return b.writeAndRun(ctx, j, step, kernelInstall, files...)
}

var kernelInstall = []string{"kernel-install", "add-all"}
