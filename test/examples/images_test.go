//go:build bed || kube

package examples

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
)

// debian is the root with Debian's programs, made by setup.sh from these sources.
func debian(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(moduleRoot(t), "build", "examples")
	if d := os.Getenv("KATA_QAT_EXAMPLES_DIR"); d != "" {
		dir = d
	}
	sum := sha256.New()
	for _, name := range []string{"setup.sh", "standin/qatengine.c", "standin/qatprovider.c"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(b)
	}
	built, err := os.ReadFile(filepath.Join(dir, "built"))
	if want := hex.EncodeToString(sum.Sum(nil)); err != nil || strings.TrimSpace(string(built)) != want {
		t.Fatalf("%s was not made by this setup.sh: run test/examples/setup.sh", dir)
	}
	return dir
}

// standIns are images of Debian's programs and a static busybox, all the same.
func standIns(t testing.TB, refs ...string) []ociimage.Image {
	t.Helper()
	var images []ociimage.Image
	files := debianFiles(t)
	for _, ref := range refs {
		images = append(images, standIn(ref, files))
	}
	return images
}

func standIn(ref string, files []ociimage.File) ociimage.Image {
	return ociimage.Image{
		Ref: ref, Architecture: runtime.GOARCH, Files: files,
		Config: v1.ImageConfig{Env: []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin"}},
		Dirs:   []string{"dev", "proc", "run", "sys", "tmp"},
	}
}

// debianFiles are Debian's programs and a static busybox. The stand-ins for
// QAT_Engine's modules are where OpenSSL does not look unless it is told to.
func debianFiles(t testing.TB) []ociimage.File {
	t.Helper()
	dir := debian(t)
	files := append(tree(t, filepath.Join(dir, "root"), ""), tree(t, filepath.Join(dir, "modules"), "modules")...)
	files = append(files, ociimage.File{Path: "etc/nsswitch.conf", Mode: 0o644, Content: []byte("hosts: files\n")})
	return append(files, busybox(t)...)
}

func busybox(t testing.TB) []ociimage.File {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: run test/setup.sh", err)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	files := []ociimage.File{{Path: "bin/busybox", Content: content}}
	for _, applet := range []string{"base64", "cat", "cp", "cut", "env", "grep", "head", "ls", "nc", "sed", "sh", "sleep", "stat", "test", "tr"} {
		files = append(files, ociimage.File{Path: "bin/" + applet, Target: "busybox"})
	}
	return files
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
