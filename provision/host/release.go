package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/unpack"
	"github.com/kata-qat/kata-qat/provision/plan"
)

const (
	releases  = plan.Directory + "/driver" // below it, one directory for each digest and kernel
	installed = "installed"                // in it, when all is done
)

// release is where a release is unpacked and built for the running kernel.
func (s *driverRelease) release() string {
	return path.Join(releases, strings.ToLower(s.config.Driver.SHA256)[:16]+"-"+s.kernel().release)
}

func (s *driverRelease) isInstalled() bool { return s.exists(path.Join(s.release(), installed)) }

func (s *driverRelease) checkArchive() (plan.State, error) {
	kernel := s.kernel().release
	if s.isInstalled() {
		notes, err := s.inTree()
		return plan.State{Is: path.Base(s.config.Driver.Archive) + " is installed for Linux " + kernel, Notes: notes}, err
	}
	state := plan.State{Is: path.Base(s.config.Driver.Archive) + " is not installed for Linux " + kernel}
	archive, err := s.path(s.config.Driver.Archive)
	if err != nil {
		return state, err
	}
	if err := unpack.CheckDigest(archive, s.config.Driver.SHA256); err != nil {
		return state, err
	}
	if build := "/lib/modules/" + kernel + "/build"; !s.exists(build) {
		return state, fmt.Errorf("%s is not there: expected the headers of the running kernel: install them (linux-headers-%s or kernel-devel-%[2]s)", build, kernel)
	}
	for _, program := range []string{"make", "gcc"} {
		if s.runner.Find(program) == "" {
			return state, fmt.Errorf("the machine has no %s: expected make and gcc, to build the driver release", program)
		}
	}
	return state, nil
}

// inTree says which PFs have a driver of the kernel's own tree, although a release
// is installed: only what is built elsewhere taints the kernel with an O (Linux,
// Documentation/ABI/testing/sysfs-module).
func (s *driverRelease) inTree() (notes []string, _ error) {
	ts, err := s.targets()
	if err != nil {
		return nil, err
	}
	for _, t := range ts {
		file := "/sys/module/" + moduleName(t.Family.PFModule) + "/taint"
		taint, err := s.text(file)
		if err != nil {
			return nil, err
		}
		if t.Driver == t.Family.PFDriver && s.exists(file) && !strings.Contains(taint, "O") {
			notes = append(notes, fmt.Sprintf("%s has the driver of the kernel's own tree still: it gets the release's at the next boot", t.Address))
		}
	}
	return notes, nil
}

func (s *driverRelease) planArchive() ([]plan.Change, error) {
	if s.isInstalled() {
		return nil, nil
	}
	return []plan.Change{{
		Object: "driver release " + s.config.Driver.Archive, From: "not installed", To: "built and installed for Linux " + s.kernel().release,
		Why: "provision.driver says so",
	}}, nil
}

// dkmsConf has what DKMS needs of a release's dkms.conf.
var dkmsConf = lazyregexp.New(`(?m)^PACKAGE_(NAME|VERSION)="?([A-Za-z0-9][A-Za-z0-9._+-]*)"?\s*$`)

// releaseState is what was installed of a release, or begun to be. A release
// that was only unpacked or built has none.
type releaseState struct {
	Dir    string `json:"dir"`              // where it was built, below the machine's root
	Kernel string `json:"kernel,omitempty"` // the release of the kernel that it is for
	DKMS   string `json:"dkms,omitempty"`   // name/version
}

// dkmsSource is where DKMS keeps a copy of the sources of name/version, which
// it does not take away with them (dkms(8), add and remove).
func dkmsSource(module string) string {
	return "/usr/src/" + strings.Replace(module, "/", "-", 1)
}

func (s *driverRelease) applyArchive(ctx context.Context, j *plan.Journal) error {
	dir := s.release()
	records, err := s.recordDirs(s.Name(), path.Join(dir, installed))
	if err != nil {
		return err
	}
	// make uninstall takes away what make install put there, but not where.
	updates, err := s.recordDirs(s.Name(), "/lib/modules/"+s.kernel().release+"/updates/drivers/crypto/qat/*")
	if err != nil {
		return err
	}
	firmware, err := s.recordDirs(s.Name(), "/lib/firmware/*")
	if err != nil {
		return err
	}
	records = slices.Concat(records, updates, firmware)
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
	state := releaseState{Dir: tree, Kernel: s.kernel().release}
	if state.DKMS, err = s.dkmsModule(tree); err != nil {
		return err
	}
	if state.DKMS == "" {
		if err := s.build(ctx, state); err != nil {
			return err
		}
	} else if !begun(j.Records(s.Name()), state.DKMS) && (s.dkmsKnows(ctx, state.DKMS) || s.exists(dkmsSource(state.DKMS))) {
		return fmt.Errorf("DKMS has %s already, in %s: somebody else has put it there: take it away (dkms remove %[1]s --all), or leave it and do without --driver-archive", state.DKMS, dkmsSource(state.DKMS))
	}
	if r.After, err = json.Marshal(state); err != nil {
		return err
	}
	if err := j.Save(r); err != nil {
		return err
	}
	defer s.changed()
	if err := s.install(ctx, state); err != nil {
		return err
	}
	if _, err := s.runner.Run(ctx, "", "depmod", "-a", state.Kernel); err != nil {
		return err
	}
	if err := j.Reached("release built"); err != nil {
		return err
	}
	p, err := s.path(path.Join(dir, installed))
	if err != nil {
		return err
	}
	return plan.WriteFile(p, []byte(state.Kernel+"\n"), 0o644)
}

// dkmsModule is the name/version of a release that is made for DKMS, "" if it is
// not or the machine has no DKMS.
func (s *driverRelease) dkmsModule(tree string) (string, error) {
	conf, err := s.read(path.Join(tree, "dkms.conf"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.runner.Find("dkms") == "" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	fields := make(map[string]string)
	for _, f := range dkmsConf.FindAllStringSubmatch(string(conf), -1) {
		fields[f[1]] = f[2]
	}
	if fields["NAME"] == "" || fields["VERSION"] == "" {
		return "", nil
	}
	return fields["NAME"] + "/" + fields["VERSION"], nil
}

// begun tells whether an earlier run began to install a release by DKMS.
func begun(records []plan.Record, module string) bool {
	return slices.ContainsFunc(records, func(r plan.Record) bool {
		var state releaseState
		return r.Kind == kindRelease && json.Unmarshal(r.After, &state) == nil && state.DKMS == module
	})
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
	if err := unpack.Fetch(archive, own, s.config.Driver.SHA256); err != nil {
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

// maker runs a release's own programs. Its configure and its makefiles have the
// kernel's headers from KERNEL_SOURCE_ROOT, and from the running kernel without it
// (https://intel.github.io/quickassist/GSG/2.X/installation.html).
func (s *driverRelease) maker(state releaseState) func(ctx context.Context, program string, args ...string) error {
	headers := "KERNEL_SOURCE_ROOT=/lib/modules/" + state.Kernel + "/build"
	runner := *s.runner
	runner.Env = append(slices.Clone(runner.Env), headers)
	dir := state.Dir // as the machine's programs see it
	if runner.NoChroot {
		dir = filepath.Join(s.Root, dir)
	}
	return func(ctx context.Context, program string, args ...string) error {
		if program == "make" {
			args = append(args, headers) // whatever configure has found
		}
		_, err := runner.Run(ctx, dir, program, args...)
		return err
	}
}

// build configures and builds a release where it is unpacked.
func (s *driverRelease) build(ctx context.Context, state releaseState) error {
	run := s.maker(state)
	if s.exists(path.Join(state.Dir, "configure")) {
		if err := run(ctx, "./configure", s.config.Driver.Configure...); err != nil {
			return err
		}
	}
	return run(ctx, "make", "all")
}

func (s *driverRelease) install(ctx context.Context, state releaseState) error {
	if state.DKMS == "" {
		return s.maker(state)(ctx, "make", "install")
	}
	// It has built it already for a kernel that was installed since.
	if out, err := s.runner.Run(ctx, "", "dkms", "status", state.DKMS, "-k", state.Kernel); err == nil && strings.Contains(out, ": installed") {
		return nil
	}
	for _, args := range [][]string{
		{"add", state.Dir}, {"build", state.DKMS, "-k", state.Kernel}, {"install", state.DKMS, "-k", state.Kernel},
	} {
		_, err := s.runner.Run(ctx, "", "dkms", args...)
		if err == nil || args[0] == "add" && s.dkmsKnows(ctx, state.DKMS) {
			continue
		}
		// DKMS says only where the compiler has said why.
		if log, rerr := s.read("/var/lib/dkms/" + state.DKMS + "/build/make.log"); rerr == nil && args[0] == "build" {
			err = fmt.Errorf("run dkms %s: %s", strings.Join(args, " "), reason(string(log)))
		}
		return err
	}
	return nil
}

func (s *driverRelease) dkmsKnows(ctx context.Context, module string) bool {
	out, err := s.runner.Run(ctx, "", "dkms", "status", module)
	return err == nil && strings.TrimSpace(out) != ""
}

func (s *driverRelease) uninstall(ctx context.Context, r plan.Record) error {
	var state releaseState
	if r.After != nil {
		if err := json.Unmarshal(r.After, &state); err != nil {
			return err
		}
	}
	state.Kernel = cmp.Or(state.Kernel, s.kernel().release) // journals had none at first
	trees := []string{r.Object}
	switch {
	case state.DKMS != "":
		if s.dkmsKnows(ctx, state.DKMS) {
			if _, err := s.runner.Run(ctx, "", "dkms", "remove", state.DKMS, "--all"); err != nil {
				return err
			}
		}
		trees = append(trees, dkmsSource(state.DKMS))
	case state.Dir != "" && s.exists(state.Dir):
		if err := s.maker(state)(ctx, "make", "uninstall"); err != nil {
			return err
		}
	}
	if state.Dir != "" && s.exists("/lib/modules/"+state.Kernel) {
		if _, err := s.runner.Run(ctx, "", "depmod", "-a", state.Kernel); err != nil {
			return err
		}
	}
	for _, tree := range trees {
		p, err := s.path(tree)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	return nil
}
