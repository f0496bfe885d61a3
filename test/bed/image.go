package bed

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
)

// The images that every bed has. Their programs are those of the host, so
// nothing is fetched from a registry.
const (
	Pause   = "localhost/kata-qat/pause:bed"
	Busybox = "localhost/kata-qat/busybox:bed"
)

// importImages gives containerd the bed's images.
func (b *Bed) importImages(ctx context.Context) error {
	layout, err := b.tools.archive(ctx)
	if err != nil {
		return err
	}
	return b.ImportImages(ctx, bytes.NewReader(layout))
}

// ImportImages gives containerd the images of an OCI image layout, a tar archive.
func (b *Bed) ImportImages(ctx context.Context, layout io.Reader) error {
	// --local: the transfer service, the default of containerd 2, wants to
	// know the platform before it has read the image.
	cmd := exec.CommandContext(ctx, b.tools.ctr, "--address", b.Socket(), "--namespace", "k8s.io",
		"images", "import", "--local", "--snapshotter", snapshotter(b.dir), "-")
	cmd.Stdin = layout
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import images: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// ImageArchive returns the images Pause and Busybox as the archive of an OCI
// layout, for a containerd that another package starts.
func ImageArchive(ctx context.Context, toolsDir string) ([]byte, error) {
	t, err := findTools(Options{Tools: toolsDir, ContainerdVersion: "2.4"})
	if err != nil {
		return nil, err
	}
	return t.archive(ctx)
}

func (t tools) archive(ctx context.Context) ([]byte, error) {
	images, err := t.images(ctx)
	if err != nil {
		return nil, fmt.Errorf("build the images: %w", err)
	}
	var layout bytes.Buffer
	if _, err := ociimage.Write(&layout, images...); err != nil {
		return nil, fmt.Errorf("build the images: %w", err)
	}
	return layout.Bytes(), nil
}

// images are those that every bed has.
func (t tools) images(ctx context.Context) ([]ociimage.Image, error) {
	pause, err := os.ReadFile(t.pause)
	if err != nil {
		return nil, err
	}
	if err := ociimage.CheckStatic(t.busybox); err != nil {
		return nil, fmt.Errorf("%w: run test/setup.sh, which installs busybox-static", err)
	}
	busybox, err := os.ReadFile(t.busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.CommandContext(ctx, t.busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", t.busybox, err)
	}
	files := []ociimage.File{{Path: "bin/busybox", Content: busybox}}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			files = append(files, ociimage.File{Path: "bin/" + filepath.Base(name), Target: "busybox"})
		}
	}
	return []ociimage.Image{
		bedImage(Pause, "/pause", ociimage.File{Path: "pause", Content: pause}),
		bedImage(Busybox, "/bin/sh", files...),
	}, nil
}

func bedImage(ref, entrypoint string, files ...ociimage.File) ociimage.Image {
	return ociimage.Image{
		Ref: ref, Architecture: runtime.GOARCH,
		Config: v1.ImageConfig{Entrypoint: []string{entrypoint}, Env: []string{"PATH=/bin"}},
		Dirs:   []string{"bin", "dev", "etc", "proc", "sys", "tmp"}, Files: files,
	}
}
