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
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/unpack"
	"github.com/kata-qat/kata-qat/provision/plan"
)

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
var dkmsConf = lazyregexp.New(`(?m)^PACKAGE_(NAME|VERSION)="?([A-Za-z0-9][A-Za-z0-9._+-]*)"?\s*$`)

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
