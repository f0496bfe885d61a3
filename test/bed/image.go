package bed

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

// The images that every bed has. Their programs are those of the host, so
// nothing is fetched from a registry.
const (
	Pause   = "localhost/kata-qat/pause:bed"
	Busybox = "localhost/kata-qat/busybox:bed"
)

// image is an image of one layer.
type image struct {
	ref        string
	entrypoint []string
	files      []file
}

// file is an executable, or a symbolic link where target is set.
type file struct {
	path    string
	content []byte
	target  string
}

// importImages gives containerd the bed's images.
func (b *Bed) importImages(ctx context.Context) error {
	images, err := b.tools.images(ctx)
	if err != nil {
		return fmt.Errorf("build the images: %w", err)
	}
	layout, err := ociLayout(images)
	if err != nil {
		return fmt.Errorf("build the images: %w", err)
	}
	// --local: the transfer service, the default of containerd 2, wants to
	// know the platform before it has read the image.
	cmd := exec.CommandContext(ctx, b.tools.ctr, "--address", b.Socket(), "--namespace", "k8s.io",
		"images", "import", "--local", "--snapshotter", snapshotter(b.dir), "-")
	cmd.Stdin = bytes.NewReader(layout)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import the images: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// images are those that every bed has.
func (t tools) images(ctx context.Context) ([]image, error) {
	pause, err := os.ReadFile(t.pause)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(t.busybox); err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(t.busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.CommandContext(ctx, t.busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", t.busybox, err)
	}
	files := []file{{path: "bin/busybox", content: busybox}}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			files = append(files, file{path: "bin/" + filepath.Base(name), target: "busybox"})
		}
	}
	return []image{
		{ref: Pause, entrypoint: []string{"/pause"}, files: []file{{path: "pause", content: pause}}},
		{ref: Busybox, entrypoint: []string{"/bin/sh"}, files: files},
	}, nil
}

// checkStatic refuses a program that needs a dynamic linker, which the image
// would not have.
func checkStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("read %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically, but is to be the only file of an image: run test/setup.sh, which installs busybox-static", program)
		}
	}
	return nil
}

// blob is content that an OCI layout holds by its digest.
type blob []byte

func (b blob) hex() string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (b blob) digest() string { return "sha256:" + b.hex() }

func (b blob) descriptor(mediaType string) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": b.digest(), "size": len(b)}
}

// ociLayout returns the tar archive of an OCI image layout that holds the
// images (image-spec 1.1, image-layout.md), each named by the annotation that
// containerd's import looks for.
func ociLayout(images []image) ([]byte, error) {
	var blobs []blob
	var manifests []map[string]any
	for _, im := range images {
		layer, err := im.layer()
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", im.ref, err)
		}
		config := encode(map[string]any{
			"architecture": runtime.GOARCH,
			"os":           "linux",
			"config":       map[string]any{"Entrypoint": im.entrypoint, "Env": []string{"PATH=/bin"}},
			"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{layer.digest()}},
		})
		manifest := encode(map[string]any{
			"schemaVersion": 2,
			"mediaType":     "application/vnd.oci.image.manifest.v1+json",
			"config":        config.descriptor("application/vnd.oci.image.config.v1+json"),
			"layers":        []any{layer.descriptor("application/vnd.oci.image.layer.v1.tar")},
		})
		entry := manifest.descriptor("application/vnd.oci.image.manifest.v1+json")
		entry["platform"] = map[string]any{"architecture": runtime.GOARCH, "os": "linux"}
		entry["annotations"] = map[string]any{"io.containerd.image.name": im.ref}
		manifests = append(manifests, entry)
		blobs = append(blobs, layer, config, manifest)
	}
	index := encode(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.index.v1+json",
		"manifests":     manifests,
	})
	files := []file{
		{path: "oci-layout", content: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{path: "index.json", content: index},
	}
	for _, b := range blobs {
		files = append(files, file{path: "blobs/sha256/" + b.hex(), content: b})
	}
	return archive(nil, files)
}

func (im image) layer() (blob, error) {
	dirs := []string{"bin", "dev", "etc", "proc", "sys", "tmp"}
	for _, f := range im.files {
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	return archive(dirs, im.files)
}

// archive returns a tar archive of directories and files.
func archive(dirs []string, files []file) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	seen := make(map[string]bool)
	for _, dir := range dirs {
		if seen[dir] {
			continue
		}
		seen[dir] = true
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: 0o755, Size: int64(len(f.content))}
		if f.target != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, f.target
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func encode(v map[string]any) blob {
	b, err := json.Marshal(v)
	if err != nil {
		panic("an image is plain data: " + err.Error())
	}
	return b
}
