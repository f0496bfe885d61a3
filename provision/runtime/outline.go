package runtime

import (
	"context"
	"path/filepath"

	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// What the steps do on a machine on which Kata, containerd or the guest is not
// there yet: the files as they would be for those that most machines get.
var (
	_ plan.Outliner = (*kataConfig)(nil)
	_ plan.Outliner = (*shimStep)(nil)
	_ plan.Outliner = (*containerdStep)(nil)
)

// expected is Kata as it is on this machine, or as kata-deploy will bring it, with
// a configuration that says nothing.
func (m *machine) expected(ctx context.Context) *installation {
	if in, err := m.kata(ctx); err == nil {
		return in
	}
	v := variants[0]
	if m.Kata == Go {
		v = variants[1]
	}
	name := filepath.Join(m.paths.KataDeploy, "share/defaults", v.bases[0])
	base, err := tomledit.Parse(name, nil)
	if err != nil {
		panic(err) // nothing is TOML
	}
	return &installation{variant: v, shim: filepath.Join(m.paths.KataDeploy, v.shim), base: base}
}

func (s *kataConfig) Outline(ctx context.Context) (changes []plan.Change) {
	in := s.expected(ctx)
	for _, h := range s.handlers {
		dir, g, err := s.guest(h)
		if err != nil {
			dir, g = s.guestDir(h), guest.Expected(h.profile)
		}
		dropIn, err := s.dropInFor(in, h, dir, g)
		if err != nil {
			continue
		}
		changes = append(changes,
			plan.Change{Object: s.configPath(h), To: "a copy of " + in.base.Name() + ", with the drop-ins beside it", Why: "Kata looks for config.d beside what a link leads to"},
			plan.Change{Object: dropIn.Name(), To: string(dropIn.Bytes()), Why: "what a pod with QAT devices needs of Kata, as far as it is known by now"})
	}
	return changes
}

func (s *shimStep) Outline(ctx context.Context) []plan.Change {
	files, err := s.shimFilesFor(s.expected(ctx))
	if err != nil {
		return cannot(s.paths.ShimConfig, "which shim of Kata's each handler is served by", err)
	}
	changes, err := s.planFiles(files)
	if err != nil {
		return cannot(s.paths.ShimConfig, "which shim of Kata's each handler is served by", err)
	}
	program := filepath.Join(s.paths.Shims, shimProgram)
	if err := s.executable(program); err != nil {
		changes = append([]plan.Change{{Object: program, Why: "to be installed first (scripts/bootstrap-node.sh)"}}, changes...)
	}
	return changes
}

// Outline does not need Kata: it is the plan where containerd is there, and
// otherwise that of a containerd 2.2 or later without a configuration.
func (s *containerdStep) Outline(ctx context.Context) []plan.Change {
	var first []plan.Change
	d, err := s.design(ctx)
	if plan.OnlyAbsent(err) {
		first = []plan.Change{{Object: "containerd", Why: "to be installed first, 2.2 or later; this is for one without a configuration"}}
		d, err = s.designFor(s.newContainerd())
	}
	var changes []plan.Change
	if err == nil {
		changes, err = s.changes(d)
	}
	if err != nil {
		changes = cannot("containerd's configuration", "the handlers' entries, and NRI with our plugin required", err)
	}
	return append(first, changes...)
}

// newContainerd is one of a distribution as it is after it was installed.
func (m *machine) newContainerd() *setup {
	for _, f := range m.flavours() {
		if !f.rendered {
			return &setup{flavour: f, config: filepath.Join(f.dir, "config.toml"), schema: 3, version: "v2.2.0"}
		}
	}
	return nil
}

// cannot is the change that something stands in the way of.
func cannot(object, to string, err error) []plan.Change {
	return []plan.Change{{Object: object, To: to, Why: "not as things are: " + err.Error()}}
}
