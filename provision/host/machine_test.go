package host_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio/simkernel"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// bench is a machine of files, a simulated kernel behind its sysfs, and programs
// that stand in for the machine's.
type bench struct {
	t       testing.TB
	root    string
	bin     string
	kernel  *simkernel.Kernel
	options host.Options
}

const release = "6.12.1-test"

// standIns are programs that every machine has.
var standIns = map[string]string{
	"modprobe": `
n=$(echo $1 | tr - _)
[ ! -e $HOST_ROOT/sys/module/$n ] || exit 0
for m in $(sed -n "s|^kernel/$1.ko: ||p" $HOST_ROOT/lib/modules/` + release + `/modules.dep); do
	m=$(basename $m .ko); mkdir -p $HOST_ROOT/sys/module/$m; echo 0 >$HOST_ROOT/sys/module/$m/refcnt
done
mkdir -p $HOST_ROOT/sys/module/$n/parameters
echo 0 >$HOST_ROOT/sys/module/$n/refcnt
case $n:$2 in
vfio_pci:disable_denylist=1) echo Y >$HOST_ROOT/sys/module/$n/parameters/disable_denylist ;;
vfio_pci:*) echo N >$HOST_ROOT/sys/module/$n/parameters/disable_denylist ;;
qat_4xxx:*)
	cd $HOST_ROOT/sys/bus/pci/devices/0000:6b:00.0
	mkdir -p ../../../bus/pci/drivers/4xxx
	ln -s ../../../bus/pci/drivers/4xxx driver
	ln -s ../../../../devices/pci0000:6b/0000:6b:00.0 driver/0000:6b:00.0 ;;
esac`,
	"rmmod": `
rm -r $HOST_ROOT/sys/module/$1
if [ $1 = qat_4xxx ]; then rm -r $HOST_ROOT/sys/bus/pci/drivers/4xxx $HOST_ROOT/sys/bus/pci/devices/0000:6b:00.0/driver; fi`,
}

// newBench makes a machine with an IOMMU that is on, and nothing done yet.
func newBench(t testing.TB, node qattest.Node) *bench {
	t.Helper()
	tree := qattest.New(t, node)
	b := &bench{t: t, root: tree.Root, bin: t.TempDir(), kernel: simkernel.New(tree)}
	for i, pf := range node.PFs {
		b.kernel.NewGroups[pf.Address] = 100 * (i + 1)
	}
	b.files(map[string]string{
		"/proc/cmdline":                            "BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on iommu=pt\n",
		"/proc/sys/kernel/osrelease":               release + "\n",
		"/proc/sys/kernel/random/boot_id":          "first\n",
		"/lib/modules/" + release + "/modules.dep": "kernel/vfio-pci.ko: kernel/vfio_pci_core.ko kernel/vfio.ko\nkernel/vfio_pci_core.ko: kernel/vfio.ko\nkernel/vfio.ko:\nkernel/vfio_iommu_type1.ko: kernel/vfio.ko\nkernel/qat_4xxx.ko.xz:\n",
		"/etc/systemd/system/keep":                 "",
		"/usr/local/bin/kata-qat":                  "",
		"/var/lib/keep":                            "",
		"/sys/module/keep/refcnt":                  "0\n",
	})
	for name, script := range standIns {
		b.program(name, script)
	}
	b.options = host.Options{
		Root: b.root, Config: config.DefaultProvision(), Write: b.kernel.Write,
		Runner: &host.Runner{Root: b.root, Path: []string{b.bin}, NoChroot: true, Env: []string{"PATH=" + b.bin + ":/usr/bin:/bin", "HOST_ROOT=" + b.root}},
	}
	return b
}

func (b *bench) files(files map[string]string) {
	b.t.Helper()
	for name, content := range files {
		p := filepath.Join(b.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// program puts a shell script where programs are looked for. It notes that it
// was run, and with what, in the log.
func (b *bench) program(name, script string) {
	b.t.Helper()
	text := "#!/bin/sh -e\necho " + name + ` "$@" >>` + filepath.Join(b.bin, "log") + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(b.bin, name), []byte(text), 0o755); err != nil {
		b.t.Fatal(err)
	}
}

// ran are the command lines of programs so far.
func (b *bench) ran() []string {
	log, _ := os.ReadFile(filepath.Join(b.bin, "log"))
	return slices.DeleteFunc(strings.Split(string(log), "\n"), func(s string) bool { return s == "" })
}

func (b *bench) read(name string) string {
	b.t.Helper()
	content, err := os.ReadFile(filepath.Join(b.root, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(content)
}

func (b *bench) engine() *plan.Engine {
	return &plan.Engine{Root: b.root, Steps: host.Steps(b.options)}
}

func (b *bench) apply() *plan.Outcome {
	b.t.Helper()
	out, err := b.engine().Apply(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *bench) undo() {
	b.t.Helper()
	if _, err := b.engine().Undo(context.Background()); err != nil {
		b.t.Fatal(err)
	}
}

// refuses expects that provisioning fails with this in its error and changes
// nothing.
func (b *bench) refuses(want string) {
	b.t.Helper()
	before := b.snapshot()
	_, err := b.engine().Apply(context.Background())
	if err == nil || !strings.Contains(err.Error(), want) {
		b.t.Errorf("error\n%v\nwant one with\n%s", err, want)
	}
	b.unchanged(before)
}

func (b *bench) snapshot() map[string]string {
	b.t.Helper()
	s, err := simkernel.Snapshot(b.root)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) unchanged(before map[string]string) {
	b.t.Helper()
	after := b.snapshot()
	var differences []string
	for name, was := range before {
		if now, ok := after[name]; !ok || now != was {
			differences = append(differences, fmt.Sprintf("%s was %q, is %q", name, was, now))
		}
	}
	for name, now := range after {
		if _, ok := before[name]; !ok {
			differences = append(differences, fmt.Sprintf("%s was not there, is %q", name, now))
		}
	}
	slices.Sort(differences)
	if n := len(differences); n > 0 {
		b.t.Errorf("%d files, links and directories are not as they were:\n%s", n, strings.Join(differences[:min(n, 10)], "\n"))
	}
}

// step is the result of one step.
func step(o *plan.Outcome, name string) plan.Result {
	for _, r := range o.Steps {
		if r.Step == name {
			return r
		}
	}
	return plan.Result{}
}

// drivers are how many VFs each driver has.
func (b *bench) drivers() map[string]int {
	b.t.Helper()
	inv, err := qat.Discover(b.root)
	if err != nil {
		b.t.Fatal(err)
	}
	all := make(map[string]int)
	for vf := range inv.VFs() {
		all[vf.Driver]++
	}
	return all
}

func (b *bench) expectDrivers(want map[string]int) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.drivers()); diff != "" {
		b.t.Errorf("drivers of VFs (-want +got):\n%s", diff)
	}
}

func gen4(address qat.Address) qattest.PF {
	return qattest.PF{Address: address, Family: "4xxx", Services: "sym;asym", State: "up", NoDebugfs: true}
}

func gen2(address qat.Address) qattest.PF {
	return qattest.PF{Address: address, Family: "c62x", NoDebugfs: true}
}

// four are PFs of mixed families: 16, 16, 16 and 16 VFs.
func four() qattest.Node {
	second := gen4("0000:70:00.0")
	second.Family, second.NUMA, second.Group = "420xx", 1, 4
	third, fourth := gen2("0000:3d:00.0"), gen2("0000:3f:00.0")
	third.Group, fourth.Group = 5, 6
	first := gen4("0000:6b:00.0")
	first.Group = 3
	return qattest.Node{PFs: []qattest.PF{first, second, third, fourth}}
}

// one is a machine with a PF of Gen4.
func one() qattest.Node {
	pf := gen4("0000:6b:00.0")
	pf.Group = 3
	return qattest.Node{PFs: []qattest.PF{pf}}
}

// Machines are in memory: a journal that is synced to a disk again and again takes
// a minute here, and is what is tested elsewhere.
func TestMain(m *testing.M) {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	os.Exit(m.Run())
}
