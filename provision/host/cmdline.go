package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// commandLine is the step that has the kernel started with an IOMMU.
type commandLine struct{ *machine }

func (*commandLine) Name() string { return "kernel-command-line" }

// wanted are the parameters that the kernel is to be started with, and why.
func (s *commandLine) wanted() ([]parameter, error) {
	ts, err := s.targets()
	if err != nil {
		return nil, err
	}
	return s.parameters(ts), nil
}

func (s *commandLine) parameters(ts []target) []parameter {
	params := []parameter{
		{"intel_iommu=on", "without an IOMMU no VF can be confined to a VM"},
		{"iommu=pt", "the host's own devices need no translation, and are slower with it"},
	}
	if s.exists("/sys/firmware/acpi/tables/IVRS") { // AMD's is on by itself
		params = params[1:]
	}
	if deny := denyListed(ts); deny != nil && s.kernel().builtin["vfio_pci"] {
		params = append(params, parameter{"vfio-pci.disable_denylist=1", deny.why() + ", and vfio-pci is built into this kernel"})
	}
	return params
}

// parameter is a kernel parameter.
type parameter struct{ text, why string }

func texts(params []parameter) (all []string) {
	for _, p := range params {
		all = append(all, p.text)
	}
	return all
}

// lacks are the parameters that a command line does not have.
func lacks(cmdline string, params []parameter) (missing []parameter) {
	words := strings.Fields(cmdline)
	for _, p := range params {
		if !slices.Contains(words, p.text) {
			missing = append(missing, p)
		}
	}
	return missing
}

// missing are the parameters that the running kernel was started without.
func (s *commandLine) missing() ([]parameter, error) {
	params, err := s.wanted()
	if err != nil {
		return nil, err
	}
	cmdline, err := s.text("/proc/cmdline")
	return lacks(cmdline, params), err
}

func (s *commandLine) Check(ctx context.Context) (plan.State, error) {
	missing, err := s.missing()
	if err != nil {
		return plan.State{}, err
	}
	if len(missing) == 0 {
		return plan.State{Is: "the kernel was started with all parameters"}, nil
	}
	state := plan.State{Is: "the kernel was started without " + strings.Join(texts(missing), " ")}
	if !s.config.KernelCommandLine {
		state.Notes = append(state.Notes, "provision.kernel_command_line is false: the boot loader's configuration stays as it is")
		return state, nil
	}
	loader, err := s.loader(ctx)
	if err != nil {
		return state, err
	}
	required := s.rebootFor()
	if loader == nil {
		if required != "" {
			return state, fmt.Errorf("the kernel needs %s, and no boot loader is known here (looked for grubby, GRUB's update-grub and grub2-mkconfig, loader entries and /etc/kernel/cmdline): add them to the kernel's command line and reboot", strings.Join(texts(missing), " "))
		}
		state.Notes = append(state.Notes, "no boot loader is known here; the IOMMU is on without these parameters")
		return state, nil
	}
	changes, err := loader.plan(missing)
	if err != nil {
		return state, err
	}
	if len(changes) == 0 {
		state.Is += "; " + loader.name() + " has them for the next boot"
		if required != "" && s.rebooted() {
			return state, fmt.Errorf("%s has %s, and the machine was started anew without: is another boot entry or boot loader in use? see /proc/cmdline", loader.name(), strings.Join(texts(missing), " "))
		}
	}
	return state, nil
}

// rebootFor says what cannot go on before the kernel's parameters are in force;
// "" when all can.
func (m *machine) rebootFor() string {
	s := &commandLine{m}
	missing, err := s.missing()
	if err != nil || m.AllowNoIOMMU {
		return ""
	}
	if !m.iommuOn() {
		return "the IOMMU is off until the machine is started with the new kernel command line"
	}
	for _, p := range missing {
		if strings.HasPrefix(p.text, "vfio-pci.") {
			return p.text + " is in force only after the next boot"
		}
	}
	return ""
}

// rebooted tells whether the machine was started anew since this step changed
// the boot loader.
func (s *commandLine) rebooted() bool {
	mark, err := s.read(bootMark)
	if err != nil {
		return false
	}
	now, err := s.text("/proc/sys/kernel/random/boot_id")
	return err == nil && now != "" && strings.TrimSpace(string(mark)) != now
}

// bootMark holds the id of the boot in which the boot loader was changed.
const bootMark = plan.Directory + "/boot-id"

func (s *commandLine) Plan(ctx context.Context) ([]plan.Change, error) {
	missing, err := s.missing()
	if err != nil || len(missing) == 0 || !s.config.KernelCommandLine {
		return nil, err
	}
	loader, err := s.loader(ctx)
	if err != nil || loader == nil {
		return nil, err
	}
	return loader.plan(missing)
}

func (s *commandLine) Apply(ctx context.Context, j *plan.Journal) error {
	missing, err := s.missing()
	if err != nil {
		return err
	}
	loader, err := s.loader(ctx)
	if err != nil || loader == nil {
		return err
	}
	boot, err := s.text("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if boot != "" {
		if err := s.applyFiles(j, s.Name(), file{name: bootMark, content: boot + "\n"}); err != nil {
			return err
		}
	}
	return loader.apply(ctx, j, s.Name(), missing)
}

func (s *commandLine) Undo(ctx context.Context, records []plan.Record) error {
	// Files first: what is run reads them.
	var commands []plan.Record
	err := s.restore(ctx, records, func(r plan.Record) error {
		commands = append(commands, r)
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range commands {
		undo, ok := map[string]func(context.Context, plan.Record) error{
			kindRun: s.undoRun, kindGrubby: s.undoGrubby,
		}[r.Kind]
		if !ok {
			return fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
		}
		if err := undo(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// The kinds of records of boot loaders.
const (
	kindRun    = "run"    // a program that is run again when its input is restored
	kindGrubby = "grubby" // a boot entry and what was added to its command line
)

func (s *commandLine) undoRun(ctx context.Context, r plan.Record) error {
	var argv []string
	if err := json.Unmarshal(r.Before, &argv); err != nil || len(argv) == 0 {
		return errors.Join(errors.New("the journal has no command line"), err)
	}
	_, err := s.runner.RunUnconfined(ctx, "", argv[0], argv[1:]...)
	return err
}
