package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/unpack"
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
// first. %r in a package's name stands for the running kernel's release.
var distributions = []struct {
	id       string
	manager  *manager
	packages []string
}{
	// What a cloud's or a minimal kernel leaves out is in modules-extra.
	{"ubuntu", &apt, []string{"linux-modules-extra-%r", "linux-firmware"}},
	// The kernel package has all modules; firmware is in non-free-firmware.
	{"debian", &apt, []string{"linux-image-%r", "firmware-misc-nonfree"}},
	{"fedora", &dnf, []string{"kernel-modules-%r", "linux-firmware"}},
	{"rhel", &dnf, []string{"kernel-modules-%r", "kernel-modules-extra-%r", "linux-firmware"}},
	{"centos", &dnf, []string{"kernel-modules-%r", "kernel-modules-extra-%r", "linux-firmware"}},
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
	ids := osIDs(string(b))
	for _, d := range distributions {
		if !slices.Contains(ids, d.id) || s.runner.Find(d.manager.program) == "" {
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

// osIDs are what a distribution says that it is, and is like.
func osIDs(release string) (ids []string) {
	for line := range strings.Lines(release) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "ID" || key == "ID_LIKE" {
			ids = append(ids, strings.Fields(strings.Trim(value, `"'`))...)
		}
	}
	return ids
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

// --- a release that is built here ---

const (
	releases  = plan.Directory + "/driver" // below it, one directory for each digest
	installed = "installed"                // holds the kernel for which it is
)

// release is where a release is unpacked and built.
func (s *driverRelease) release() string {
	return path.Join(releases, strings.ToLower(s.config.Driver.SHA256)[:16])
}

// installedFor is the kernel release for which the archive is installed, "" if
// it is not.
func (s *driverRelease) installedFor() (string, error) {
	b, err := s.read(path.Join(s.release(), installed))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

func (s *driverRelease) checkArchive() (plan.State, error) {
	kernel, err := s.installedFor()
	if err != nil {
		return plan.State{}, err
	}
	k := s.kernel()
	if kernel == k.release {
		return plan.State{Is: path.Base(s.config.Driver.Archive) + " is installed for Linux " + kernel}, nil
	}
	state := plan.State{Is: path.Base(s.config.Driver.Archive) + " is not installed for Linux " + k.release}
	if !s.exists(s.config.Driver.Archive) {
		return state, fmt.Errorf("%s is not there: expected the driver release", s.config.Driver.Archive)
	}
	if build := "/lib/modules/" + k.release + "/build"; !s.exists(build) {
		return state, fmt.Errorf("%s is not there: expected the headers of the running kernel: install them (linux-headers-%s or kernel-devel-%[2]s)", build, k.release)
	}
	if s.runner.Find("make") == "" {
		return state, errors.New("the machine has no make: expected it and a C compiler to build the driver release")
	}
	return state, nil
}

func (s *driverRelease) planArchive() ([]plan.Change, error) {
	kernel, err := s.installedFor()
	if err != nil || kernel == s.kernel().release {
		return nil, err
	}
	from := "not installed"
	if kernel != "" {
		from = "installed for Linux " + kernel
	}
	return []plan.Change{{
		Object: "driver release " + s.config.Driver.Archive, From: from, To: "built and installed for Linux " + s.kernel().release,
		Why: "provision.driver says so",
	}}, nil
}

// dkmsConf has what DKMS needs of a release's dkms.conf.
var dkmsConf = regexp.MustCompile(`(?m)^PACKAGE_(NAME|VERSION)="?([A-Za-z0-9][A-Za-z0-9._+-]*)"?\s*$`)

// releaseState is how a release was installed.
type releaseState struct {
	Dir  string `json:"dir"`            // where it was built, below the machine's root
	DKMS string `json:"dkms,omitempty"` // name/version
}

func (s *driverRelease) applyArchive(ctx context.Context, j *plan.Journal) error {
	dir := s.release()
	records, err := s.recordDirs(s.Name(), path.Join(dir, installed))
	if err != nil {
		return err
	}
	// Before anything is there: what is half unpacked is taken away too.
	r, err := plan.NewRecord(s.Name(), kindRelease, dir, releaseState{}, nil)
	if err != nil {
		return err
	}
	if err := j.Save(append(records, r)...); err != nil {
		return err
	}
	tree, err := s.unpackRelease(ctx, dir)
	if err != nil {
		return err
	}
	if err := j.Reached("release unpacked"); err != nil {
		return err
	}
	state := releaseState{Dir: tree}
	if conf, err := s.read(path.Join(tree, "dkms.conf")); err == nil && s.runner.Find("dkms") != "" {
		fields := make(map[string]string)
		for _, f := range dkmsConf.FindAllStringSubmatch(string(conf), -1) {
			fields[f[1]] = f[2]
		}
		if fields["NAME"] != "" && fields["VERSION"] != "" {
			state.DKMS = fields["NAME"] + "/" + fields["VERSION"]
		}
	}
	if r.After, err = json.Marshal(state); err != nil {
		return err
	}
	if err := j.Save(r); err != nil {
		return err
	}
	defer s.changed()
	if err := s.build(ctx, state); err != nil {
		return err
	}
	if _, err := s.runner.Run(ctx, "", "depmod", "-a", s.kernel().release); err != nil {
		return err
	}
	if err := j.Reached("release built"); err != nil {
		return err
	}
	p, err := s.path(path.Join(dir, installed))
	if err != nil {
		return err
	}
	return plan.WriteFile(p, []byte(s.kernel().release+"\n"), 0o644)
}

// unpackRelease unpacks the archive anew and returns where its sources are: in
// the one directory that it has, if it has but one.
func (s *driverRelease) unpackRelease(ctx context.Context, dir string) (string, error) {
	archive, err := s.path(s.config.Driver.Archive)
	if err != nil {
		return "", err
	}
	p, err := s.path(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(p, 0o700); err != nil {
		return "", err
	}
	own := filepath.Join(p, "archive")
	if err := fetchArchive(archive, own, s.config.Driver.SHA256); err != nil {
		return "", err
	}
	src := filepath.Join(p, "src")
	if err := os.RemoveAll(src); err != nil {
		return "", err
	}
	if err := os.Mkdir(src, 0o755); err != nil {
		return "", err
	}
	if err := unpack.Tar(ctx, own, src); err != nil {
		return "", err
	}
	tree := path.Join(dir, "src")
	entries, err := os.ReadDir(src)
	if err == nil && len(entries) == 1 && entries[0].IsDir() {
		tree = path.Join(tree, entries[0].Name())
	}
	return tree, err
}

// build builds and installs a release for the running kernel.
func (s *driverRelease) build(ctx context.Context, state releaseState) error {
	kernel := s.kernel().release
	headers := "/lib/modules/" + kernel + "/build"
	if state.DKMS != "" {
		for _, args := range [][]string{
			{"add", state.Dir}, {"build", state.DKMS, "-k", kernel}, {"install", state.DKMS, "-k", kernel},
		} {
			if _, err := s.runner.Run(ctx, "", "dkms", args...); err != nil && !(args[0] == "add" && s.dkmsKnows(ctx, state.DKMS)) {
				return err
			}
		}
		return nil
	}
	dir := s.workDir(state.Dir)
	if s.exists(path.Join(state.Dir, "configure")) {
		if _, err := s.runner.Run(ctx, dir, "./configure", s.config.Driver.Configure...); err != nil {
			return err
		}
	}
	for _, target := range []string{"all", "install"} {
		if _, err := s.runner.Run(ctx, dir, "make", target, "KERNEL_SOURCE_ROOT="+headers); err != nil {
			return err
		}
	}
	return nil
}

func (s *driverRelease) dkmsKnows(ctx context.Context, module string) bool {
	out, err := s.runner.Run(ctx, "", "dkms", "status", module)
	return err == nil && strings.TrimSpace(out) != ""
}

// workDir is a directory of the machine as its programs see it.
func (s *driverRelease) workDir(dir string) string {
	if s.runner.NoChroot {
		return filepath.Join(s.Root, dir)
	}
	return dir
}

func (s *driverRelease) uninstall(ctx context.Context, r plan.Record) error {
	var state releaseState
	if r.After != nil {
		if err := json.Unmarshal(r.After, &state); err != nil {
			return err
		}
	}
	switch {
	case state.DKMS != "":
		if s.dkmsKnows(ctx, state.DKMS) {
			if _, err := s.runner.Run(ctx, "", "dkms", "remove", state.DKMS, "--all"); err != nil {
				return err
			}
		}
	case state.Dir != "" && s.exists(state.Dir):
		if _, err := s.runner.Run(ctx, s.workDir(state.Dir), "make", "uninstall"); err != nil {
			return err
		}
	}
	if state.Dir != "" {
		if _, err := s.runner.Run(ctx, "", "depmod", "-a", s.kernel().release); err != nil {
			return err
		}
	}
	p, err := s.path(r.Object)
	if err != nil {
		return err
	}
	return os.RemoveAll(p)
}
