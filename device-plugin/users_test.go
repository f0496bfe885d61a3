package deviceplugin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// open lets a process of the machine have a node open, and shut closes it. Both
// touch a file in the place of the node, because nothing answers behind that.
func (n *node) open(t testing.TB, pid, name string) {
	t.Helper()
	fds := filepath.Join(n.Tree.Root, "proc", pid, "fd")
	if err := errors.Join(os.MkdirAll(fds, 0o755), os.WriteFile(filepath.Join(fds, "../comm"), []byte("dpdk-test\n"), 0o444), os.Symlink(name, filepath.Join(fds, "7"))); err != nil {
		t.Fatal(err)
	}
	n.touch(t, name)
}

func (n *node) shut(t testing.TB, pid, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(n.Tree.Root, "proc", pid)); err != nil {
		t.Fatal(err)
	}
	n.touch(t, name)
}

func (n *node) touch(t testing.TB, name string) {
	t.Helper()
	file := filepath.Join(n.Tree.Root, name)
	if info, err := os.Lstat(file); err == nil && !info.Mode().IsRegular() {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWhatTheHostUsesIsNotOffered(t *testing.T) {
	k := startKubelet(t)
	var claims atomic.Int32
	pods := map[qat.Address]bool{"0000:6b:00.2": true} // as kubelet says
	o := options(k.Dir)
	o.Held = func(a qat.Address) bool { return a == "0000:6b:00.3" } // as the runtime says
	o.Claimed = func(context.Context) (map[qat.Address]bool, error) {
		claims.Add(1)
		return pods, nil
	}
	pf := crypto("0000:6b:00.0", 0, 4)
	n := newNode(t, o, qattest.Node{PFs: []qattest.PF{pf}})
	n.o.Root = n.Tree.Root
	// One that was there before the daemon.
	n.open(t, "1", groupNode(pf.FirstGroup+3))
	n.start(t)
	k.Expect(t, cy, "0000:6b:00.1@0 0000:6b:00.2@0 0000:6b:00.3@0 0000:6b:00.4@0!")

	n.open(t, "2", groupNode(pf.FirstGroup+1))
	n.open(t, "3", groupNode(pf.FirstGroup+2))
	n.open(t, "4711", groupNode(pf.FirstGroup))
	k.Expect(t, cy, "0000:6b:00.1@0! 0000:6b:00.2@0 0000:6b:00.3@0 0000:6b:00.4@0!")
	_, err := k.Allocate(t, cy, "0000:6b:00.1")
	refused(t, err, "0000:6b:00.1 is in use on the host, by no pod: process 4711 (dpdk-test) has", "open: stop it first")

	n.shut(t, "1", groupNode(pf.FirstGroup+3))
	n.shut(t, "4711", groupNode(pf.FirstGroup))
	k.Expect(t, cy, "0000:6b:00.1@0 0000:6b:00.2@0 0000:6b:00.3@0 0000:6b:00.4@0")
}

func TestAPodsVMIsNotLookedFor(t *testing.T) {
	o := options(shortDir(t))
	o.Held = func(a qat.Address) bool { return a == "0000:6b:00.1" }
	pf := crypto("0000:6b:00.0", 0, 2)
	n := newNode(t, o, qattest.Node{PFs: []qattest.PF{pf}})
	n.o.Root = n.Tree.Root
	if n.suspicious(groupNode(pf.FirstGroup)) {
		t.Error("the VM of a pod is suspicious")
	}
	if !n.suspicious(groupNode(pf.FirstGroup + 1)) {
		t.Error("who opens a VF that no pod has is not suspicious")
	}
	if n.suspicious("/dev/vfio/9999") {
		t.Error("who opens another device's node is suspicious")
	}
}

// A kubelet that does not answer cannot say whose process it is: nobody loses a
// device for that.
func TestWithoutKubeletNobodyIsAStranger(t *testing.T) {
	o := options(shortDir(t))
	o.Claimed = func(context.Context) (map[qat.Address]bool, error) { return nil, errors.New("no kubelet") }
	pf := crypto("0000:6b:00.0", 0, 1)
	n := newNode(t, o, qattest.Node{PFs: []qattest.PF{pf}})
	n.o.Root = n.Tree.Root
	n.open(t, "1", groupNode(pf.FirstGroup))
	if err := n.findUsers(t.Context()); err == nil || len(n.users) != 0 {
		t.Errorf("users %v, error %v", n.users, err)
	}
}
