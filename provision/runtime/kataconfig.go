package runtime

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

const (
	// dropInName sorts behind those of kata-deploy, which reserves the numbers
	// below 60.
	dropInName = "60-kata-qat.toml"
	// copyMark begins every file that is a copy of one of Kata's.
	copyMark = "# Copied by kata-qat provision runtime, which does it again, from\n"
	// ports is how many root ports Kata gives a VM at most.
	ports = 16
)

// configPath is what a handler's containerd entry has as options.ConfigPath.
func (m *machine) configPath(h handler) string {
	return filepath.Join(m.paths.Config, h.name, "configuration.toml")
}

// kataFiles are the configuration directories of all handlers.
func (m *machine) kataFiles(ctx context.Context) ([]file, error) {
	in, err := m.kata(ctx)
	if err != nil {
		return nil, err
	}
	var all []file
	for _, h := range m.handlers {
		dropIn, err := m.dropIn(in, h)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(m.paths.Config, h.name)
		wanted := []file{{name: m.configPath(h), content: copyOf(in.base), why: "Kata looks for config.d beside what a link leads to, so this is a copy of its configuration"}}
		for _, d := range in.dropIns {
			if filepath.Base(d.Name()) >= dropInName {
				if err := undone(dropIn, d); err != nil {
					return nil, err
				}
			}
			wanted = append(wanted, file{name: filepath.Join(dir, "config.d", filepath.Base(d.Name())), content: copyOf(d), why: "what Kata's configuration has beside it belongs to it"})
		}
		stale, err := m.staleCopies(dir, wanted)
		if err != nil {
			return nil, err
		}
		wanted = append(wanted, stale...)
		wanted = append(wanted, file{name: filepath.Join(dir, "config.d", dropInName), content: string(dropIn.Bytes()), why: "what a pod with QAT devices needs of Kata"})
		all = append(all, wanted...)
	}
	return all, nil
}

func copyOf(d *tomledit.Document) string {
	return fmt.Sprintf("%s# %s\n# (SHA-256 %x)\n# when that has changed. Put what you want otherwise into config.d.\n\n%s", copyMark, d.Name(), sha256.Sum256(d.Bytes()), d.Bytes())
}

// staleCopies are copies of drop-ins that Kata's configuration has no longer. All
// files of config.d count for Kata, whatever they are named.
func (m *machine) staleCopies(dir string, wanted []file) (gone []file, err error) {
	dir = filepath.Join(dir, "config.d")
	p, err := m.path(dir)
	if err != nil {
		return nil, err
	}
	names, err := readDir(p)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		f := filepath.Join(dir, n)
		b, err := m.read(f)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(string(b), copyMark) && !slices.ContainsFunc(wanted, func(w file) bool { return w.name == f }) {
			gone = append(gone, file{name: f, gone: true, why: "Kata's configuration has it no longer"})
		}
	}
	return gone, nil
}

// readDir returns the names in a directory, in order; none if it is not there.
func readDir(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// setting is a key of Kata's configuration and its value, written in TOML.
type setting struct {
	table, key, value, why string
}

// dropIn is what a handler needs of Kata, as a file.
func (m *machine) dropIn(in *installation, h handler) (*tomledit.Document, error) {
	dir, g, err := m.guest(h)
	if err != nil {
		return nil, err
	}
	return m.dropInFor(in, h, dir, g)
}

func (m *machine) dropInFor(in *installation, h handler, dir string, g *guest.Manifest) (*tomledit.Document, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by kata-qat provision runtime for the runtime handler %s, profile %s.\n", h.name, h.profile)
	table := ""
	for _, s := range settings(in, h, dir, g) {
		if s.table != table {
			table = s.table
			fmt.Fprintf(&b, "\n[%s]\n", table)
		}
		if s.why != "" {
			fmt.Fprintf(&b, "# %s\n", s.why)
		}
		fmt.Fprintf(&b, "%s = %s\n", s.key, s.value)
	}
	return tomledit.Parse(filepath.Join(m.paths.Config, h.name, "config.d", dropInName), []byte(b.String()))
}

// The keys of a guest's root in Kata's configuration are called as the files are.
const (
	hypervisorTable = "hypervisor.qemu"
	agentTable      = "agent.kata"
	runtimeTable    = "runtime"
)

// settings are all keys that a handler needs with a guest, nil for Kata's own. Of
// Kata's own values those that are lists are added to, because a drop-in takes
// their place.
func settings(in *installation, h handler, dir string, g *guest.Manifest) (all []setting) {
	set := func(table, key, value, why string) { all = append(all, setting{table, key, value, why}) }
	if g != nil {
		set(hypervisorTable, "kernel", tomledit.String(filepath.Join(dir, g.Kernel.File)), "The guest that kata-qat provision guest made. Kata takes an initrd or an image, not both.")
		set(hypervisorTable, g.Root.File, tomledit.String(filepath.Join(dir, g.Root.File)), "")
		// The files that Kata ships name an image and no initrd.
		if other := map[string]string{guest.InitrdFile: "image", guest.ImageFile: "initrd"}[g.Root.File]; other == "image" || in.get("hypervisor", "qemu", other) != nil {
			set(hypervisorTable, other, `""`, "")
		}
		switch {
		case g.Root.Verity != "":
			set(hypervisorTable, "kernel_verity_params", tomledit.String(g.Root.Verity), "Those of this image: it was changed, and its hashes made again.")
		case in.get("hypervisor", "qemu", "kernel_verity_params") != nil:
			set(hypervisorTable, "kernel_verity_params", `""`, "Those were of Kata's own image.")
		}
		if t, ok := in.get("hypervisor", "qemu", "rootfs_type").(string); ok && t != "ext4" && g.Root.File == guest.ImageFile {
			set(hypervisorTable, "rootfs_type", `"ext4"`, "That of this image.")
		}
	}
	set(hypervisorTable, "machine_type", `"q35"`, "Root ports are PCIe.")
	set(hypervisorTable, "cold_plug_vfio", `"root-port"`, "The sandbox's devices are in the VM when it boots, each at a root port of its own.")
	if in.hotPlug {
		set(hypervisorTable, "hot_plug_vfio", `"no-port"`, "It excludes cold-plug.")
	}
	set(hypervisorTable, "pcie_root_port", fmt.Sprint(ports), "")
	if h.profile == edits.ProfileVFIO {
		set(hypervisorTable, "enable_iommu", "true", "vfio-pci in the guest needs an IOMMU.")
	}
	if g != nil && len(g.KernelParams) > 0 {
		params, _ := in.get("hypervisor", "qemu", "kernel_params").(string)
		set(hypervisorTable, "kernel_params", tomledit.String(strings.TrimSpace(params+" "+strings.Join(g.KernelParams, " "))), "Kata's own, and those of the guest.")
	}
	if g != nil && len(g.AgentModules) > 0 {
		set(agentTable, "kernel_modules", tomledit.Strings(withModules(in.get("agent", "kata", "kernel_modules"), g.AgentModules)), "")
	}
	set(runtimeTable, "vfio_mode", tomledit.String(string(h.profile)), "")
	if s, _ := in.get("runtime", "pod_resource_api_sock").(string); s != "" {
		set(runtimeTable, "pod_resource_api_sock", `""`, "The shim gives the sandbox its devices; Kata would plug them a second time.")
	}
	return all
}

// withModules adds modules to those that Kata's configuration has, each once.
func withModules(list any, modules []string) (all []string) {
	name := func(entry string) string { return strings.Fields(entry + " -")[0] }
	elements, _ := list.([]any)
	for _, e := range elements {
		if s, ok := e.(string); ok && !slices.ContainsFunc(modules, func(m string) bool { return name(m) == name(s) }) {
			all = append(all, s)
		}
	}
	return append(all, modules...)
}

// guest is the guest of a handler, with the directory that Kata is to be told;
// nil if Kata's own is to be used.
func (m *machine) guest(h handler) (string, *guest.Manifest, error) {
	if m.Guest == KatasGuest {
		return "", nil, nil
	}
	if g, planned := m.Planned[h.profile]; planned {
		if g == nil {
			return "", nil, plan.After((&guest.Step{Options: guest.Options{Profile: h.profile}}).Name())
		}
		return m.guestDir(h), g, nil
	}
	dir := m.guestDir(h)
	p, err := m.path(dir)
	if err != nil {
		return "", nil, err
	}
	g, err := guest.ReadManifest(p)
	if err != nil {
		return "", nil, fmt.Errorf("handler %s: %w: run kata-qat provision guest --profile %s first, or say --guest %s for Kata's own", h.name, err, h.profile, KatasGuest)
	}
	if g.Profile != h.profile {
		return "", nil, fmt.Errorf("handler %s: the guest in %s is for profile %s, expected %s: make another, or change the handler's profile", h.name, dir, g.Profile, h.profile)
	}
	for _, f := range []string{g.Kernel.File, g.Root.File} {
		if !m.exists(filepath.Join(dir, f)) {
			return "", nil, fmt.Errorf("handler %s: the guest in %s has no %s: make it again with kata-qat provision guest", h.name, dir, f)
		}
	}
	return dir, g, nil
}

// guestDir is where the guest of a handler is, or will be. What the link leads to
// is replaced with each guest that is made.
func (m *machine) guestDir(h handler) string {
	dir := m.Guest
	if dir == "" {
		dir = filepath.Join(m.paths.Guest, string(h.profile))
	}
	return filepath.Join(dir, guest.Current)
}

// undone returns an error if a drop-in that is read after ours takes back what
// ours says.
func undone(ours, later *tomledit.Document) error {
	for _, table := range [][]string{{"hypervisor", "qemu"}, {"agent", "kata"}, {"runtime"}} {
		v, _ := ours.Get(table...)
		keys, _ := v.(map[string]any)
		for key, want := range keys {
			path := append(slices.Clone(table), key)
			if got, ok := later.Get(path...); ok && !reflect.DeepEqual(got, want) {
				return fmt.Errorf("%s:%d: %s is read after %s and would undo it: give that file a name below 60", later.Name(), later.Line(path...), tomledit.Key(path...), dropInName)
			}
		}
	}
	return nil
}

// kataConfig writes a configuration directory of Kata for each handler.
type kataConfig struct{ *machine }

func (*kataConfig) Name() string { return "kata-config" }

func (s *kataConfig) Check(ctx context.Context) (plan.State, error) {
	changes, err := s.Plan(ctx)
	if err != nil {
		return plan.State{}, err
	}
	if len(changes) > 0 {
		return plan.State{Is: fmt.Sprintf("%d files are not as they should be", len(changes))}, nil
	}
	return plan.State{Is: "as Kata's own configuration is, with our drop-in"}, nil
}

func (s *kataConfig) Plan(ctx context.Context) ([]plan.Change, error) {
	files, err := s.kataFiles(ctx)
	if err != nil {
		return nil, err
	}
	return s.planFiles(files)
}

func (s *kataConfig) Apply(ctx context.Context, j *plan.Journal) error {
	files, err := s.kataFiles(ctx)
	if err != nil {
		return err
	}
	return s.applyFiles(j, s.Name(), files)
}

func (s *kataConfig) Undo(_ context.Context, records []plan.Record) error { return s.restore(records) }
