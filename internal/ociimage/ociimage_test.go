package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func readArchive(t *testing.T, content []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	r := tar.NewReader(bytes.NewReader(content))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			files[h.Name] = []byte("-> " + h.Linkname)
			continue
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

type descriptor struct {
	Digest      string
	Size        int
	Annotations map[string]string
}

func TestLayoutLeadsFromIndexToFiles(t *testing.T) {
	var layout bytes.Buffer
	digests, err := Write(&layout,
		Image{Ref: "localhost/a:1", Files: []File{{Path: "a", Content: []byte("A")}}},
		Image{Ref: "localhost/b:1", Compress: true, Files: []File{{Path: "opt/b/prog", Content: []byte("B")}, {Path: "opt/b/link", Target: "prog"}}},
	)
	if err != nil {
		t.Fatal(err)
	}
	files := readArchive(t, layout.Bytes())
	get := func(d descriptor) []byte {
		content := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if is := digest.FromBytes(content).String(); is != d.Digest || len(content) != d.Size {
			t.Fatalf("blob %+v has digest %s and %d bytes", d, is, len(content))
		}
		return content
	}
	decode := func(content []byte, v any) {
		if err := json.Unmarshal(content, v); err != nil {
			t.Fatal(err)
		}
	}
	var index struct{ Manifests []descriptor }
	decode(files["index.json"], &index)
	layers := make(map[string]map[string][]byte)
	for i, m := range index.Manifests {
		if m.Digest != digests[i].String() {
			t.Errorf("manifest %d has digest %s, Write said %s", i, m.Digest, digests[i])
		}
		var manifest struct {
			Config descriptor
			Layers []struct {
				descriptor
				MediaType string
			}
		}
		decode(get(m), &manifest)
		var config struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		decode(get(manifest.Config), &config)
		if len(manifest.Layers) != 1 || len(config.RootFS.DiffIDs) != 1 {
			t.Fatalf("layers %+v with diff ids %v, expected one of each", manifest.Layers, config.RootFS.DiffIDs)
		}
		layer := get(manifest.Layers[0].descriptor)
		if strings.HasSuffix(manifest.Layers[0].MediaType, "+gzip") {
			r, err := gzip.NewReader(bytes.NewReader(layer))
			if err != nil {
				t.Fatal(err)
			}
			if layer, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
		if is := digest.FromBytes(layer).String(); is != config.RootFS.DiffIDs[0] {
			t.Errorf("the layer of %v has the diff id %s, the configuration says %s", m.Annotations, is, config.RootFS.DiffIDs[0])
		}
		layers[m.Annotations["io.containerd.image.name"]] = readArchive(t, layer)
	}
	if got := string(layers["localhost/a:1"]["a"]); got != "A" {
		t.Errorf("image a has a file %q", got)
	}
	b := layers["localhost/b:1"]
	if string(b["opt/b/prog"]) != "B" || string(b["opt/b/link"]) != "-> prog" {
		t.Errorf("image b has the files %q", b)
	}
	if _, ok := b["opt/b/"]; !ok {
		t.Errorf("image b has no entry for the directory opt/b: %q", b)
	}
}

func TestDynamicProgramIsRefused(t *testing.T) {
	err := CheckStatic("/bin/sh")
	if err == nil || !strings.Contains(err.Error(), "static program") {
		t.Errorf("a dynamically linked program: %v, expected an error that says what is expected", err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := CheckStatic(script); err == nil {
		t.Error("a script was taken for a static program")
	}
}

func TestSameFilesGiveTheSameBytes(t *testing.T) {
	files := []File{{Path: "b/x", Content: []byte("X")}, {Path: "a", Content: []byte("A")}, {Path: "c", Target: "a"}}
	write := func(dirs []string, files ...File) string {
		var out bytes.Buffer
		if _, err := Write(&out, Image{Ref: "localhost/a:1", Compress: true, Dirs: dirs, Files: files}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	first := write([]string{"proc", "b"}, files...)
	slices.Reverse(files)
	if write([]string{"b", "proc"}, files...) != first {
		t.Error("the order in which files are named changes the image")
	}
	if write(nil, files...) == first {
		t.Error("an image with other directories has the same bytes")
	}
}

func TestPathsThatCannotBeMeantAreRefused(t *testing.T) {
	for name, files := range map[string][]File{
		"absolute":  {{Path: "/etc/passwd"}},
		"leads out": {{Path: "../a"}},
		"unclean":   {{Path: "a/../b"}},
		"twice":     {{Path: "a"}, {Path: "a"}},
	} {
		if _, err := Write(io.Discard, Image{Ref: "localhost/a:1", Files: files}); err == nil {
			t.Errorf("%s: %+v was taken", name, files)
		}
	}
}
