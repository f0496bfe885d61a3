//go:build !entry

package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/docs"
)

// Every command line of the documentation is one that kata-qat understands.
func TestDocumentedCommandLinesAreUnderstood(t *testing.T) {
	app := newApp(os.Stdout, os.Stderr)
	all, err := docs.Commands("../..")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, c := range all {
		if c.Program() != "kata-qat" {
			continue
		}
		line, _, _ := strings.Cut(c.Text, " |")
		checked++
		known, level := map[string]bool{"help": false, "h": false, "version": false}, app.Commands
		for name, value := range takesValue(app.Flags) {
			known[name] = value
		}
		value, arguments := false, false
		for _, word := range strings.Fields(line)[1:] {
			switch {
			case value:
				value = false
			case strings.HasPrefix(word, "-"):
				name, _, given := strings.Cut(strings.TrimLeft(word, "-"), "=")
				takes, ok := known[name]
				if !ok {
					t.Errorf("%s: %q: there is no flag %s", c.File, c.Text, word)
				}
				value = takes && !given
			case word == strings.ToUpper(word): // COMMAND, NAMESPACE/POD
				arguments = true
			default:
				sub := named(level, word)
				if sub == nil {
					if !arguments && takesCommand(level) {
						t.Errorf("%s: %q: there is no command %s", c.File, c.Text, word)
					}
					arguments = true
					continue
				}
				for name, value := range takesValue(sub.Flags) {
					known[name] = value
				}
				level = sub.Subcommands
			}
		}
	}
	if checked < 60 {
		t.Errorf("only %d command lines are found", checked)
	}
}

// takesCommand tells whether one of these must follow, and no argument.
func takesCommand(level []*cli.Command) bool {
	return slices.ContainsFunc(level, func(c *cli.Command) bool { return c.Name != "help" })
}

// documented is a machine for the documented commands: a sound one, with a pod that
// holds a VF, and a shell that finds kata-qat.
type documented struct {
	t    *testing.T
	dir  string // where the shell is
	root string // of the machine
}

func newDocumented(t *testing.T) documented {
	t.Helper()
	d := documented{t: t, dir: t.TempDir(), root: containerstest.Root(t)}
	machine := qattest.Node{PFs: []qattest.PF{{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: "up", Group: 20, VFs: 2, VFDriver: "vfio-pci", FirstGroup: 100}}}
	if err := machine.Write(d.root); err != nil {
		t.Skipf("%v: run as root", err)
	}
	containerstest.Serve(t, d.root,
		containerstest.Sandbox(sandboxID, "default", "ingress", "{}"),
		containerstest.Container(appID, sandboxID, "default", "ingress", "app", appSpec))
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(d.dir, "kata-qat"))
	}
	config, cerr := os.ReadFile("../../kernel-config/testdata/kata-like.config")
	if err := errors.Join(err, cerr,
		os.MkdirAll(filepath.Join(d.root, "proc/sys/kernel"), 0o755), os.MkdirAll(filepath.Join(d.root, "boot"), 0o755),
		os.WriteFile(filepath.Join(d.root, "proc/sys/kernel/osrelease"), []byte("6.12.1\n"), 0o644),
		os.WriteFile(filepath.Join(d.root, "boot/config-6.12.1"), config, 0o644),
	); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d documented) command(line string) *exec.Cmd {
	line = strings.NewReplacer("NAMESPACE/POD", "default/ingress", "COMMAND", "provision host").Replace(line)
	cmd := exec.CommandContext(d.t.Context(), "sh", "-c", "exec "+line)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), "PATH="+d.dir+":"+os.Getenv("PATH"), "KATA_QAT_TEST_MAIN=1", "KATA_QAT_HOST_ROOT="+d.root)
	return cmd
}

// What only reads is run on a machine with simulated devices.
func TestDocumentedCommandsThatReadRun(t *testing.T) {
	doc := docs.For(t)
	d := newDocumented(t)
	expected := map[string]struct {
		code int
		says string
	}{
		// Devices, and nothing else.
		"kata-qat doctor":            {1, "run-dir"},
		"kata-qat doctor --problems": {1, "run-dir"},
		// Names of commands that want something more.
		"kata-qat dump":   {2, "nothing to dump"},
		"kata-qat verify": {2, "expected one pod"},

		"kata-qat COMMAND --help":              {0, "kata-qat provision host - "},
		"kata-qat counters":                    {0, "0000:6b:00.0   4xxx     up"},
		"kata-qat counters --engines":          {0, "0000:6b:00.0"},
		"kata-qat devices":                     {0, "default/ingress"},
		"kata-qat dump --all":                  {0, "default/ingress"},
		"kata-qat dump --diff NAMESPACE/POD":   {0, `+ "QAT=1"`},
		"kata-qat dump --diff default/ingress": {0, `+ "QAT=1"`},
		"kata-qat kernel-config":               {0, "merge"},
		"kata-qat kernel-config check --for guest --profile guest-kernel --family c62x": {1, "CRYPTO_DEV_QAT_C62XVF"},
		"kata-qat kernel-config list":        {0, "guest/c62x"},
		"kata-qat provision":                 {0, "runtime"},
		"kata-qat provision cluster --print": {0, "kind: RuntimeClass"},
		"kata-qat topology -f node-1.svg":    {0, ""},
	}
	watch := doc.Line("kata-qat counters --watch")
	for _, line := range doc.All() {
		if line == watch {
			continue
		}
		want, ok := expected[line]
		if !ok {
			t.Errorf("%s: what is expected of it?", line)
			continue
		}
		cmd := d.command(line)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != want.code || !strings.Contains(string(out), want.says) {
			t.Errorf("%s: exit code %d, expected %d with %q in\n%s", line, code, want.code, want.says, out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(d.dir, "node-1.svg")); err != nil || !strings.Contains(string(b), "default/ingress") {
		t.Errorf("the picture: %v, %s", err, b)
	}

	cmd := d.command(watch)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "0000:6b:00.0") {
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v after ^C", watch, err)
	}
}
