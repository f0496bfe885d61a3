//go:build bed

package examples

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// startNode starts a node whose handler kata-qat is runc's shim behind ours, with
// Debian's programs for the images that the set-ups name.
func startNode(t *testing.T) *simnode.Node {
	t.Helper()
	n, err := simnode.Start(simnode.Options{
		Bed: bed.Options{
			Handlers:        map[string]bed.Handler{"kata-qat": {RuntimeType: bed.RuncType}, "runc": {RuntimeType: bed.RuncType}},
			RequiredPlugins: []string{"kata-qat"},
		},
		Shims: map[string]string{"kata-qat": "containerd-shim-runc-v2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Errorf("the node left something behind: %v", err)
		}
	})
	var layout bytes.Buffer
	if _, err := ociimage.Write(&layout, standIns(t, "registry.example/haproxy-qat:3.0.23", "registry.example/dpdk-qat:22.11", "docker.io/library/haproxy:3.0.23", "docker.io/library/nginx:1.28")...); err != nil {
		t.Fatal(err)
	}
	if err := n.ImportImages(t.Context(), &layout); err != nil {
		t.Fatal(err)
	}
	d, err := n.StartDaemon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.Log())
		}
		if err := d.Stop(); err != nil {
			t.Errorf("stop the daemon: %v", err)
		}
	})
	return n
}

// standIns are images of Debian's programs and a static busybox, all the same. The
// modules are where OpenSSL does not look unless it is told to.
func standIns(t testing.TB, refs ...string) []ociimage.Image {
	t.Helper()
	dir := debian(t)
	files := append(tree(t, filepath.Join(dir, "root"), ""), tree(t, filepath.Join(dir, "modules"), "modules")...)
	files = append(files, ociimage.File{Path: "etc/nsswitch.conf", Mode: 0o644, Content: []byte("hosts: files\n")})
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: run test/setup.sh", err)
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, ociimage.File{Path: "bin/busybox", Content: content})
	for _, applet := range []string{"awk", "base64", "cat", "cp", "env", "grep", "head", "ls", "sed", "sh", "stat", "tr"} {
		files = append(files, ociimage.File{Path: "bin/" + applet, Target: "busybox"})
	}
	var images []ociimage.Image
	for _, ref := range refs {
		images = append(images, ociimage.Image{
			Ref: ref, Architecture: runtime.GOARCH, Files: files,
			Config: v1.ImageConfig{Env: []string{"PATH=/usr/sbin:/usr/bin:/bin"}},
			Dirs:   []string{"dev", "proc", "run", "sys", "tmp"},
		})
	}
	return images
}

// tree are the files below dir, for an image's directory prefix.
func tree(t testing.TB, dir, prefix string) []ociimage.File {
	t.Helper()
	var files []ociimage.File
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := ociimage.File{Path: filepath.Join(prefix, name)}
		if e.Type() == fs.ModeSymlink {
			f.Target, err = os.Readlink(path)
		} else {
			f.Content, err = os.ReadFile(path)
		}
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// exitCode waits until the container has ended.
func exitCode(t testing.TB, c *bed.Container) int {
	t.Helper()
	var code int
	eventually(t, "container "+c.ID+" ends", func() bool {
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		code = int(s.ExitCode)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return code
}

// eventually polls for what nobody announces.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
