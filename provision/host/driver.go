package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// driverRelease is the step that installs the PFs' drivers and firmware: the
// distribution's packages, or a release that is built here.
type driverRelease struct{ *machine }

func (*driverRelease) Name() string { return "driver-release" }

// Interruptible: a build takes minutes.
func (*driverRelease) Interruptible() {}

// manager is a package manager. %p in a command stands for the packages.
type manager struct {
	program                    string
	installed, install, remove []string
}

// distributions are known by ID or ID_LIKE of os-release, the more special
// first, and one whose packages changed by the last release that has these. %r in
// a package's name stands for the running kernel's release.
var distributions = []struct {
	id       string
	until    int // VERSION_ID, 0 for any
	manager  *manager
	packages []string
}{
	// What a cloud's or a minimal kernel leaves out is in modules-extra.
	{"ubuntu", 0, &apt, []string{"linux-modules-extra-%r", "linux-firmware"}},
	// The kernel package has all modules; firmware is in non-free-firmware, for
	// c62x, c3xxx and dh895xcc in firmware-misc-nonfree 20230210-5 (Debian 12), and
	// for 402xx and 420xx as well in firmware-intel-misc 20250410-2 (Debian 13).
	// Neither has that of 4xxx.
	{"debian", 12, &apt, []string{"linux-image-%r", "firmware-misc-nonfree"}},
	{"debian", 0, &apt, []string{"linux-image-%r", "firmware-intel-misc"}},
	{"fedora", 0, &dnf, []string{"kernel-modules-%r", "linux-firmware"}},
	// linux-firmware: https://access.redhat.com/kb/6376901
	{"rhel", 0, &dnf, []string{"kernel-modules-%r", "kernel-modules-extra-%r", "linux-firmware"}},
	{"centos", 0, &dnf, []string{"kernel-modules-%r", "kernel-modules-extra-%r", "linux-firmware"}},
}

var (
	apt = manager{
		program:   "apt-get",
		installed: []string{"dpkg-query", "-W", "-f", "${db:Status-Status}", "%p"},
		install:   []string{"apt-get", "install", "-y", "--no-install-recommends", "%p"},
		remove:    []string{"apt-get", "remove", "-y", "%p"},
	}
	dnf = manager{
		program:   "dnf",
		installed: []string{"rpm", "-q", "%p"},
		install:   []string{"dnf", "install", "-y", "--setopt=install_weak_deps=False", "%p"},
		remove:    []string{"dnf", "remove", "-y", "--noautoremove", "%p"},
	}
)

// distribution finds the package manager and the packages of this machine.
func (s *driverRelease) distribution() (*manager, []string, error) {
	b, err := s.read("/etc/os-release")
	if err != nil {
		return nil, nil, err
	}
	ids, version := osIDs(string(b))
	for _, d := range distributions {
		if !slices.Contains(ids, d.id) || d.until > 0 && (version == 0 || version > d.until) || s.runner.Find(d.manager.program) == "" {
			continue
		}
		packages := s.config.Driver.Packages
		if len(packages) == 0 {
			for _, p := range d.packages {
				packages = append(packages, strings.ReplaceAll(p, "%r", s.kernel().release))
			}
		}
		return d.manager, packages, nil
	}
	return nil, nil, fmt.Errorf("packages of drivers are known for Debian, Ubuntu, Fedora and RHEL and those like them, not for %s: install them by hand, or build a release with --driver-archive", strings.Join(ids, ", "))
}

// osIDs are what a distribution says that it is, and is like, and its version's
// first number, 0 if it has none, as one that is not released.
func osIDs(release string) (ids []string, version int) {
	for line := range strings.Lines(release) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID", "ID_LIKE":
			ids = append(ids, strings.Fields(value)...)
		case "VERSION_ID":
			major, _, _ := strings.Cut(value, ".")
			version, _ = strconv.Atoi(major)
		}
	}
	return ids, version
}

// lacking are the modules and the firmware that the targets need and the machine
// does not have.
func (s *driverRelease) lacking() (all []string, _ error) {
	ts, err := s.targets()
	if err != nil {
		return nil, err
	}
	needed := []string{"vfio-pci"}
	for _, f := range families(ts) {
		if !slices.ContainsFunc(ts, func(t target) bool { return t.Family.Name == f.Name && t.Driver == f.PFDriver }) {
			needed = append(needed, f.PFModule)
		}
		all = append(all, s.missingFirmware(f)...)
	}
	for _, name := range needed {
		if !s.loaded(name) && !s.kernel().has(name) {
			all = append(all, "module "+name)
		}
	}
	return all, nil
}

func (s *driverRelease) Check(ctx context.Context) (plan.State, error) {
	switch s.config.Driver.Source {
	case "":
		return plan.State{Is: "what the machine has"}, nil
	case config.DriverArchive:
		return s.checkArchive()
	}
	lacking, err := s.lacking()
	if err != nil || len(lacking) == 0 {
		return plan.State{Is: "modules and firmware of every family are there"}, err
	}
	_, _, err = s.distribution()
	return plan.State{Is: "not there: " + strings.Join(lacking, ", ")}, err
}

func (s *driverRelease) Plan(ctx context.Context) ([]plan.Change, error) {
	switch s.config.Driver.Source {
	case "":
		return nil, nil
	case config.DriverArchive:
		return s.planArchive()
	}
	lacking, err := s.lacking()
	if err != nil || len(lacking) == 0 {
		return nil, err
	}
	m, packages, err := s.distribution()
	if err != nil {
		return nil, err
	}
	var changes []plan.Change
	for _, p := range s.notInstalled(ctx, m, packages) {
		changes = append(changes, plan.Change{Object: "package " + p, From: "not installed", To: "installed by " + m.program, Why: "the machine lacks " + strings.Join(lacking, ", ")})
	}
	if len(changes) == 0 {
		return nil, fmt.Errorf("the packages %s are installed, and the machine lacks %s: name others in provision.driver.packages", strings.Join(packages, ", "), strings.Join(lacking, ", "))
	}
	return changes, nil
}

func (s *driverRelease) notInstalled(ctx context.Context, m *manager, packages []string) (missing []string) {
	for _, p := range packages {
		// Both say so by their exit status; dpkg also knows packages that are gone.
		out, err := s.runner.Run(ctx, "", m.installed[0], command(m.installed[1:], p)...)
		if err != nil || m == &apt && strings.TrimSpace(out) != "installed" {
			missing = append(missing, p)
		}
	}
	return missing
}

// command puts packages into a command of a package manager.
func command(words []string, packages ...string) (argv []string) {
	for _, w := range words {
		if w == "%p" {
			argv = append(argv, packages...)
		} else {
			argv = append(argv, w)
		}
	}
	return argv
}

func (s *driverRelease) Apply(ctx context.Context, j *plan.Journal) error {
	if s.config.Driver.Source == config.DriverArchive {
		return s.applyArchive(ctx, j)
	}
	m, packages, err := s.distribution()
	if err != nil {
		return err
	}
	missing := s.notInstalled(ctx, m, packages)
	r, err := plan.NewRecord(s.Name(), kindPackages, strings.Join(missing, " "), packageState{m.program, missing}, nil)
	if err != nil {
		return err
	}
	if err := j.Save(r); err != nil {
		return err
	}
	defer s.changed()
	if _, err := s.runner.Run(ctx, "", m.install[0], command(m.install[1:], missing...)...); err != nil {
		return err
	}
	return j.Reached("packages installed")
}

// The kinds of records of driver releases.
const (
	kindPackages = "packages" // that were not installed
	kindRelease  = "release"  // by directory: a release that was not installed
)

// packageState is what packages were not installed.
type packageState struct {
	Manager string   `json:"manager"`
	Absent  []string `json:"absent"`
}

func (s *driverRelease) Undo(ctx context.Context, records []plan.Record) error {
	return s.restore(ctx, records, func(r plan.Record) error {
		switch r.Kind {
		case kindPackages:
			return s.removePackages(ctx, r)
		case kindRelease:
			return s.uninstall(ctx, r)
		}
		return fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
	})
}

func (s *driverRelease) removePackages(ctx context.Context, r plan.Record) error {
	var was packageState
	if err := json.Unmarshal(r.Before, &was); err != nil {
		return err
	}
	for _, m := range []*manager{&apt, &dnf} {
		if m.program != was.Manager {
			continue
		}
		absent := s.notInstalled(ctx, m, was.Absent)
		added := slices.DeleteFunc(was.Absent, func(p string) bool { return slices.Contains(absent, p) })
		if len(added) == 0 {
			return nil
		}
		_, err := s.runner.Run(ctx, "", m.remove[0], command(m.remove[1:], added...)...)
		return err
	}
	return fmt.Errorf("package manager %q: expected apt-get or dnf", was.Manager)
}
