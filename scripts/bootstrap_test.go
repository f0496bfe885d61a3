// Package scripts tests the scripts that administrators run, with a stand-in for
// the program that they call.
package scripts

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// site is a machine and a release that has a stand-in for kata-qat, which says
// how it was called and exits as it is told.
type site struct{ root, release, calls, code string }

func newSite(t *testing.T) site {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the script wants root")
	}
	dir := t.TempDir()
	s := site{root: filepath.Join(dir, "root"), release: filepath.Join(dir, "release"), calls: filepath.Join(dir, "calls"), code: filepath.Join(dir, "code")}
	for _, d := range []string{s.root + "/etc/systemd/system", s.release} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.program(t, "kata-qat", "")
	s.program(t, "kata-qat-full", "")
	s.program(t, "containerd-shim-kata-qat-v2", "")
	s.exits(t, "0")
	return s
}

func (s site) program(t *testing.T, name, mark string) {
	t.Helper()
	write(t, filepath.Join(s.release, name), "#!/bin/sh\n# "+mark+"\necho \"$*\" >>"+s.calls+"\nexit \"$(cat "+s.code+")\"\n", 0o755)
}

func (s site) exits(t *testing.T, code string) {
	t.Helper()
	write(t, s.code, code, 0o644)
}

func write(t *testing.T, file, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// run runs the script with neither terminal nor input.
func (s site) run(t *testing.T, script string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{script, "--host-root", s.root}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// called returns how kata-qat was called since the last time.
func (s site) called(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(s.calls)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	os.Remove(s.calls)
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "--host-root "+s.root+" ", "")
}

// files are all files of the machine and what is in them.
func (s site) files(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, s.root)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const bootstrap = "bootstrap-node.sh"

func TestDryRunChangesNothing(t *testing.T) {
	s := newSite(t)
	s.exits(t, "2")
	out, code := s.run(t, bootstrap, "--dry-run", "--from", s.release, "--", "--families", "c62x")
	if code != 2 || s.called(t) != "provision node --dry-run --families c62x" {
		t.Errorf("exit code %d: %s", code, out)
	}
	if files := s.files(t); len(files) != 0 {
		t.Errorf("it wrote %v", files)
	}
}

func TestInstallTwiceChangesNothingMore(t *testing.T) {
	s := newSite(t)
	out, code := s.run(t, bootstrap, "--from", s.release)
	if code != 0 || s.called(t) != "provision node" {
		t.Fatalf("exit code %d: %s", code, out)
	}
	first := s.files(t)
	for _, want := range []string{"/usr/local/bin/kata-qat", "/usr/local/bin/containerd-shim-kata-qat-v2", "/etc/systemd/system/kata-qat.service", "/usr/local/lib/kata-qat/bootstrap-node.sh"} {
		if first[want] == "" {
			t.Errorf("%s is not there", want)
		}
	}
	out, code = s.run(t, bootstrap, "--from", s.release)
	if code != 0 || strings.Contains(out, "installed") {
		t.Errorf("the second run: exit code %d: %s", code, out)
	}
	s.program(t, "kata-qat", "a new release")
	if out, code = s.run(t, bootstrap, "--from", s.release); code != 0 || strings.Count(out, "installed") != 1 {
		t.Errorf("a new release: exit code %d: %s", code, out)
	}
	if !strings.Contains(s.files(t)["/usr/local/bin/kata-qat"], "a new release") {
		t.Error("the program was not replaced")
	}
}

// The installed script goes on after the reboot with the arguments of before,
// and cleans up after itself.
func TestItGoesOnAfterAReboot(t *testing.T) {
	s := newSite(t)
	s.exits(t, "3")
	out, code := s.run(t, bootstrap, "--from", s.release, "--", "--base", "/a b/kata.img")
	if code != 3 || !strings.Contains(out, "reboot this machine") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	unit := filepath.Join(s.root, "etc/systemd/system/multi-user.target.wants/kata-qat-bootstrap.service")
	if _, err := os.Lstat(unit); err != nil {
		t.Errorf("nothing goes on after the reboot: %v", err)
	}
	s.called(t)
	s.exits(t, "0")
	out, code = s.run(t, filepath.Join(s.root, "usr/local/lib/kata-qat", bootstrap))
	if got := s.called(t); code != 0 || got != "provision node --base /a b/kata.img" {
		t.Errorf("after the reboot: exit code %d, called %q: %s", code, got, out)
	}
	if _, err := os.Lstat(unit); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unit is still there: %v", err)
	}
}

func TestAFailureIsSaidAndTheProgramsStay(t *testing.T) {
	s := newSite(t)
	s.exits(t, "1")
	if out, code := s.run(t, bootstrap, "--from", s.release); code != 1 || !strings.Contains(out, "mend what is said above") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if out, code := s.run(t, bootstrap, "--uninstall", "--from", s.release); code != 1 || !strings.Contains(out, "the programs stay") {
		t.Errorf("uninstall: exit code %d: %s", code, out)
	}
}

func TestUninstallLeavesNothing(t *testing.T) {
	s := newSite(t)
	if out, code := s.run(t, bootstrap, "--from", s.release); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	s.called(t)
	out, code := s.run(t, bootstrap, "--uninstall", "--from", s.release)
	if code != 0 || s.called(t) != "provision node --undo" {
		t.Errorf("exit code %d: %s", code, out)
	}
	if files := s.files(t); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	s := newSite(t)
	for says, args := range map[string][]string{
		"unknown argument --forse": {"--forse"},
		"--from wants a directory": {"--from"},
		"kata-qat is not in":       {"--from", t.TempDir()},
	} {
		if out, code := s.run(t, bootstrap, args...); code == 0 || !strings.Contains(out, says) {
			t.Errorf("%v: exit code %d: %s", args, code, out)
		}
	}
	if out, code := s.run(t, bootstrap, "--host-root", "/nonexistent"); code != 1 || !strings.Contains(out, "no such directory") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
