package guest

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/provision/plan"
)

var _ plan.Outliner = (*Step)(nil)

// Expected is what is known of a profile's guest before anything that it is made
// from is.
func Expected(profile edits.Profile) *Manifest {
	m := &Manifest{Profile: profile, Kernel: KernelRecord{File: KernelFile}, Root: RootRecord{File: InitrdFile}}
	if profile == edits.ProfileVFIO {
		m.AgentModules = vfioModules
	}
	return m
}

// Planned is the guest as the last Check designed it; nil if it is not known yet,
// be it because a kernel has to be built first.
func (s *Step) Planned() *Manifest {
	if s.design == nil || len(s.design.Commands) > 0 {
		return nil
	}
	return s.design.Manifest
}

// checkKernel looks for the kernel alone, so that all that is absent is said at
// once.
func (s *Step) checkKernel() error {
	if s.Options.Source != "" {
		return nil
	}
	_, err := installed(filepath.Join("/", s.Options.Root), s.Options.Kernel)
	return err
}

// Outline names what goes into the guest, so far as it is known.
func (s *Step) Outline(context.Context) []plan.Change {
	o := s.Options
	kernel := "installed kernel"
	switch release, err := running(filepath.Join("/", o.Root)); {
	case o.Source != "":
		kernel = "kernel built from " + o.Source
	case o.Kernel != "":
		kernel = "Linux " + o.Kernel
	case err == nil:
		kernel = "Linux " + release
	}
	families, modules := make([]string, len(o.Families)), o.agentModules()
	for i, f := range o.Families {
		families[i] = f.Name
	}
	serves := strings.Join(families, ", ")
	if len(families) == 0 {
		serves = "the families of the cards"
	}
	if len(modules) == 0 {
		modules = []string{"the VFs' own drivers"}
	}
	base := "Kata's initrd or image"
	if o.Base != "" {
		base = o.Base
	}
	return []plan.Change{{
		Object: filepath.Join(DefaultOut, string(o.Profile), Current),
		To: fmt.Sprintf("%s: %s\n%s: %s, and in it:\n  modules, with all that they need: %s\n  /etc/<device>_dev0.conf to %d for %s\n  modprobe.d, modules-load.d; modprobe where it has none\n%s: every file with its SHA-256\n",
			KernelFile, kernel, InitrdFile, base, strings.Join(modules, ", "), VFs-1, serves, ManifestFile),
		Why: "profile " + string(o.Profile) + " needs a kernel and a root with what QAT needs",
	}}
}
