//go:build !entry

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// buildEntry builds the program that is called kata-qat on a node and puts a
// stand-in for the full one beside it, which says how it was called.
func buildEntry(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "kata-qat")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "entry,urfave_cli_no_docs", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	standin := "#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done\nexit 7\n"
	if err := os.WriteFile(filepath.Join(filepath.Dir(program), "kata-qat-full"), []byte(standin), 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

func TestTheEntryDoesProvisionHostAndBecomesTheFullProgramForTheRest(t *testing.T) {
	program := buildEntry(t)
	run := func(args string) (string, int) {
		cmd := exec.CommandContext(t.Context(), program, strings.Fields(args)...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	root := t.TempDir()
	for _, own := range []string{
		"provision host --help",
		"provision host --dry-run --no-such-flag",
		"--host-root " + root + " provision --if-devices host",
		"provision --if-devices host --host-root " + root,
	} {
		if out, code := run(own); code == 7 || strings.Contains(out, "<") && !strings.Contains(out, "kata-qat provision host") {
			t.Errorf("%s went elsewhere: %s", own, out)
		}
	}
	for _, other := range []string{
		"", "--help", "--version", "help", "provision", "provision --help", "provision guest --dry-run", "provision hst", "dump --all -o json",
		"--config provision dump host", "nri-plugin", "provision host --generate-bash-completion",
	} {
		out, code := run(other)
		if want := "<" + strings.Join(strings.Fields(other), "><") + ">"; code != 7 || other != "" && out != want {
			t.Errorf("%q: exit code %d, the full program was called with %s, expected %s", other, code, out, want)
		}
	}
	// By a link, as a distribution may have it, the same file is found.
	link := filepath.Join(root, "qat")
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.CommandContext(t.Context(), link, "version").Output(); string(out) != "<version>" {
		t.Errorf("by a link: %q", out)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(program), "kata-qat-full")); err != nil {
		t.Fatal(err)
	}
	out, code := run("dump --all")
	if code != exitFailure || strings.Count(out, "\n") != 1 || !strings.Contains(out, "kata-qat-full: no such file or directory: install it beside "+program) {
		t.Errorf("without the full program: exit code %d, %q", code, out)
	}
}

// The entry is worth its while as long as it stays small.
func TestTheEntryStartsWithLittle(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), buildEntry(t), "provision", "host", "--help")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	total := 0
	for _, m := range regexp.MustCompile(`(?m)^init (\S+) @.*, (\d+) bytes, \d+ allocs$`).FindAllStringSubmatch(string(out), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	const most = 256 << 10
	if total == 0 || total > most {
		t.Errorf("its packages allocate %d bytes before main, expected at most %d (the full program: 1.5 MiB): look for the client of a server among what provision host imports", total, most)
	}
	t.Logf("%d KiB before main", total>>10)
}
