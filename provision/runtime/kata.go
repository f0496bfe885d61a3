package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// Language tells Kata's two runtimes apart.
type Language string

// Kata's runtimes.
const (
	Rust Language = "rust" // runtime-rs, Kata's default since 4.0
	Go   Language = "go"
)

// variant is what differs between Kata's runtimes.
type variant struct {
	language Language
	shim     string // below a prefix
	// bases are the configurations for QEMU: below share/defaults of a prefix,
	// and below the administrator's directory, which comes first.
	bases, etc []string
	// oldest is the first release that cold-plugs: the Go runtime knows
	// cold_plug_vfio since 3.2.0 (138ada049c), runtime-rs, with the devices of
	// a sandbox's spec, since 4.0.0 (3.30 to 3.32 do not even ship the key).
	oldest string
	// hotPlug tells that the key is there, and excludes cold-plug when it is set.
	hotPlug bool
}

var variants = []variant{
	{
		language: Rust, shim: "runtime-rs/bin/containerd-shim-kata-v2", oldest: "4.0.0",
		bases: []string{"kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml", "kata-containers/runtime-rs/configuration.toml"},
		etc:   []string{"runtime-rs/configuration.toml"},
	},
	{
		language: Go, shim: "bin/containerd-shim-kata-v2", oldest: "3.2.0", hotPlug: true,
		bases: []string{"kata-containers/configuration-qemu.toml", "kata-containers/configuration.toml"},
		etc:   []string{"configuration.toml"},
	},
}

// installation is a Kata runtime on this machine.
type installation struct {
	variant
	shim    string
	version string
	base    *tomledit.Document // its name is that of the file, links followed
	dropIns []*tomledit.Document
}

// shimVersion is what both runtimes print for --version (kata-containers 4.1,
// src/runtime/cmd/containerd-shim-kata-v2/main.go and
// src/runtime-rs/crates/shim/src/bin/main.rs).
var shimVersion = lazyregexp.New(`containerd shim \((Golang|Rust)\).*version: "?(\d+\.\d+\.\d+[^",\s]*)`)

var languages = map[string]Language{"Golang": Go, "Rust": Rust}

// kata finds the installation to use: the first prefix that has one, and in it
// runtime-rs before the Go runtime.
func (m *machine) kata(ctx context.Context) (*installation, error) {
	var looked []string
	var notUsable error
	for _, prefix := range append([]string{m.paths.KataDeploy}, m.paths.Packages...) {
		for _, v := range variants {
			in := installation{variant: v, shim: filepath.Join(prefix, v.shim)}
			if !m.exists(in.shim) {
				looked = append(looked, in.shim)
				continue
			}
			if err := m.identify(ctx, prefix, &in); err != nil {
				return nil, err
			}
			if m.Kata != "" && in.language != m.Kata {
				looked = append(looked, in.shim+" (which is the other runtime)")
				continue
			}
			if err := m.load(prefix, &in); err != nil {
				notUsable = errors.Join(notUsable, err)
				continue
			}
			return &in, nil
		}
	}
	if notUsable != nil {
		return nil, notUsable
	}
	return nil, plan.Absent(fmt.Errorf("kata containers is not on this machine: looked for %s: install it, with kata-deploy or a release below /opt/kata", strings.Join(looked, ", ")))
}

// identify asks a shim what it is. A distribution may have either runtime at the
// same place.
func (m *machine) identify(ctx context.Context, prefix string, in *installation) error {
	if err := m.executable(in.shim); err != nil {
		return fmt.Errorf("kata's shim: %w", err)
	}
	out, err := m.Runner.Run(ctx, "", in.shim, "--version")
	if found := shimVersion.FindStringSubmatch(out); err == nil && found != nil {
		in.version = found[2]
		if l := languages[found[1]]; l != in.language {
			for _, v := range variants {
				if v.language == l {
					in.variant = v
				}
			}
		}
		return nil
	}
	b, fileErr := m.read(filepath.Join(prefix, "VERSION"))
	if fileErr != nil {
		if err == nil {
			err = fmt.Errorf("it printed %q", strings.TrimSpace(out))
		}
		return fmt.Errorf("version of %s --version: %w: expected Kata's, and there is no %s", in.shim, err, filepath.Join(prefix, "VERSION"))
	}
	in.version = strings.TrimSpace(string(b))
	return nil
}

// load reads the configuration that an installation would use.
func (m *machine) load(prefix string, in *installation) error {
	if v := "v" + in.version; !semver.IsValid(v) {
		return fmt.Errorf("version %q of %s: expected one such as 4.1.0", in.version, in.shim)
	} else if semver.Compare(v, "v"+in.oldest) < 0 {
		return fmt.Errorf("kata %s (%s) is too old: its %s runtime cold-plugs devices since %s: update it, or choose the other runtime", in.version, in.shim, in.language, in.oldest)
	}
	var candidates []string
	if m.Base != "" {
		candidates = []string{m.Base}
	} else {
		if prefix != m.paths.KataDeploy { // whose entries in containerd name its own
			for _, f := range in.etc {
				candidates = append(candidates, filepath.Join(m.paths.KataEtc, f))
			}
		}
		for _, f := range in.bases {
			candidates = append(candidates, filepath.Join(prefix, "share/defaults", f))
		}
	}
	for _, f := range candidates {
		resolved, err := m.resolve(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("configuration of Kata: %w", err)
		}
		return m.loadBase(resolved, in)
	}
	return fmt.Errorf("%s has no configuration for QEMU: looked for %s: name it with --base", in.shim, strings.Join(candidates, ", "))
}

// loadBase reads a configuration and the drop-ins that Kata reads with it. Both
// runtimes follow links before they look for config.d beside the file
// (kata-containers 4.1, src/runtime/pkg/katautils/config.go decodeConfig and
// src/libs/kata-types/src/config/mod.rs load_raw_from_file), so a link to the base
// would have the base's config.d, not ours: hence copies.
func (m *machine) loadBase(name string, in *installation) error {
	b, err := m.read(name)
	if err != nil {
		return fmt.Errorf("configuration of Kata: %w", err)
	}
	if in.base, err = tomledit.Parse(name, b); err != nil {
		return fmt.Errorf("configuration of Kata: %w", err)
	}
	if _, ok := in.base.Get("hypervisor", "qemu"); !ok {
		return fmt.Errorf("configuration of Kata %s: no [hypervisor.qemu]: only QEMU takes QAT devices: name another with --base", name)
	}
	dir, err := m.path(filepath.Join(filepath.Dir(name), "config.d"))
	if err != nil {
		return err
	}
	names, err := readDir(dir)
	if err != nil {
		return fmt.Errorf("configuration of Kata: %w", err)
	}
	for _, n := range names {
		f := filepath.Join(filepath.Dir(name), "config.d", n)
		b, err := m.read(f)
		if err != nil {
			return fmt.Errorf("configuration of Kata: %w", err)
		}
		d, err := tomledit.Parse(f, b)
		if err != nil {
			return fmt.Errorf("configuration of Kata: %w", err)
		}
		in.dropIns = append(in.dropIns, d)
	}
	return nil
}

// get is a value as Kata would have it: that of the last file that sets it.
func (in *installation) get(path ...string) any {
	v, _ := in.base.Get(path...)
	for _, d := range in.dropIns {
		if w, ok := d.Get(path...); ok {
			v = w
		}
	}
	return v
}

func (in *installation) String() string {
	name := map[Language]string{Rust: "runtime-rs", Go: "the Go runtime"}[in.language]
	return fmt.Sprintf("Kata %s, %s (%s), configured by %s", in.version, name, in.shim, in.base.Name())
}

// kataStep finds Kata. It changes nothing.
type kataStep struct{ *machine }

// Gate has nothing else checked without a Kata that can be used.
func (*kataStep) Gate() {}

func (*kataStep) Name() string { return "kata" }

func (s *kataStep) Check(ctx context.Context) (plan.State, error) {
	in, err := s.kata(ctx)
	if err != nil {
		return plan.State{}, err
	}
	return plan.State{Is: in.String()}, nil
}

func (*kataStep) Plan(context.Context) ([]plan.Change, error)   { return nil, nil }
func (*kataStep) Apply(context.Context, *plan.Journal) error    { return nil }
func (*kataStep) Undo(_ context.Context, _ []plan.Record) error { return nil }
