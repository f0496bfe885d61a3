//go:build lab

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/docs"
)

// containerdUnit is containerd's own, without what needs a network.
const containerdUnit = `[Service]
ExecStart=/usr/bin/containerd --log-level warn
Type=notify
Delegate=yes
KillMode=process

[Install]
WantedBy=multi-user.target
`

// kataShim says which Kata it is; sandboxes are none of this test's business.
const kataShim = `#!/bin/sh
[ "$1" != --version ] || echo 'Kata Containers containerd shim (Rust): id: io.containerd.kata.v2, version: 4.1.0, commit: 1'
`

// tools are the container runtime's programs for the guest.
func tools(t *testing.T) map[string]string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/usr/sbin/runc": "/usr/sbin/runc"}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		files["/usr/bin/"+name] = filepath.Join(root, "build", "tools", name)
	}
	return files
}

// release are the files of a machine with containerd and Kata, and of a release
// of kata-qat that was unpacked there.
func release(t *testing.T) map[string]string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files := tools(t)
	for _, name := range []string{"scripts/bootstrap-node.sh", "deploy/systemd"} {
		files["/opt/release/"+name] = filepath.Join(root, name)
	}
	for _, name := range []string{"kata-qat", "containerd-shim-kata-qat-v2"} {
		if files["/opt/release/bin/"+name], err = Build(t.Context(), "./cmd/"+name); err != nil {
			t.Fatal(err)
		}
	}
	files["/usr/local/bin/kata-qat"] = files["/opt/release/bin/kata-qat"]
	withEntry(t, files)
	for _, name := range []string{"kata-qat", "kata-qat-full"} {
		files["/opt/release/bin/"+name] = files["/usr/local/bin/"+name]
		delete(files, "/usr/local/bin/"+name)
	}
	dir := t.TempDir()
	kata := "/opt/kata/share/kata-containers/kata-containers-initrd.img"
	files[kata] = kataBase{compress: []string{"zstd", "-qc"}, kmod: true, size: 1 << 10}.write(t)
	for name, text := range map[string]string{
		"/etc/systemd/system/containerd.service":                                                 containerdUnit,
		"/etc/kata-qat/config.toml":                                                              "standalone = true\n[provision]\nnode_group = \"kvm\"\n",
		"/opt/kata/runtime-rs/bin/containerd-shim-kata-v2":                                       kataShim,
		"/opt/kata/share/defaults/kata-containers/runtime-rs/configuration-qemu-runtime-rs.toml": "[hypervisor.qemu]\nkernel_params = \"\"\n",
		"/usr/lib/firmware/qat_4xxx.bin":                                                         "", "/usr/lib/firmware/qat_4xxx_mmp.bin": "",
	} {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		files[name] = file
	}
	return files
}

// unusedIOMMU is a DMAR table without any unit: firmware that has an IOMMU which
// the kernel does not use. Debian's kernel needs no parameter to use one.
func unusedIOMMU(t *testing.T) []string {
	t.Helper()
	table := filepath.Join(t.TempDir(), "dmar")
	if err := os.WriteFile(table, append([]byte{38}, make([]byte, 11)...), 0o644); err != nil { // 39 address lines
		t.Fatal(err)
	}
	return []string{"-acpitable", "sig=DMAR,rev=1,data=" + table}
}

// typed is a script that runs a documented line, and says so if it went well.
func typed(line string) string {
	line = strings.NewReplacer("FILE", "/opt/kata/share/kata-containers/kata-containers-initrd.img", "MODULE", "qat_4xxxvf").Replace(line)
	return fmt.Sprintf("( %s ) >/tmp/typed 2>&1 && echo 'typed: %[1]s' || { echo \"$?: \"'%[1]s'; tail -5 /tmp/typed; }\n", line)
}

// The machine is as a distribution makes it: its own systemd runs the units, its
// udev the rule, its kmod loads modules, its update-grub makes the command line of
// the next boot, and it is rebooted.
func TestANodeIsBootstrappedAcrossARebootAndPutBack(t *testing.T) {
	t.Parallel()
	doc := docs.For(t)
	disk := SystemDisk(t)
	machine := Config{
		PFs: []PF{{Family: "4xxx", ACS: true}}, QEMUArgs: unusedIOMMU(t), Memory: 2048,
		Cmdline: "systemd.show_status=0", Disk: disk, Files: release(t), Timeout: 8 * time.Minute,
	}
	machine.Script = `
		systemctl daemon-reload; systemctl enable containerd
		cd /opt/release
		` + doc.Line("scripts/bootstrap-node.sh --dry-run") + ` >/dev/null 2>&1 || true
		[ ! -e /usr/local/bin/kata-qat ] && [ ! -e /var/lib/kata-qat ] && echo nothing changed
		` + doc.Line("scripts/bootstrap-node.sh") + ` >/tmp/log 2>&1 && echo code=0 || { echo code=$?; tail -3 /tmp/log; }
		systemctl is-enabled kata-qat-bootstrap
		systemctl is-enabled kata-qat-provision
		kata-qat doctor --problems | head -4`
	res := Run(t, machine)
	expect(t, res, "nothing changed", "code=3", "enabled")

	cmdline := GRUBCommandLine(t, disk)
	if !strings.Contains(cmdline, "intel_iommu=on iommu=pt") {
		t.Fatalf("the next boot's command line is %q, expected intel_iommu=on iommu=pt in it", cmdline)
	}
	_, ours, _ := strings.Cut(cmdline, "quiet")
	machine.Files, machine.QEMUArgs, machine.IOMMU = nil, nil, true
	machine.Cmdline += ours
	uninstall := doc.Line("scripts/bootstrap-node.sh --uninstall")
	undo := doc.Line("kata-qat provision runtime --undo")
	runtime, doctor := doc.Line("kata-qat provision runtime"), doc.Line("kata-qat doctor")
	var rest strings.Builder
	lines := 0
	for _, line := range doc.All() {
		if !strings.HasPrefix(line, "scripts/") && line != undo && line != runtime && line != doctor {
			rest.WriteString(typed(line))
			lines++
		}
	}
	machine.Script = `
		# The daemon connects, and is told of changes, a moment later than it is asked to.
		settled() { for i in 1 2 3 4 5 6 7 8 9; do kata-qat doctor >/dev/null && break; sleep 1; done; }
		systemctl is-system-running --wait || journalctl --no-pager -o cat -u 'kata-qat*'
		for u in kata-qat-provision kata-qat containerd; do echo "$u: $(systemctl is-active $u)"; done
		[ ! -e /etc/systemd/system/kata-qat-bootstrap.service ] && echo bootstrap done
		for g in /dev/vfio/[0-9]*; do stat -c 'node: %G %a' $g; done
		settled
		kata-qat doctor --problems && echo doctor=0 || echo doctor=$?
		kata-qat provision node --dry-run >/tmp/again 2>&1 && echo again=0 || { echo again=$?; cat /tmp/again; }
		modprobe qat_4xxxvf
		` + rest.String() + typed(undo) + typed(runtime) + `
		settled
		` + typed(doctor) + `
		cd /opt/release
		` + uninstall + ` >/tmp/undo && echo uninstalled || cat /tmp/undo
		for d in /etc/systemd /etc/udev /etc/modprobe.d /etc/modules-load.d /etc/default /etc/kata-qat /usr/local; do find $d -name '*kata-qat*'; done | sed 's/^/left: /'
		for pf in /sys/bus/pci/devices/*/sriov_numvfs; do echo vfs=$(cat $pf); done
		echo "grub: $(grep -c intel_iommu=on /boot/grub/grub.cfg)"
		echo "after: $(systemctl is-active containerd)"`
	res = Run(t, machine)
	expect(t, res, "kata-qat-provision: active", "kata-qat: active", "containerd: active", "bootstrap done", "doctor=0", "again=0", "uninstalled", "vfs=0", "grub: 0", "after: active")
	if n := count(res, "typed: "); n != lines+3 {
		t.Errorf("%d documented commands went well, expected %d", n, lines+3)
	}
	if left := count(res, "left: "); left != 1 { // the directory with the administrator's configuration
		t.Errorf("%d files are left behind, expected /etc/kata-qat and nothing else", left)
	}
	if n := count(res, "node: kvm 660"); n != 16 {
		t.Errorf("udev gave %d groups' nodes to the group kvm, expected 16", n)
	}
}
