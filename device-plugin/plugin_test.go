package deviceplugin

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/status"

	"github.com/kata-qat/kata-qat/device-plugin/kubelettest"
	"github.com/kata-qat/kata-qat/internal/devices"
	"github.com/kata-qat/kata-qat/internal/placement"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

const (
	cy = "qat.intel.com/cy"
	dc = "qat.intel.com/dc"
)

// crypto is a PF of a kind that tests can vary.
func crypto(address qat.Address, numa, vfs int) qattest.PF {
	bus := int(address[5])<<8 | int(address[6])
	return qattest.PF{
		Address: address, Family: "4xxx", Services: "sym;asym", State: qat.StateUp, NUMA: numa,
		VFs: vfs, VFDriver: "vfio-pci", FirstGroup: bus,
	}
}

func compression(address qat.Address, numa, vfs int) qattest.PF {
	pf := crypto(address, numa, vfs)
	pf.Services = "dc"
	return pf
}

// node is a machine whose plugin is tested.
type node struct {
	qattest.Tree
	*Plugin
	monitor *devices.Monitor
	end     func() // ends Run and waits for it
}

func startKubelet(t testing.TB) *kubelettest.Kubelet {
	t.Helper()
	k := kubelettest.New(shortDir(t))
	k.Start(t)
	return k
}

// shortDir is a directory whose name leaves space for that of a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

func options(dir string) Options {
	return Options{Dir: dir, Domain: qat.ResourceDomain, Policy: placement.Balanced, Log: quiet()}
}

// newNode has a plugin that does not run.
func newNode(t testing.TB, o Options, n qattest.Node) *node {
	t.Helper()
	tree := qattest.New(t, n)
	tree.RequireNodes(t)
	m, err := devices.NewMonitor(devices.Options{Root: tree.Root, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	p := New(o)
	m.OnChange(func(v *devices.View) { p.SetDevices(v.Table) })
	return &node{Tree: tree, Plugin: p, monitor: m}
}

func (n *node) start(t testing.TB) *node {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.end = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		ended <- nil
	}
	t.Cleanup(func() { n.end() })
	return n
}

func startNode(t testing.TB, k *kubelettest.Kubelet, pfs ...qattest.PF) *node {
	t.Helper()
	return newNode(t, options(k.Dir), qattest.Node{PFs: pfs}).start(t)
}

// change does something to the machine of which the kernel tells the monitor.
func (n *node) change(t testing.TB, err error) {
	t.Helper()
	if err := errors.Join(err, n.monitor.Refresh()); err != nil {
		t.Fatal(err)
	}
}

// refused expects an error of one line that has all these words.
func refused(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, expected one with %q", words)
	}
	message := status.Convert(err).Message()
	if strings.Contains(message, "\n") {
		t.Errorf("error of several lines: %q", message)
	}
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("error %q\ndoes not say %q", message, w)
		}
	}
}

func TestEveryResourceIsOfferedWithItsDevices(t *testing.T) {
	k := startKubelet(t)
	far := crypto("0000:e8:00.0", -1, 1)
	old := qattest.PF{Address: "0000:1a:00.0", Family: "c62x", NUMA: 1, VFs: 1, VFDriver: "vfio-pci", FirstGroup: 500}
	startNode(t, k, crypto("0000:6b:00.0", 0, 2), compression("0000:70:00.0", 1, 1), far, old)
	k.Expect(t, cy, "0000:6b:00.1@0 0000:6b:00.2@0 0000:e8:00.1@-")
	k.Expect(t, dc, "0000:70:00.1@1")
	k.Expect(t, "qat.intel.com/generic", "0000:1a:01.0@1")
	if o := k.Options(t, cy); !o.GetPreferredAllocationAvailable || o.PreStartRequired {
		t.Errorf("options %v", o)
	}
}

func TestTheDomainIsConfigurable(t *testing.T) {
	k := startKubelet(t)
	o := options(k.Dir)
	o.Domain = "crypto.example.com"
	newNode(t, o, qattest.Node{PFs: []qattest.PF{crypto("0000:6b:00.0", 0, 1)}}).start(t)
	k.Expect(t, "crypto.example.com/cy", "0000:6b:00.1@0")
}

// What is not meant for pods is not offered: VFs of the host's own driver, and
// all but one of a group, which go with that one.
func TestOnlyWhatPodsCanHaveIsOffered(t *testing.T) {
	k := startKubelet(t)
	hosts := crypto("0000:70:00.0", 0, 2)
	hosts.VFDriver = "4xxxvf"
	together := crypto("0000:e8:00.0", 0, 3)
	together.OneGroup = true
	startNode(t, k, crypto("0000:6b:00.0", 0, 1), hosts, together)
	k.Expect(t, cy, "0000:6b:00.1@0 0000:e8:00.1@0")
}

func TestHealthFollowsTheDevices(t *testing.T) {
	k := startKubelet(t)
	n := startNode(t, k, crypto("0000:6b:00.0", 0, 2), crypto("0000:e8:00.0", 1, 1))
	const first = "0000:6b:00.1@0 0000:6b:00.2@0"
	k.Expect(t, cy, first+" 0000:e8:00.1@1")

	n.change(t, n.Kill("0000:e8:00.0"))
	k.Expect(t, cy, first+" 0000:e8:00.1@1!")
	n.change(t, n.Revive("0000:e8:00.0"))
	k.Expect(t, cy, first+" 0000:e8:00.1@1")

	n.change(t, n.Set("0000:e8:00.0", "qat/state", "down"))
	k.Expect(t, cy, first+" 0000:e8:00.1@1!")
	n.change(t, n.Set("0000:e8:00.0", "qat/state", "up"))
	k.Expect(t, cy, first+" 0000:e8:00.1@1")

	n.change(t, n.Rebind("0000:6b:00.1", "4xxxvf"))
	k.Expect(t, cy, "0000:6b:00.2@0 0000:e8:00.1@1")
	n.change(t, n.Rebind("0000:6b:00.1", "vfio-pci"))
	k.Expect(t, cy, first+" 0000:e8:00.1@1")

	n.change(t, n.Remove("0000:6b:00.2"))
	k.Expect(t, cy, "0000:6b:00.1@0 0000:e8:00.1@1")

	n.change(t, n.Set("0000:e8:00.0", "qat/cfg_services", "dc"))
	k.Expect(t, cy, "0000:6b:00.1@0")
	k.Expect(t, dc, "0000:e8:00.1@1")
	n.change(t, n.Remove("0000:6b:00.1"))
	k.Expect(t, cy, "")
}

func TestAKubeletThatComesLaterIsFound(t *testing.T) {
	for name, missing := range map[string]string{
		"its socket is not there":    "",
		"its directory is not there": "device-plugins",
		"nor is the one above":       "kubelet/device-plugins",
	} {
		t.Run(name, func(t *testing.T) {
			k := kubelettest.New(filepath.Join(shortDir(t), missing))
			startNode(t, k, crypto("0000:6b:00.0", 0, 1))
			k.Start(t)
			k.Expect(t, cy, "0000:6b:00.1@0")
		})
	}
}

func TestAKubeletThatStartsAgainIsToldAgain(t *testing.T) {
	k := startKubelet(t)
	n := startNode(t, k, crypto("0000:6b:00.0", 0, 1), compression("0000:70:00.0", 0, 1))
	for range 3 {
		k.Expect(t, cy, "0000:6b:00.1@0")
		k.Expect(t, dc, "0000:70:00.1@0")
		k.Kill()
		k.Start(t)
	}
	k.Expect(t, cy, "0000:6b:00.1@0")
	k.Kill()
	if err := os.RemoveAll(k.Dir); err != nil { // as kubeadm reset does
		t.Fatal(err)
	}
	n.change(t, n.Kill("0000:6b:00.0"))
	k.Start(t)
	k.Expect(t, cy, "0000:6b:00.1@0!")
}

func TestASocketThatSomebodyRemovedIsMadeAgain(t *testing.T) {
	k := startKubelet(t)
	startNode(t, k, crypto("0000:6b:00.0", 0, 1))
	k.Expect(t, cy, "0000:6b:00.1@0")
	before := k.Registrations()
	sockets, err := filepath.Glob(filepath.Join(k.Dir, socketPrefix+"*"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %v, %v", sockets, err)
	}
	if err := os.Remove(sockets[0]); err != nil {
		t.Fatal(err)
	}
	k.AwaitRegistrations(t, before+1)
	k.Expect(t, cy, "0000:6b:00.1@0")
}

func TestARegistrationThatKubeletRefusesIsTriedAgain(t *testing.T) {
	k := startKubelet(t)
	k.Fail(errors.New("not now"))
	startNode(t, k, crypto("0000:6b:00.0", 0, 1))
	k.AwaitRegistrations(t, 1)
	k.Fail(nil)
	k.Expect(t, cy, "0000:6b:00.1@0")
}

func TestTheEndLeavesNothing(t *testing.T) {
	k := startKubelet(t)
	n := startNode(t, k, crypto("0000:6b:00.0", 0, 1))
	k.Expect(t, cy, "0000:6b:00.1@0")
	n.end()
	k.Gone(t, cy)
	if left, _ := filepath.Glob(filepath.Join(k.Dir, "kata-qat*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestTheNextDaemonTakesOverFromOneThatWasKilled(t *testing.T) {
	k := startKubelet(t)
	left := filepath.Join(k.Dir, socketPrefix+"cy-00000000.sock")
	l, err := net.Listen("unix", left)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for range 2 { // the second finds the first, which kubelet may still know
		n := startNode(t, k, crypto("0000:6b:00.0", 0, 1))
		k.Expect(t, cy, "0000:6b:00.1@0")
		n.end()
	}
	if _, err := os.Lstat(left); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

// listen stands for another plugin.
func listen(t testing.TB, socket string) net.Listener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestWhereIntelsPluginServesItStandsBack(t *testing.T) {
	k := startKubelet(t)
	intel := listen(t, filepath.Join(k.Dir, "qat.intel.com-cy.sock"))
	startNode(t, k, crypto("0000:6b:00.0", 0, 1), compression("0000:70:00.0", 0, 1))
	k.Expect(t, dc, "0000:70:00.1@0")
	k.Gone(t, cy)
	intel.Close() // which removes the socket
	k.Expect(t, cy, "0000:6b:00.1@0")
	listen(t, filepath.Join(k.Dir, "qat.intel.com-cy.sock"))
	k.Gone(t, cy)
	k.Expect(t, dc, "0000:70:00.1@0")
}

func TestWhereIntelsDRADriverServesItStandsBack(t *testing.T) {
	k := kubelettest.New(filepath.Join(shortDir(t), "device-plugins"))
	k.Start(t)
	listen(t, filepath.Join(k.Dir, "../plugins_registry/qat.intel.com-reg.sock"))
	n := startNode(t, k, crypto("0000:6b:00.0", 0, 1))
	n.end()
	if k.Registrations() != 0 {
		t.Error("it registered")
	}
}

func TestAllocateGivesNodesNamesAndAnAnnotation(t *testing.T) {
	k := startKubelet(t)
	o := options(k.Dir)
	o.CDI = func(kind string) bool { return kind == cy }
	newNode(t, o, qattest.Node{PFs: []qattest.PF{crypto("0000:6b:00.0", 0, 3), compression("0000:70:00.0", 0, 1)}}).start(t)
	k.Expect(t, cy, "0000:6b:00.1@0 0000:6b:00.2@0 0000:6b:00.3@0")
	k.Expect(t, dc, "0000:70:00.1@0")

	a, err := k.Allocate(t, cy, "0000:6b:00.3", "0000:6b:00.1")
	if err != nil {
		t.Fatal(err)
	}
	var nodes, names []string
	for _, d := range a.Devices {
		if d.ContainerPath != d.HostPath || d.Permissions != "rw" {
			t.Errorf("node %v", d)
		}
		nodes = append(nodes, d.HostPath)
	}
	for _, c := range a.CdiDevices {
		names = append(names, c.Name)
	}
	group := crypto("0000:6b:00.0", 0, 3).FirstGroup
	if want := []string{"/dev/vfio/vfio", groupNode(group), groupNode(group + 2)}; !slices.Equal(nodes, want) {
		t.Errorf("nodes %v, expected %v", nodes, want)
	}
	if want := []string{cy + "=0000:6b:00.1", cy + "=0000:6b:00.3"}; !slices.Equal(names, want) {
		t.Errorf("CDI devices %v, expected %v", names, want)
	}
	if len(a.Annotations) != 1 || a.Annotations["kata-qat.io/allocated.cy"] != "0000:6b:00.1,0000:6b:00.3" {
		t.Errorf("annotations %v", a.Annotations)
	}
	if len(a.Envs) != 0 || len(a.Mounts) != 0 {
		t.Errorf("also %v %v", a.Envs, a.Mounts)
	}
	if a, err := k.Allocate(t, dc, "0000:70:00.1"); err != nil || len(a.CdiDevices) != 0 {
		t.Errorf("without a CDI spec: %v, %v", a, err)
	}
}

func groupNode(id int) string { return (&qat.Group{ID: id}).Node() }

func TestAllocateRefusesWhatCannotBeUsed(t *testing.T) {
	k := startKubelet(t)
	mixed := crypto("0000:b0:00.0", 0, 1)
	n := newNode(t, options(k.Dir), qattest.Node{
		PFs:    []qattest.PF{crypto("0000:6b:00.0", 0, 2), compression("0000:70:00.0", 0, 1), mixed},
		Others: []qattest.Device{{Address: "0000:b1:00.0", Vendor: 0x8086, Device: 0x1521, Driver: "igb", Group: mixed.FirstGroup}},
	}).start(t)
	n.change(t, n.Kill("0000:70:00.0"))
	k.Expect(t, cy, "0000:6b:00.1@0 0000:6b:00.2@0 0000:b0:00.1@0!")
	k.Expect(t, dc, "0000:70:00.1@0!")
	for _, tt := range []struct {
		name, resource string
		ids, says      []string
	}{
		{"no such device", cy, []string{"0000:6b:00.1", "0000:6b:00.7"}, []string{"allocate qat.intel.com/cy", "0000:6b:00.7 is no VF"}},
		{"a device of another resource", cy, []string{"0000:70:00.1"}, []string{"0000:70:00.1 is no VF"}},
		{"no address", cy, []string{"../../etc"}, []string{"../../etc is no VF"}},
		{"a PF", cy, []string{"0000:6b:00.0"}, []string{"0000:6b:00.0 is no VF"}},
		{"a PF that does not answer", dc, []string{"0000:70:00.1"}, []string{"allocate qat.intel.com/dc: 0000:70:00.1", "heartbeat"}},
		{"a group that is not viable", cy, []string{"0000:b0:00.1"}, []string{"0000:b0:00.1", "also holds 0000:b1:00.0 (igb)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := k.Allocate(t, tt.resource, tt.ids...)
			refused(t, err, tt.says...)
		})
	}
}

func TestPreferredDevices(t *testing.T) {
	k := startKubelet(t)
	o := options(k.Dir)
	o.Held = func(a qat.Address) bool { return a == "0000:6b:00.1" } // its sandbox is being stopped
	n := newNode(t, o, qattest.Node{PFs: []qattest.PF{crypto("0000:6b:00.0", 0, 3), crypto("0000:e8:00.0", 1, 3)}}).start(t)
	k.Expect(t, cy, "0000:6b:00.1@0 0000:6b:00.2@0 0000:6b:00.3@0 0000:e8:00.1@1 0000:e8:00.2@1 0000:e8:00.3@1")
	all := []string{"0000:e8:00.3", "0000:e8:00.2", "0000:e8:00.1", "0000:6b:00.3", "0000:6b:00.2", "0000:6b:00.1"}
	check := func(size int, available, must []string, want ...string) {
		t.Helper()
		got, err := k.Prefer(t, cy, size, available, must)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%d of %v with %v: %v, %v; expected %v", size, available, must, got, err, want)
		}
	}
	check(1, all, nil, "0000:6b:00.2")
	check(1, all[3:], nil, "0000:6b:00.2")
	check(2, all[:5], nil, "0000:e8:00.1", "0000:e8:00.2") // one of the other PF is in use
	check(3, all[3:], nil, "0000:6b:00.1", "0000:6b:00.2", "0000:6b:00.3")
	check(2, all, []string{"0000:e8:00.3"}, "0000:e8:00.1", "0000:e8:00.3")
	check(2, []string{"0000:6b:00.2", "what"}, nil, "0000:6b:00.2")
	if _, err := k.Prefer(t, cy, 1, all, all[:2]); err == nil {
		t.Error("no error for one device that must be two")
	}
	n.change(t, n.Kill("0000:6b:00.0"))
	check(1, all, nil, "0000:e8:00.1") // kubelet may not have heard yet
}
