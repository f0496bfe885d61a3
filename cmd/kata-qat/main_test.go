//go:build !entry

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kata-qat/kata-qat/internal/containers/containerstest"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/node"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// kataQAT runs a command line.
func kataQAT(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"kata-qat"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

var (
	sandboxID = containerstest.ID("5a4db0")
	appID     = containerstest.ID("a99a")
	otherID   = containerstest.ID("a99b")
)

const appSpec = `{"process":{"env":["A=b","QAT=1"]},"annotations":{"kata-qat.io/injected":"env=QAT"},"linux":{"devices":[{"path":"/dev/vfio/100","type":"c","major":511,"minor":200}]}}`

// host is a host with a QAT device, a pod and a container whose spec is broken.
func host(t *testing.T) string {
	t.Helper()
	root := containerstest.Root(t)
	machine := qattest.Node{PFs: []qattest.PF{{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: "up", Group: 20, VFs: 2, VFDriver: "vfio-pci", FirstGroup: 100}}}
	if err := machine.Write(root); err != nil {
		t.Skipf("%v: run as root", err)
	}
	broken := containerstest.Container(otherID, sandboxID, "default", "qat-app", "broken", "{")
	containerstest.Serve(t, root,
		containerstest.Sandbox(sandboxID, "default", "qat-app", "{}"),
		containerstest.Container(appID, sandboxID, "default", "qat-app", "app", appSpec), broken)
	return root
}

func TestCommandLines(t *testing.T) {
	root := host(t)
	bundle := containerstest.WriteBundle(t, root, "no-spec", "", "")
	bare := containerstest.Root(t)
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // parts of them; nothing is expected where they are empty
	}{
		{"--help", 0, "default/qat-app --diff", ""},
		{"", 0, "COMMANDS:", ""},
		{"dump --help", 0, "kata-qat dump --all", ""},
		{"completion", 0, "fish", ""},
		{"dmp", 2, "", `kata-qat: no command "dmp": kata-qat --help lists them`},
		{"completion tcsh", 2, "", `no command "tcsh": kata-qat completion --help`},
		{"--nonsense devices", 2, "", "flag provided but not defined: -nonsense: see kata-qat --help"},
		{"dump --nonsense", 2, "", "flag provided but not defined: -nonsense: see kata-qat dump --help"},
		{"devices extra", 2, "", `devices takes no argument, got "extra": see kata-qat devices --help`},
		{"devices -o wide", 2, "", `output format "wide": expected table, json or yaml`},
		{"devices --log-level loud", 2, "", `log level "loud": expected`},
		{"version", 0, "kata-qat ", ""},
		{"version -o yaml", 0, "platform: linux/", ""},
		{"dump", 2, "", "nothing to dump"},
		{"dump --all a99a", 2, "", `--all and "a99a"`},
		{"dump --bundle / a99a", 2, "", "--bundle stands alone"},
		{"dump --source disk --all", 2, "", `source "disk": expected auto, containerd or bundle`},
		{"dump --host-root " + root + " a99a", 0, "default/qat-app", ""},
		{"dump --host-root " + root + " default/qat-app/app", 2, "", "expected namespace/pod"},
		{"dump --host-root " + root + " a99", 1, "", "container a99: 2 ids begin so: a99a00000000 (default/qat-app/app), a99b00000000 (default/qat-app/broken): give more of the id"},
		{"dump --host-root " + root + " ffff", 1, "", "container ffff: none of the 3 on this node"},
		{"dump --host-root " + root + " --all", 1, "a99a00000000", "kata-qat: read the spec of container a99b00000000 (default/qat-app/broken) from containerd"},
		{"dump --host-root " + root + " a99a --diff", 0, `+ "QAT=1"`, ""},
		{"dump --host-root " + root + " --bundle " + strings.TrimPrefix(bundle, root), 1, "", "no config.json in it"},
		{"dump --host-root " + bare + " --all", 1, "", "is there"},
		{"devices --host-root " + root, 0, "PF 0000:6b:00.0", "kata-qat: not all holders are known: read the spec of container a99b00000000"},
		{"devices --host-root " + root + " --ready -o json", 0, `"0000:6b:00.1"`, "not all holders"},
		{"devices --host-root " + bare, 1, "", "discover QAT devices"},
		{"counters --host-root " + root, 0, "0000:6b:00.0   4xxx     up      healthy   0", ""},
		{"counters --host-root " + root + " --engines -o json", 0, `"engine": 7`, ""},
		{"counters --host-root " + bare, 1, "", "discover QAT devices"},
		{"counters extra", 2, "", `counters takes no argument, got "extra"`},
		{"counters --watch --interval 1ms", 2, "", "--interval 1ms: expected at least 100ms"},
		{"counters --watch -o yaml", 2, "", "--watch: expected -o table, or -o json"},
		{"verify", 2, "", "expected one pod as namespace/pod"},
		{"verify qat-app", 2, "", "expected one pod as namespace/pod"},
		{"verify default/a default/b", 2, "", "expected one pod as namespace/pod"},
		{"verify default/a --for 0s", 2, "", "--for 0s: expected at least 100ms"},
		{"verify --host-root " + root + " default/qat-app --for 100ms", 1, "hardware in use: no (PF 0000:6b:00.0 got no request in 100ms)", "not all holders are known: read the spec of container a99b00000000"},
		{"verify --host-root " + root + " default/other", 1, "hardware in use: no (the pod holds no QAT VF of this node)", "not all holders are known"},
		{"verify --host-root " + bare + " default/qat-app", 1, "", "discover QAT devices"},
		{"topology --host-root " + root, 0, "</svg>", "not all holders are known"},
		{"topology --host-root " + root + " -o json", 0, `"name": "default/qat-app"`, "not all holders are known"},
		{"topology --host-root " + bare, 1, "", "discover QAT devices"},
		{"topology -o table", 2, "", `output format "table": expected svg, json or yaml`},
		{"nri-plugin --metrics-listen localhost:1", 1, "", `metrics.listen "localhost:1": expected an IP address and a port`},
		{"devices --config /nonexistent.toml", 1, "", "/nonexistent.toml"},
	} {
		code, stdout, stderr := kataQAT(t, strings.Fields(c.args)...)
		if c.stderr == "is there" {
			c.stderr = "list the containers of containerd at " + bare
		}
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) ||
			(c.stdout == "") != (stdout == "") || (c.stderr == "") != (stderr == "") {
			t.Errorf("kata-qat %s: exit %d, expected %d\nstdout: %s\nstderr: %s", c.args, code, c.code, stdout, stderr)
		}
		if strings.Count(stderr, "\n") > 1 {
			t.Errorf("kata-qat %s: more than one line on stderr: %s", c.args, stderr)
		}
	}
}

func TestEveryErrorHasALine(t *testing.T) {
	root := host(t)
	containerstest.WriteBundle(t, root, appID, "config.json", "[")
	code, _, stderr := kataQAT(t, "dump", "--host-root", root, "--all")
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if code != 1 || len(lines) != 2 || !strings.HasPrefix(lines[0], "kata-qat: ") || !strings.HasPrefix(lines[1], "kata-qat: ") {
		t.Errorf("exit %d, %q: expected two lines", code, lines)
	}
}

func TestVersionForPrograms(t *testing.T) {
	_, stdout, _ := kataQAT(t, "version", "-o", "json")
	var v map[string]string
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || v["version"] == "" || v["commit"] == "" || v["go"] == "" {
		t.Errorf("%s, %v", stdout, err)
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	app := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	app.Commands = append(app.Commands, &cli.Command{Name: "outer", Flags: []cli.Flag{&cli.BoolFlag{Name: "b"}}, Subcommands: []*cli.Command{
		{Name: "inner", Flags: []cli.Flag{&cli.StringFlag{Name: "s"}, &cli.StringFlag{Name: "state"}}},
	}})
	for in, want := range map[string]string{
		"dump id -o json":              "dump -o json id",
		"dump id --output=json id2":    "dump --output=json id id2",
		"dump id --all -o":             "dump --all -o id", // the parser asks for the value
		"dump id --host-root /h --all": "--host-root /h dump --all id",
		"--host-root /h dump id":       "--host-root /h dump id",
		"dump devices":                 "dump devices",
		"dump -- --all -o":             "dump -- --all -o",
		"dump - -a":                    "dump -a -",
		"dump --nonsense id":           "dump --nonsense id",
		"outer x inner --b":            "outer --b x inner", // x is an argument, so inner is one too
		"outer --b inner a --s v":      "outer --b inner --s v a",
		"outer inner --state s":        "outer inner --state s", // its own flag goes before the global one
		"":                             "",
	} {
		got := flagsFirst(app, append([]string{"kata-qat"}, strings.Fields(in)...))
		if s := strings.Join(got[1:], " "); s != want {
			t.Errorf("%s: %s, expected %s", in, s, want)
		}
	}
	if got := flagsFirst(app, nil); got != nil {
		t.Errorf("%q", got)
	}
}

// completed is what is suggested for the last word.
func completed(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := kataQAT(t, append(args, completionFlag)...)
	if code != 0 || stderr != "" {
		t.Errorf("completion of %q: exit %d, %q: expected it to be quiet", args, code, stderr)
	}
	return strings.Join(strings.Fields(stdout), " ")
}

func TestCompletion(t *testing.T) {
	root := host(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"d"}, "dump devices doctor"},
		{[]string{"completion", ""}, "bash zsh fish"},
		{[]string{"dump", "--so"}, "--source"},
		{[]string{"dump", "--host"}, "--host-root"},
		{[]string{"devices", "--re"}, "--ready"},
		{[]string{"dump", "--source", ""}, "auto containerd bundle"},
		{[]string{"dump", "x", "-o", "j"}, "json"},
		{[]string{"devices", "--log-level", ""}, "error warn info debug"},
		{[]string{"dump", "--bundle", ""}, ""},
		{[]string{"dump", "--host-root", root, ""}, "default/qat-app 5a4db0000000 a99a00000000 a99b00000000"},
		{[]string{"--host-root", root, "dump", "--diff", "a99a"}, "a99a00000000"},
		{[]string{"dump", "--host-root", root, "default/"}, "default/qat-app"},
		{[]string{"dump", "--host-root", "/nonexistent", ""}, ""},
		{[]string{"verify", "--host-root", root, ""}, "default/qat-app"},
		{[]string{"counters", "--eng"}, "--engines"},
		{[]string{"topology", "-o", ""}, "svg json yaml"},
		{[]string{"version", ""}, ""},
	} {
		if got := completed(t, c.args...); got != c.want {
			t.Errorf("%q: %s, expected %s", c.args, got, c.want)
		}
	}
}

func TestCompletionSuggestsNothingThatAShellWouldRun(t *testing.T) {
	root := containerstest.Root(t)
	containerstest.Serve(t, root, containerstest.Sandbox(sandboxID, "default", "$(reboot)", "{}"), containerstest.Sandbox(appID, "default", "-o", "{}"))
	if got := completed(t, "dump", "--host-root", root, ""); got != "default/-o 5a4db0000000 a99a00000000" {
		t.Errorf("%s", got)
	}
}

func TestScriptsAreThoseOfTheShells(t *testing.T) {
	for _, shell := range shells {
		code, script, _ := kataQAT(t, "completion", shell)
		if code != 0 || !strings.Contains(script, completionFlag) {
			t.Errorf("%s: exit %d\n%s", shell, code, script)
		}
		interpreter, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		check := exec.Command(interpreter, "-n")
		check.Stdin = strings.NewReader(script)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s does not take its script: %v\n%s", shell, err, out)
		}
	}
}

// The script runs in the shell, and the shell runs kata-qat.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	root := host(t)
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "kata-qat")); err != nil {
		t.Fatal(err)
	}
	_, script, _ := kataQAT(t, "completion", "bash")
	script += `
COMP_WORDS=(kata-qat dump --host-root "$ROOT" def); COMP_CWORD=4; _kata_qat; echo "${COMPREPLY[@]}"
COMP_WORDS=(kata-qat dump --host-root "$ROOT" -o ""); COMP_CWORD=5; _kata_qat; echo "${COMPREPLY[@]}"`
	cmd := exec.Command(bash, "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "ROOT="+root, "KATA_QAT_TEST_MAIN=1")
	out, err := cmd.CombinedOutput()
	if want := "default/qat-app\ntable json yaml\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v, expected %q", out, err, want)
	}
}

func TestMain(m *testing.M) {
	if os.Getenv("KATA_QAT_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestCompletionIsQuick(t *testing.T) {
	start := time.Now()
	completed(t, "dump", "--host-root", containerstest.Root(t), "")
	if took := time.Since(start); took > 10*completionTimeout {
		t.Errorf("%v without a containerd", took)
	}
}

// On a machine that has nothing the whole plan is shown all the same, with what has
// to be there first.
func TestProvisionNodeShowsEveryPart(t *testing.T) {
	tree := qattest.New(t, qattest.Node{})
	proc := filepath.Join(tree.Root, "proc/sys/kernel")
	if err := errors.Join(os.MkdirAll(proc, 0o755), os.WriteFile(filepath.Join(proc, "osrelease"), []byte("6.12.1\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := kataQAT(t, "--host-root", tree.Root, "provision", "node", "--dry-run")
	if code != exitPending || stderr != "" {
		t.Errorf("exit code %d, expected %d; stderr %q", code, exitPending, stderr)
	}
	for _, want := range []string{
		"== host", "there is no QAT physical function", "virtual-functions    later    after preflight", "bound to vfio-pci",
		"== guest", "no initrd or image of Kata's", "+   modules, with all that they need: vfio, vfio-pci, vfio_iommu_type1",
		"== runtime", "kata containers is not on this machine", "kata-config  later    after kata", "+ cold_plug_vfio = \"root-port\"", `+     required_plugins = ["kata-qat"]`,
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the plan does not have %q:\n%s", want, stdout)
		}
	}
	code, stdout, _ = kataQAT(t, "--host-root", tree.Root, "provision", "node", "--dry-run", "-o", "json")
	var parts []node.Part
	if err := json.Unmarshal([]byte(stdout), &parts); err != nil || code != exitPending || len(parts) != 3 {
		t.Fatalf("exit code %d, %v: %s", code, err, stdout)
	}
	if last := parts[2].Outcome.Steps[3]; last.Step != "containerd" || last.Status != plan.Later || last.After != "kata" || len(last.Changes) < 2 {
		t.Errorf("the last step is %+v", last)
	}
	if code, _, stderr := kataQAT(t, "--host-root", tree.Root, "provision", "node"); code != exitFailure || !strings.Contains(stderr, "host: preflight: there is no QAT physical function") {
		t.Errorf("it was applied: exit code %d, %s", code, stderr)
	}
}

func TestHowAProgramEndedThatWasRunIsNotHowWeEnd(t *testing.T) {
	for _, code := range []string{"2", "3", "100"} { // that something is pending, that a reboot is needed
		var out bytes.Buffer
		err := exec.Command("/bin/sh", "-c", "exit "+code).Run()
		if got := report(&out, fmt.Errorf("run make: %w", err)); got != exitFailure {
			t.Errorf("exit code %d, want %d", got, exitFailure)
		}
		if got, want := out.String(), "kata-qat: run make: exit status "+code+"\n"; got != want {
			t.Errorf("it says %q, want %q", got, want)
		}
	}
}
