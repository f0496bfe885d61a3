package bed

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	content, err := ociLayout([]image{
		{ref: "localhost/a:1", files: []file{{path: "a", content: []byte("A")}}},
		{ref: "localhost/b:1", files: []file{{path: "opt/b/prog", content: []byte("B")}, {path: "opt/b/link", target: "prog"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	files := readArchive(t, content)
	get := func(d descriptor) []byte {
		content := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if blob(content).digest() != d.Digest || len(content) != d.Size {
			t.Fatalf("blob %+v has digest %s and %d bytes", d, blob(content).digest(), len(content))
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
	for _, m := range index.Manifests {
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		decode(get(m), &manifest)
		var config struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		decode(get(manifest.Config), &config)
		if len(manifest.Layers) != 1 || len(config.RootFS.DiffIDs) != 1 || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
			t.Fatalf("layers %+v with diff ids %v, expected one uncompressed layer", manifest.Layers, config.RootFS.DiffIDs)
		}
		layers[m.Annotations["io.containerd.image.name"]] = readArchive(t, get(manifest.Layers[0]))
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
	err := checkStatic("/bin/sh")
	if err == nil || !strings.Contains(err.Error(), "busybox-static") {
		t.Errorf("a dynamically linked program: %v, expected an error that says what to install", err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := checkStatic(script); err == nil {
		t.Error("a script was taken for a static program")
	}
}
