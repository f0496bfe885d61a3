//go:build !entry

package main

import (
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/doctor"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

func TestProvisionClusterCommandLines(t *testing.T) {
	root := qattest.New(t, qattest.Node{}).Root
	t.Setenv("KUBECONFIG", "/nowhere/config")
	t.Setenv("HOME", t.TempDir())
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // parts of them; nothing is expected where they are empty
	}{
		{"--help", 0, "kata-qat provision cluster --undo", ""},
		{"--print", 0, "handler: kata-qat\nkind: RuntimeClass\n", ""},
		{"--print --handler kata-gk", 0, "handler: kata-gk\n", ""},
		{"--print -o json", 0, `"kind": "List"`, ""},
		{"--print --dry-run", 2, "", "expected one of them"},
		{"--print --handler runc", 2, "", `runtime handler "runc" is none of handlers`},
		{"--print --overhead-memory lots", 2, "", `overhead of memory "lots"`},
		{"--print --node-selector zone", 2, "", `node selector "zone": expected name=value`},
		{"--print --node-labels", 2, "", "--print is for objects"},
		{"--every 1m", 2, "", "--every is for --node-labels"},
		{"--node-labels --every 1ms", 2, "", "expected at least 1s"},
		{"--node-labels --all-nodes", 2, "", "--all-nodes is for --node-labels --undo"},
		{"--dry-run", 1, "", "find the cluster: there is no kubeconfig, and this is no pod: name one with --kubeconfig"},
		{"--kubeconfig /nowhere/else", 1, "", "find the cluster: stat /nowhere/else"},
	} {
		code, stdout, stderr := kataQAT(t, append([]string{"--host-root", root, "provision", "cluster"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) || strings.Count(stderr, "\n") > 1 {
			t.Errorf("provision cluster %s: exit code %d, expected %d\n%s%s", c.args, code, c.code, stdout, stderr)
		}
	}
}

func TestANodeIsFitUnlessDoctorFindsAFailure(t *testing.T) {
	report := func(states ...doctor.State) *doctor.Report {
		r := &doctor.Report{}
		for i, s := range states {
			r.Checks = append(r.Checks, doctor.Result{Check: "check-" + string(rune('a'+i)), State: s})
		}
		return r
	}
	if why := unfit(report(doctor.OK, doctor.Warn, doctor.Skip)); why != "" {
		t.Errorf("a node that could be better: %s", why)
	}
	if why := unfit(report(doctor.OK, doctor.Fail, doctor.Warn, doctor.Fail)); !strings.Contains(why, "check-b, check-d:") {
		t.Errorf("a node with two failures: %q", why)
	}
}

func TestABareMachineIsLeftAlone(t *testing.T) {
	root := qattest.New(t, qattest.Node{}).Root
	for _, part := range []string{"host", "guest", "runtime"} {
		code, stdout, stderr := kataQAT(t, "--host-root", root, "provision", "--if-devices", part)
		if code != 0 || stdout != "Nothing to do: this machine has no QAT device.\n" || stderr != "" {
			t.Errorf("provision --if-devices %s: %d: %s%s", part, code, stdout, stderr)
		}
		if code, _, _ := kataQAT(t, "--host-root", root, "provision", part); code == 0 {
			t.Errorf("provision %s without it succeeds", part)
		}
	}
}
