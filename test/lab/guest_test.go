//go:build lab

package lab

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/test/lab/report"
)

// kataBase is an initrd of Kata's form: its init is a link, and stands in for
// Kata's agent by running the script. kmod is whether it has a modprobe.
type kataBase struct {
	script   string
	kmod     bool
	compress []string
	size     int // of what else is in it
}

func (b kataBase) write(t *testing.T) string {
	t.Helper()
	init, err := Build(t.Context(), "./test/lab/guest/init")
	if err != nil {
		t.Fatal(err)
	}
	vfiotest, err := Build(t.Context(), "./test/lab/vfiotest")
	if err != nil {
		t.Fatal(err)
	}
	orders, err := json.Marshal(report.Orders{Run: []string{"/bin/busybox", "sh", "-eu", scriptPath}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "kata-containers-initrd.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(b.compress[0], b.compress[1:]...)
	cmd.Stdout = f
	w, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := cpio.NewWriter(w)
	a.Char("/dev/console", 5, 1)
	a.Char("/dev/null", 1, 3)
	for _, d := range []string{"usr/lib", "usr/sbin", "usr/lib64", "root", "tmp", "etc"} {
		a.Dir(d)
	}
	// Where a directory takes the place of one of these links, the root falls apart.
	for _, d := range []string{"lib", "sbin", "lib64"} {
		a.Link(d, "usr/"+d)
	}
	a.Link("init", "/sbin/init")
	a.File("usr/sbin/init", init)
	a.File("bin/busybox", "/bin/busybox")
	a.File("bin/vfiotest", vfiotest)
	a.Link("bin/sh", "busybox")
	a.Bytes(path.Join(report.Directory, report.OrdersFile), 0o644, string(orders))
	a.Bytes(scriptPath, 0o755, b.script)
	if b.kmod {
		libs, err := libraries("/bin/kmod")
		if err != nil {
			t.Fatal(err)
		}
		a.File("usr/bin/kmod", "/bin/kmod")
		a.Link("usr/sbin/modprobe", "../bin/kmod")
		for _, l := range libs {
			name := l
			if !strings.HasPrefix(l, "/usr") {
				name = "/usr" + l
			}
			a.File(name, l)
		}
	}
	// xz takes half a minute for 30 MiB in which nothing repeats.
	filler := make([]byte, 256<<10)
	r := rand.NewChaCha8([32]byte{})
	r.Read(filler)
	a.Bytes("usr/share/filler", 0o644, strings.Repeat(string(filler), 1+b.size/len(filler)))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Close() != nil || cmd.Wait() != nil {
		t.Fatalf("%v failed", b.compress)
	}
	return name
}

// provisionGuest makes a guest out of the lab's kernel.
func provisionGuest(t *testing.T, base string, profile edits.Profile, families ...string) (string, *guest.Manifest) {
	t.Helper()
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	o := guest.Options{
		Root: "/", Kernel: filepath.Join(l.dir, "root"), Base: base, Out: t.TempDir(), Profile: profile,
		// A driver for the PF: a Kata guest gets VFs without it.
		Modules: []string{"pci-pf-stub"},
	}
	for _, name := range families {
		f, err := guest.ParseFamily(name)
		if err != nil {
			t.Fatal(err)
		}
		o.Families = append(o.Families, f)
	}
	start := time.Now()
	d, err := guest.Prepare(t.Context(), o, true)
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.Make(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s in %.2f s\n%s", m.Summary(), time.Since(start).Seconds(), m.Details(guest.Current))
	return filepath.Join(o.Out, guest.Current), m
}

// bootGuest boots what provisionGuest made, and nothing else.
func bootGuest(t *testing.T, dir string, m *guest.Manifest, family string) *Result {
	t.Helper()
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{PFs: []PF{{Family: family, ACS: true}}, IOMMU: true, Cmdline: strings.Join(m.KernelParams, " "), Run: []string{"as the base says"}}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	res, err := l.run(t.Context(), qemuArgs(cfg, filepath.Join(dir, m.Kernel.File), filepath.Join(dir, m.Root.File)), nil)
	if res != nil {
		t.Log(res.summary())
	}
	if err != nil {
		t.Fatal(err)
	}
	if res.ExitCode != 0 {
		t.Fatalf("the script in the guest exited with %d\nconsole:\n%s", res.ExitCode, tail(res.Console))
	}
	if res.Kernel != m.Kernel.Release {
		t.Errorf("the guest runs Linux %s, expected %s", res.Kernel, m.Kernel.Release)
	}
	return res
}

// oneVF is the part of a script that makes a VF appear, as hot-plug would in a
// guest of Kata: $vf.
const oneVF = `
pf=$(dirname $(ls -d /sys/bus/pci/devices/*/sriov_totalvfs | head -1))
echo pci-pf-stub >$pf/driver_override
/sbin/modprobe pci-pf-stub
[ -e $pf/driver ] || echo ${pf##*/} >/sys/bus/pci/drivers/pci-pf-stub/bind
echo 1 >$pf/sriov_numvfs
vf=$(basename $(readlink $pf/virtfn0))
`

// asTheAgent loads modules as Kata's agent does (kata-containers 4.1,
// src/agent/src/rpc.rs, load_kernel_module).
func asTheAgent(modules ...string) string {
	var b strings.Builder
	for _, m := range modules {
		b.WriteString("/sbin/modprobe -v " + m + "\n")
	}
	return b.String()
}

// early is what is there before a script runs: loaded by the hook.
const early = `
for m in vmw_vsock_virtio_transport virtio_net virtio_blk overlay; do [ -d /sys/module/$m ] || echo NOT LOADED $m; done
[ -L /lib ] && [ -L /sbin ] && [ -f /usr/share/filler ] && echo the base is whole
`

func TestAVFIsAGroupOfTheGuestThatWasMadeForVFIO(t *testing.T) {
	t.Parallel()
	script := early + asTheAgent("vfio", "vfio-pci disable_denylist=1", "vfio_iommu_type1") + oneVF + `
		echo denylist off: $(cat /sys/module/vfio_pci/parameters/disable_denylist)
		echo confs: $(ls /etc/c6xxvf_dev*.conf /etc/4xxxvf_dev*.conf | wc -l)
		grep -h ^ServicesEnabled /etc/c6xxvf_dev15.conf /etc/4xxxvf_dev0.conf | tr -d ' '
		echo vfio-pci >/sys/bus/pci/devices/$vf/driver_override
		echo $vf >/sys/bus/pci/drivers_probe
		echo driver: $(basename $(readlink /sys/bus/pci/devices/$vf/driver))
		group=$(basename $(readlink /sys/bus/pci/devices/$vf/iommu_group))
		[ -c /dev/vfio/$group ] && echo in a group
		vfiotest $vf`
	base := kataBase{script: script, compress: []string{"gzip", "-c1"}, size: 24 << 20}.write(t)
	dir, m := provisionGuest(t, base, edits.ProfileVFIO, "c62x", "4xxx=dc;asym")
	if got := strings.Join(m.AgentModules, ";"); got != "vfio;vfio-pci disable_denylist=1;vfio_iommu_type1" {
		t.Fatalf("the agent is to load %q, the script loads others", got)
	}
	res := bootGuest(t, dir, m, "c62x")
	expect(t, res, "the base is whole", "denylist off: Y", "confs: 32", "ServicesEnabled=cy;dc", "ServicesEnabled=dc;asym", "driver: vfio-pci", "in a group")
	if n := count(res, "PASS "); n != 1 {
		t.Errorf("%d VFs were usable, expected 1", n)
	}
	if n := count(res, "NOT LOADED"); n != 0 {
		t.Errorf("%d modules that the agent needs were not loaded before it", n)
	}
}

func TestADriverOfTheGuestThatWasMadeForItTakesAVF(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		base kataBase
	}{
		{"by the modprobe that was put in", kataBase{compress: []string{"xz", "-c", "--check=crc32"}, size: 1 << 10}},
		{"by the kmod of the base", kataBase{compress: []string{"zstd", "-qc"}, kmod: true, size: 1 << 10}},
		{"from a base without compression", kataBase{compress: []string{"cat"}, kmod: true, size: 1 << 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.base.script = early + asTheAgent("qat_c62xvf") + oneVF + `
				echo driver: $(basename $(readlink /sys/bus/pci/devices/$vf/driver))
				echo confs: $(ls /etc/c6xxvf_dev*.conf | wc -l)
				busybox ls -l /sbin/modprobe`
			dir, m := provisionGuest(t, tc.base.write(t), edits.ProfileGuestKernel, "c62x")
			res := bootGuest(t, dir, m, "c62x")
			expect(t, res, "the base is whole", "driver: c6xxvf", "confs: 16")
			if n := count(res, "NOT LOADED"); n != 0 {
				t.Errorf("%d modules that the agent needs were not loaded before it", n)
			}
		})
	}
}

func TestAGuestIsMadeInSecondsAndLittleMemory(t *testing.T) {
	l, err := open()
	if err != nil {
		t.Fatal(err)
	}
	program, err := Build(t.Context(), "./cmd/kata-qat")
	if err != nil {
		t.Fatal(err)
	}
	for _, compress := range [][]string{{"gzip", "-c1"}, {"xz", "-c", "-9", "--check=crc32"}, {"zstd", "-qc", "--ultra", "--long=27", "-6"}, {"cat"}} {
		t.Run(compress[0], func(t *testing.T) {
			base := kataBase{compress: compress, size: 30 << 20}.write(t)
			out := t.TempDir()
			for _, run := range []struct {
				what  string
				limit time.Duration
			}{{"the first run", 20 * time.Second}, {"a second run", time.Second}} {
				cmd := exec.CommandContext(t.Context(), program, "provision", "guest", "--base", base, "--kernel", filepath.Join(l.dir, "root"), "--families", "c62x", "--out", out)
				start := time.Now()
				said, err := cmd.CombinedOutput()
				took := time.Since(start)
				if err != nil {
					t.Fatalf("%v: %s", err, said)
				}
				memory := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10
				t.Logf("%s: %.2f s, %d MiB\n%s", run.what, took.Seconds(), memory, said)
				if took > run.limit || memory > 200 {
					t.Errorf("%s took %.2f s and %d MiB, expected at most %.0f s and 200 MiB", run.what, took.Seconds(), memory, run.limit.Seconds())
				}
			}
		})
	}
}
