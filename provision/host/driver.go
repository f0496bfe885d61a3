package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
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
	// trial and removal say what install and remove would do, and change
	// nothing; nil for a manager that has no such commands.
	trial, removal []string
}

// distributions are known by ID or ID_LIKE of os-release, and one whose packages
// changed by the last release that has these. %r in a package's name stands for
// the running kernel's release. That Debian's names are right, and where they put
// the firmware, is tested in test/driver.
var distributions = []struct {
	ids               []string
	until             int // VERSION_ID, 0 for any
	manager           *manager
	modules, firmware []string
}{
	// Until 24.04, with its kernels of later releases, what a cloud's kernel can
	// do without is in modules-extra, since then all modules are in modules
	// (packages.ubuntu.com: linux-modules-extra-6.17.0-35-generic in noble-updates,
	// linux-modules-7.0.0-27-generic in resolute). linux-firmware depends on
	// linux-firmware-intel-misc where it is split up (noble-updates and later).
	{[]string{"ubuntu"}, 24, &apt, []string{"linux-modules-extra-%r"}, []string{"linux-firmware"}},
	{[]string{"ubuntu"}, 0, &apt, []string{"linux-modules-%r"}, []string{"linux-firmware"}},
	// The kernel package has all modules; firmware is in non-free-firmware, for
	// c62x, c3xxx and dh895xcc in firmware-misc-nonfree 20230210-5 (Debian 12), and
	// for 402xx and 420xx as well in firmware-intel-misc 20250410-2 (Debian 13, and
	// 12's backports). Neither has that of 4xxx, and no kernel 6.1 or 6.12 of
	// Debian's a driver of Gen4.
	{[]string{"debian"}, 12, &apt, []string{"linux-image-%r"}, []string{"firmware-misc-nonfree"}},
	{[]string{"debian"}, 0, &apt, []string{"linux-image-%r"}, []string{"firmware-intel-misc"}},
	// kernel-modules has, or depends on what has, all of drivers/crypto and
	// drivers/vfio: filter-modules.sh of these kernels' packages leaves both in
	// kernel-core (later kernel-modules-core). linux-firmware has what its spec does
	// not split off, and that has nothing of QAT (Fedora, 20260916-1); for RHEL see
	// https://access.redhat.com/kb/6376901.
	{[]string{"fedora", "rhel", "centos"}, 0, &dnf, []string{"kernel-modules-%r"}, []string{"linux-firmware"}},
}

var (
	apt = manager{
		program:   "apt-get",
		installed: []string{"dpkg-query", "-W", "-f", "${db:Status-Status}", "%p"},
		install:   []string{"apt-get", "install", "-y", "--no-install-recommends", "%p"},
		remove:    []string{"apt-get", "remove", "-y", "%p"},
		trial:     []string{"apt-get", "install", "-s", "--no-install-recommends", "%p"},
		removal:   []string{"apt-get", "remove", "-s", "%p"},
	}
	dnf = manager{
		program:   "dnf",
		installed: []string{"rpm", "-q", "%p"},
		install:   []string{"dnf", "install", "-y", "--setopt=install_weak_deps=False", "%p"},
		remove:    []string{"dnf", "remove", "-y", "--noautoremove", "%p"},
	}
)

// distribution finds the package manager and the packages of this machine that
// have what it lacks.
func (s *driverRelease) distribution(l lack) (*manager, []string, error) {
	b, err := s.read("/etc/os-release")
	if err != nil {
		return nil, nil, err
	}
	ids, version := osIDs(string(b))
	for _, d := range distributions {
		known := slices.ContainsFunc(d.ids, func(id string) bool { return slices.Contains(ids, id) })
		if !known || d.until > 0 && (version == 0 || version > d.until) || s.runner.Find(d.manager.program) == "" {
			continue
		}
		if packages := s.config.Driver.Packages; len(packages) > 0 {
			return d.manager, packages, nil
		}
		var packages []string
		if len(l.modules) > 0 {
			packages = append(packages, d.modules...)
		}
		if len(l.firmware) > 0 {
			packages = append(packages, d.firmware...)
		}
		for i, p := range packages {
			packages[i] = strings.ReplaceAll(p, "%r", s.kernel().release)
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

// lack is what the targets need and the machine does not have.
type lack struct{ modules, firmware []string }

func (l lack) none() bool { return len(l.modules)+len(l.firmware) == 0 }

func (l lack) String() string {
	var all []string
	for _, m := range l.modules {
		all = append(all, "module "+m)
	}
	for _, f := range l.firmware {
		all = append(all, "firmware "+f)
	}
	return strings.Join(all, ", ")
}

func (s *driverRelease) lacking() (l lack, _ error) {
	ts, err := s.targets()
	if err != nil {
		return l, err
	}
	needed := []string{"vfio-pci"}
	for _, f := range families(ts) {
		if !slices.ContainsFunc(ts, func(t target) bool { return t.Family.Name == f.Name && t.Driver == f.PFDriver }) {
			needed = append(needed, f.PFModule)
		}
		l.firmware = append(l.firmware, s.missingFirmware(f)...)
	}
	for _, name := range needed {
		if !s.loaded(name) && !s.kernel().has(name) {
			l.modules = append(l.modules, name)
		}
	}
	return l, nil
}

func (s *driverRelease) Check(ctx context.Context) (plan.State, error) {
	switch s.config.Driver.Source {
	case "":
		return plan.State{Is: "what the machine has"}, nil
	case config.DriverArchive:
		return s.checkArchive()
	}
	lacking, err := s.lacking()
	if err != nil || lacking.none() {
		return plan.State{Is: "modules and firmware of every family are there"}, err
	}
	_, _, err = s.distribution(lacking)
	return plan.State{Is: "not there: " + lacking.String()}, err
}

func (s *driverRelease) Plan(ctx context.Context) ([]plan.Change, error) {
	switch s.config.Driver.Source {
	case "":
		return nil, nil
	case config.DriverArchive:
		return s.planArchive()
	}
	lacking, err := s.lacking()
	if err != nil || lacking.none() {
		return nil, err
	}
	m, _, added, err := s.packages(ctx, lacking)
	if err != nil {
		return nil, err
	}
	var changes []plan.Change
	for _, p := range added {
		changes = append(changes, plan.Change{Object: "package " + p, From: "not installed", To: "installed by " + m.program, Why: "the machine lacks " + lacking.String()})
	}
	return changes, nil
}

// packages are those to install, and those that are installed then that are not
// now, which may be more.
func (s *driverRelease) packages(ctx context.Context, l lack) (m *manager, wanted, added []string, _ error) {
	m, all, err := s.distribution(l)
	if err != nil {
		return nil, nil, nil, err
	}
	wanted = s.notInstalled(ctx, m, all)
	if len(wanted) == 0 {
		return nil, nil, nil, fmt.Errorf("the packages %s are installed, and the machine lacks %s: %s", strings.Join(all, ", "), l, otherPackages)
	}
	if m.trial == nil {
		return m, wanted, wanted, nil
	}
	out, err := s.runner.Run(ctx, "", m.trial[0], command(m.trial[1:], wanted...)...)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: the package lists may be old (apt-get update) or lack a component (Debian's firmware is in non-free-firmware); %s", err, otherPackages)
	}
	for _, action := range aptActions.FindAllStringSubmatch(out, -1) {
		switch {
		case action[1] == "Remv":
			return nil, nil, nil, fmt.Errorf("install %s: apt-get would remove %s for them: %s", strings.Join(wanted, ", "), action[2], otherPackages)
		case action[3] == "": // was not installed in another version
			added = append(added, action[2])
		}
	}
	return m, wanted, added, nil
}

const otherPackages = "name others in provision.driver.packages, or install what it lacks by hand"

// aptActions are the lines of apt-get -s: "Inst", or "Remv", a package, in
// brackets the version that is installed, and in parentheses the one to be.
var aptActions = lazyregexp.New(`(?m)^(Inst|Remv) (\S+)( \[\S+\])?`)

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
	lacking, err := s.lacking()
	if err != nil {
		return err
	}
	m, wanted, added, err := s.packages(ctx, lacking)
	if err != nil {
		return err
	}
	r, err := plan.NewRecord(s.Name(), kindPackages, strings.Join(wanted, " "), packageState{m.program, added}, nil)
	if err != nil {
		return err
	}
	if err := j.Save(r); err != nil {
		return err
	}
	defer s.changed()
	if _, err := s.runner.RunUnconfined(ctx, "", m.install[0], command(m.install[1:], wanted...)...); err != nil {
		return err
	}
	if err := j.Reached("packages installed"); err != nil {
		return err
	}
	s.changed()
	if lacking, err = s.lacking(); err == nil && !lacking.none() {
		err = fmt.Errorf("the packages %s do not have %s: %s", strings.Join(wanted, ", "), lacking, otherPackages)
	}
	return err
}

// The kinds of records of driver releases.
const (
	kindPackages = "packages" // that were not installed
	kindRelease  = "release"  // by directory: a release that was not installed
)

// packageState is what packages were not installed: those that were asked for and
// those that they brought along.
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
		if m.removal != nil {
			out, err := s.runner.Run(ctx, "", m.removal[0], command(m.removal[1:], added...)...)
			if err != nil {
				return err
			}
			for _, action := range aptActions.FindAllStringSubmatch(out, -1) {
				if !slices.Contains(added, action[2]) {
					return fmt.Errorf("remove %s: %s was installed since and needs them: remove it first", strings.Join(added, ", "), action[2])
				}
			}
		}
		_, err := s.runner.RunUnconfined(ctx, "", m.remove[0], command(m.remove[1:], added...)...)
		return err
	}
	return fmt.Errorf("package manager %q: expected apt-get or dnf", was.Manager)
}
