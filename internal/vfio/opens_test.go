package vfio_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// touch opens and closes a file below root, which stands for a node.
func touch(t *testing.T, root, name string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpensOfNodesAreSeen(t *testing.T) {
	root := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := vfio.Opens(ctx, root); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without /dev/vfio: %v", err)
	}
	touch(t, root, "dev/vfio/40")
	opens, err := vfio.Opens(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	touch(t, root, "dev/vfio/vfio") // is no device, and not told
	if _, err := os.ReadDir(filepath.Join(root, "dev/vfio")); err != nil {
		t.Fatal(err)
	}
	touch(t, root, "dev/vfio/40")
	for range 2 { // open and close
		if o := <-opens; o != (vfio.Opened{Node: "/dev/vfio/40"}) {
			t.Errorf("told of %v", o)
		}
	}
	// The nodes of single devices, of which the directory comes later. It is
	// watched some time after it was made.
	for seen := false; !seen; {
		touch(t, root, "dev/vfio/devices/vfio3")
		touch(t, root, "dev/vfio/41")
		for o := range opens {
			if o.Node == "/dev/vfio/41" {
				break
			}
			seen = seen || o == vfio.Opened{Node: "/dev/vfio/devices/vfio3"}
		}
	}
	cancel()
	for range opens {
	}
}

func TestANodeStandsForItsDevices(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf()}})
	table := load(t, tree, vfio.Options{})
	if err := os.MkdirAll(filepath.Join(tree.Root, "sys/class/vfio-dev/vfio3"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../0000:6b:00.2", filepath.Join(tree.Root, "sys/class/vfio-dev/vfio3/device")); err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string]string{
		"/dev/vfio/40": "0000:6b:00.1", "/dev/vfio/devices/vfio3": "0000:6b:00.2", "/dev/vfio/devices/vfio4": "", "/dev/vfio/vfio": "", "/dev/vfio/4": "", "": "",
	} {
		got := ""
		for _, d := range table.ByNode(tree.Root, node) {
			got += string(d.VF.Address)
		}
		if got != want {
			t.Errorf("%q stands for %q, expected %q", node, got, want)
		}
	}
}
