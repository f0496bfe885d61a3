// Package ociimage writes container images from files, as an OCI image layout in
// one tar archive. The same files give the same bytes: it knows no time, no owner
// and no order but its own. It fetches nothing and builds upon no other image.
package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // for go-digest
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of one layer.
type Image struct {
	Ref          string // by which it is known after an import
	Architecture string // as Go calls it
	Config       v1.ImageConfig
	Annotations  map[string]string // of the manifest
	// Dirs are directories that are there beside those of the files.
	Dirs  []string
	Files []File
	// Compress has the layer compressed with gzip.
	Compress bool
}

// File is a regular file, or a symbolic link where Target is set. It is root's.
type File struct {
	Path    string // relative
	Mode    int64  // 0 for 0755
	Content []byte
	Target  string
}

// nameAnnotation is what containerd's import takes the image's name from
// (containerd v2, core/images/annotations.go).
const nameAnnotation = "io.containerd.image.name"

// Write writes the tar archive of an image layout with the images (image-spec
// 1.1, image-layout.md), and returns the digests of their manifests.
func Write(w io.Writer, images ...Image) ([]digest.Digest, error) {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	blobs := make(map[digest.Digest][]byte)
	add := func(mediaType string, content []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		blobs[d.Digest] = content
		return d
	}
	var digests []digest.Digest
	for _, im := range images {
		d, err := im.manifest(add)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", im.Ref, err)
		}
		digests = append(digests, d.Digest)
		index.Manifests = append(index.Manifests, d)
	}
	files := []File{
		{Path: v1.ImageLayoutFile, Mode: 0o644, Content: encode(v1.ImageLayout{Version: v1.ImageLayoutVersion})},
		{Path: v1.ImageIndexFile, Mode: 0o644, Content: encode(index)},
	}
	for d, content := range blobs {
		files = append(files, File{Path: path.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), Mode: 0o644, Content: content})
	}
	return digests, archive(w, nil, files)
}

func (im *Image) manifest(add func(string, []byte) v1.Descriptor) (v1.Descriptor, error) {
	var layer bytes.Buffer
	if err := archive(&layer, im.Dirs, im.Files); err != nil {
		return v1.Descriptor{}, err
	}
	diff, mediaType, content := digest.FromBytes(layer.Bytes()), v1.MediaTypeImageLayer, layer.Bytes()
	if im.Compress {
		var err error
		if content, err = compressed(content); err != nil {
			return v1.Descriptor{}, err
		}
		mediaType = v1.MediaTypeImageLayerGzip
	}
	platform := v1.Platform{Architecture: im.Architecture, OS: "linux"}
	config := add(v1.MediaTypeImageConfig, encode(v1.Image{
		Platform: platform, Config: im.Config, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff}},
	}))
	d := add(v1.MediaTypeImageManifest, encode(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: config, Layers: []v1.Descriptor{add(mediaType, content)}, Annotations: im.Annotations,
	}))
	d.Platform, d.Annotations = &platform, map[string]string{nameAnnotation: im.Ref, v1.AnnotationRefName: im.Ref}
	return d, nil
}

func compressed(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression) // its header has no name and no time
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// archive writes a tar archive of directories, those of the files among them,
// and files, in the order of their names.
func archive(w io.Writer, dirs []string, files []File) error {
	dirs = slices.Clone(dirs)
	for _, f := range files {
		if f.Path == "" || path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || strings.HasPrefix(f.Path, "..") {
			return fmt.Errorf("file %q: expected a relative path", f.Path)
		}
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	out := tar.NewWriter(w)
	for _, dir := range slices.Compact(dirs) {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	for i, f := range files {
		if i > 0 && f.Path == files[i-1].Path {
			return fmt.Errorf("file %s is there twice", f.Path)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: f.Mode, Size: int64(len(f.Content))}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if f.Target != "" {
			h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, f.Target, 0o777, 0
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if f.Target != "" {
			continue
		}
		if _, err := out.Write(f.Content); err != nil {
			return err
		}
	}
	return out.Close()
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("an image is plain data: " + err.Error())
	}
	return b
}

// CheckStatic refuses a program that needs a dynamic linker, which an image of
// ours would not have.
func CheckStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("read %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically, but an image has no dynamic linker: expected a static program", program)
		}
	}
	return nil
}
