package qat_test

import (
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

func TestPFsChanged(t *testing.T) {
	const pf = "0000:6b:00.0"
	for name, change := range map[string]func(qattest.Tree) error{
		"the heartbeat fails":   func(n qattest.Tree) error { return n.Kill(pf) },
		"it is down":            func(n qattest.Tree) error { return n.Set(pf, "qat/state", "down") },
		"it has other services": func(n qattest.Tree) error { return n.Set(pf, "qat/cfg_services", "dc") },
		"it is gone":            func(n qattest.Tree) error { return n.Vanish(pf) },
		"it cannot be read":     func(n qattest.Tree) error { return n.Break(pf, "qat/state") },
	} {
		t.Run(name, func(t *testing.T) {
			tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{sapphireRapids(), {Address: "0000:1a:00.0", Family: "c62x", NoDebugfs: true}}})
			before := discover(t, tree.Root)
			if qat.PFsChanged(tree.Root, before) {
				t.Error("changed, and nothing did")
			}
			do(t, change(tree))
			if !qat.PFsChanged(tree.Root, before) {
				t.Error("it was not noticed")
			}
			// What is known is not noticed over and over.
			if after := discover(t, tree.Root); qat.PFsChanged(tree.Root, after) {
				t.Error("changed again, and nothing did")
			}
		})
	}
	if qat.PFsChanged(t.TempDir(), &qat.Inventory{}) {
		t.Error("changed, and there is no PF")
	}
}

func BenchmarkPFsChanged(b *testing.B) {
	tree := qattest.New(b, qattest.Many(64))
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if qat.PFsChanged(tree.Root, inv) {
			b.Fatal("changed, and nothing did")
		}
	}
}
