//go:build !entry

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKernelConfigCommandLines(t *testing.T) {
	dir := t.TempDir()
	good := "# Linux/x86 6.12.9 Kernel Configuration\n"
	for _, name := range []string{"PCI", "PCI_MSI", "PCIEPORTBUS", "HOTPLUG_PCI", "HOTPLUG_PCI_PCIE", "IOMMU_SUPPORT", "INTEL_IOMMU", "IRQ_REMAP", "VFIO", "VFIO_PCI", "VFIO_GROUP", "VFIO_CONTAINER", "HUGETLBFS"} {
		good += "CONFIG_" + name + "=y\n"
	}
	files := map[string]string{"good": good, "bad": strings.Replace(good, "CONFIG_IRQ_REMAP=y\n", "# CONFIG_IRQ_REMAP is not set\n", 1), "proc/sys/kernel/osrelease": "6.12.9\n", "boot/config-6.12.9": good}
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const guest = "kernel-config check --for guest --profile vfio "
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // parts of them; nothing is expected where they are empty
	}{
		{"kernel-config --help", 0, "kata-qat kernel-config check", ""},
		{"kernel-config list", 0, "guest/c62x", ""},
		{"kernel-config list -o json", 0, `"since": "4.5"`, ""},
		{"kernel-config list extra", 2, "", `list takes no argument, got "extra"`},
		{"kernel-config show guest/vfio", 0, "CONFIG_VFIO_GROUP=y", ""},
		{"kernel-config show guest/vfio --kernel 6.1", 0, "# part of CONFIG_VFIO before Linux 6.6", ""},
		{"kernel-config show guest/vfi", 2, "", `kernel config fragment "guest/vfi": expected one of host/common`},
		{"kernel-config show --family c63x", 2, "", `QAT family "c63x"`},
		{"kernel-config show --kernel six", 2, "", `kernel version "six"`},
		{guest + dir + "/good", 0, "IRQ_REMAP", ""},
		{guest + "--host-root " + dir, 0, "boot/config-6.12.9, Linux 6.12", ""},
		{guest + dir + "/bad", 1, "FAIL", "not as it must be: CONFIG_IRQ_REMAP\n"},
		{guest + dir + "/bad -o json", 1, `"state": "missing"`, "CONFIG_IRQ_REMAP\n"},
		{guest + dir + "/gone", 1, "", "no such file or directory"},
		{guest + dir + "/good " + dir + "/bad", 2, "", "check takes one configuration"},
		{"kernel-config check --for node " + dir + "/good", 2, "", `side "node": expected host or guest`},
		{"kernel-config merge", 2, "", "merge needs --source and --build"},
		{"kernel-config merge --source " + dir + " --build " + dir + "/build", 1, "", "expected the directory of a kernel's source"},
	} {
		code, stdout, stderr := kataQAT(t, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) ||
			(c.stdout == "") != (stdout == "") || (c.stderr == "") != (stderr == "") {
			t.Errorf("kata-qat %s: exit %d, expected %d\nstdout: %s\nstderr: %s", c.args, code, c.code, stdout, stderr)
		}
	}
}
