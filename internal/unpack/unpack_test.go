package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func archive(t *testing.T, entries ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 5
		}
		h.Mode |= 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			fmt.Fprint(w, "hello")
		}
	}
	if w.Close() != nil || z.Close() != nil {
		t.Fatal("cannot write the archive")
	}
	file := filepath.Join(t.TempDir(), "a.tar.gz")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAnArchiveIsUnpacked(t *testing.T) {
	dir := t.TempDir()
	err := Tar(t.Context(), archive(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "a/b/file", Mode: 0o755}, tar.Header{Name: "a/link", Typeflag: tar.TypeSymlink, Linkname: "../a/b"}, tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "a/b/file"}), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b/file", "a/link/file", "hard"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != "hello" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "a/b/file")); err != nil || st.Mode()&0o111 == 0 {
		t.Errorf("the program is no program: %v, %v", st, err)
	}
}

func TestNothingIsWrittenOutside(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"above":              {{Name: "../evil"}},
		"above, hidden":      {{Name: "a/../../evil"}},
		"absolute":           {{Name: "/evil"}},
		"link above":         {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "a/evil"}},
		"absolute link":      {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "a/evil"}},
		"links in two steps": {{Name: "d/a", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "b", Typeflag: tar.TypeSymlink, Linkname: "d/a/.."}, {Name: "b/evil"}},
		"hard link above":    {{Name: "a", Typeflag: tar.TypeLink, Linkname: "../evil"}},
		"through a link":     {{Name: "x"}, {Name: "a", Typeflag: tar.TypeSymlink, Linkname: "x"}, {Name: "a"}},
		"device":             {{Name: "a", Typeflag: tar.TypeChar}},
		"fifo":               {{Name: "a", Typeflag: tar.TypeFifo}},
	} {
		top := t.TempDir()
		dir := filepath.Join(top, "dir")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := Tar(t.Context(), archive(t, entries...), dir); err == nil {
			t.Errorf("%s: not refused", name)
		}
		if got, _ := filepath.Glob(filepath.Join(top, "*")); len(got) != 1 {
			t.Errorf("%s: %v is outside", name, got)
		}
	}
}

func TestWhatIsNoArchiveIsRefused(t *testing.T) {
	whole, err := os.ReadFile(archive(t, tar.Header{Name: "a"}))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"empty": nil, "text": []byte(strings.Repeat("hello", 999)), "bzip2": []byte("BZh91AY"), "cut": whole[:len(whole)-12]} {
		file := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Tar(t.Context(), file, t.TempDir()); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADigestIsCompared(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(file, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	right := fmt.Sprintf("%X", sha256.Sum256([]byte("hello")))
	if err := CheckDigest(file, right); err != nil {
		t.Error(err)
	}
	if err := CheckDigest(file, strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "expected 0000") {
		t.Errorf("another digest: %v", err)
	}
}

func TestWhatIsFetchedIsACopyOfTheFileThatIsMeant(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "copy")
	if err := os.WriteFile(from, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte("hello")))
	if err := Fetch(from, to, digest); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "hello" {
		t.Errorf("the copy is %q, %v", got, err)
	}
	if err := Fetch(from, to, strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), from) {
		t.Errorf("another digest: %v", err)
	}
	pipe, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "link")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Fetch(pipe, to, digest); err == nil || !strings.Contains(err.Error(), "expected a file") {
		t.Errorf("a pipe: %v", err)
	}
	if err := os.Symlink(from, link); err != nil {
		t.Fatal(err)
	}
	if err := Fetch(from, link, digest); err == nil {
		t.Error("it was written through a link that was there")
	}
}
