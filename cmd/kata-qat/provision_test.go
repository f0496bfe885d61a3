//go:build !entry

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// unprovisioned is a machine with two cards and nothing done.
func unprovisioned(t *testing.T) string {
	t.Helper()
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{
		{Address: "0000:6b:00.0", Family: "4xxx", NUMA: 1, Services: "sym;asym", State: "up", Group: 20},
		{Address: "0000:3d:00.0", Family: "c62x", Group: 21},
	}})
	for name, content := range map[string]string{
		"proc/cmdline":                        "intel_iommu=on iommu=pt\n",
		"proc/sys/kernel/osrelease":           "6.12.1\n",
		"lib/modules/6.12.1/modules.dep":      "kernel/vfio-pci.ko:\nkernel/vfio_iommu_type1.ko:\n",
		"etc/systemd/system/multi-user.wants": "",
		"usr/local/bin/kata-qat":              "",
		"etc/other.toml":                      "[[provision.pf]]\nmatch = { numa = 1 }\nservices = \"dc\"\n",
	} {
		p := filepath.Join(tree.Root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tree.Root
}

func TestProvisionHostCommandLines(t *testing.T) {
	root := unprovisioned(t)
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // parts of them; nothing is expected where they are empty
	}{
		{"--help", 0, "kata-qat provision host --undo", ""},
		{"extra", 2, "", `host takes no argument, got "extra"`},
		{"--dry-run --undo", 2, "", "--dry-run and --undo: expected one of them"},
		{"-o wide", 2, "", `output format "wide": expected table, json or yaml`},
		{"--vf-driver igb", 2, "", `driver "igb": expected vfio-pci or qat_vfio_pci`},
		{"--auto-reset yes", 2, "", `--auto-reset "yes": expected on or off`},
		{"--services sym$asym", 2, "", `--services "sym$asym": see kata-qat provision host --help`},
		{"--pf 6b:00.0", 2, "", "match.address"},
		{"--driver internet", 2, "", `source "internet"`},
		{"--driver-archive a.tgz", 2, "", "expected the absolute path of a local archive"},
		{"--undo", 0, "Nothing to undo: there is no journal.", ""},
		{"--dry-run", 2, "Nothing was changed.", ""},
		{"--dry-run --pf 0000:6b:00.0 --services dc", 2, "sym;asym -> dc", ""},
		{"--dry-run --numa 1", 2, "1 PFs: 0000:6b:00.0 (4xxx)", ""},
		{"--dry-run --family c62x", 2, "1 PFs: 0000:3d:00.0 (c62x)", ""},
		{"--dry-run --vfs 99", 1, "", "99 are asked for"},
		{"--dry-run --services dc", 1, "", `services "dc": family c62x has no configurable services`},
		{"--dry-run --config " + root + "/etc/other.toml", 2, "+ PROVISION_FLAGS=--config=/etc/other.toml", ""},
		{"--dry-run --config " + root + "/etc/none.toml", 1, "", "none.toml"},
	} {
		args := append([]string{"provision", "host"}, strings.Fields(c.args)...)
		code, stdout, stderr := kataQAT(t, append(args, "--host-root", root)...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
			t.Errorf("%s: exit code %d, expected %d with %q and %q\nstdout: %s\nstderr: %s", c.args, code, c.code, c.stdout, c.stderr, stdout, stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(root, plan.Directory)); err == nil {
		t.Error("a dry run, or one that was refused, left something")
	}
}

func TestTheFlagsOfARunAreRepeatedAtBoot(t *testing.T) {
	root := unprovisioned(t)
	_, stdout, stderr := kataQAT(t, "provision", "host", "--dry-run", "-o", "json", "--host-root", root, "--pf", "0000:6b:00.0", "--services", "sym;asym", "--vfs", "4", "--driver", "packages")
	var out plan.Outcome
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		t.Fatalf("%v: %s, %s", err, stdout, stderr)
	}
	const want = "PROVISION_FLAGS=--services=sym;asym --vfs=4 --pf=0000:6b:00.0\n"
	for _, s := range out.Steps {
		for _, c := range s.Changes {
			if strings.HasSuffix(c.To, want) {
				return
			}
		}
	}
	t.Errorf("no file has %q: %s", want, stdout)
}
