package cpio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func archive(t *testing.T, fill func(*Writer), exist ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b, exist...)
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sample(w *Writer) {
	w.Char("/dev/null", 1, 3)
	w.Link("/bin/sh", "busybox")
	for n := range 5 { // every padding
		w.Bytes("/sizes/"+strings.Repeat("x", n+1), 0o600, strings.Repeat("y", n))
	}
	w.Bytes("/sizes/x", 0o600, "the first of a name counts")
}

func names(t *testing.T, archive []byte) []string {
	t.Helper()
	var all []string
	r := NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func TestAnArchiveUnpacksToWhatWasPutIn(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive(t, func(w *Writer) {
		w.File("/init", os.Args[0])
		for n := range 5 {
			w.Bytes("/sizes/"+strings.Repeat("x", n+1), 0o600, strings.Repeat("y", n))
		}
		w.Link("/link", "sizes/x")
	}))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	want, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "init")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a file of this machine is not what it was: %v", err)
	}
	for n := range 5 {
		if got, err := os.ReadFile(filepath.Join(dir, "sizes", strings.Repeat("x", n+1))); err != nil || len(got) != n {
			t.Errorf("file of %d bytes has %d (%v)", n, len(got), err)
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, "link")); err != nil || target != "sizes/x" {
		t.Errorf("link leads to %q (%v)", target, err)
	}
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	r := NewReader(bytes.NewReader(archive(t, sample)))
	got := map[string]string{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil || int64(len(b)) != h.Size {
			t.Fatalf("%s: %d bytes, %v: expected %d", h.Name, len(b), err, h.Size)
		}
		got[h.Name] = string(b)
	}
	for name, want := range map[string]string{"dev": "", "dev/null": "", "bin/sh": "busybox", "sizes/xxxx": "yyy", "sizes/x": ""} {
		if b, ok := got[name]; !ok || b != want {
			t.Errorf("%s holds %q (%v), expected %q", name, b, ok, want)
		}
	}
}

func TestTheArchivesOfCpioAreRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "find . | busybox cpio -o -H newc")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, out); !slices.Contains(got, "file") && !slices.Contains(got, "./file") {
		t.Errorf("got %q", got)
	}
}

func TestTheSameCallsWriteTheSameBytes(t *testing.T) {
	if !bytes.Equal(archive(t, sample), archive(t, sample)) {
		t.Error("two archives of the same differ")
	}
}

func TestADirectoryThatExistsIsNotMadeAgain(t *testing.T) {
	got := names(t, archive(t, func(w *Writer) { w.Bytes("/usr/lib/modules/x", 0o644, "") }, "usr/lib"))
	if want := []string{"usr/lib/modules", "usr/lib/modules/x"}; !slices.Equal(got, want) {
		t.Errorf("got %q, expected %q", got, want)
	}
}

func TestACutArchiveIsRefusedWhereverItIsCut(t *testing.T) {
	whole := archive(t, sample)
	for n := range len(whole) - 4 {
		r := NewReader(bytes.NewReader(whole[:n]))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: %v", n, len(whole), err)
		}
	}
}

func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	w := NewWriter(&b)
	sample(w)
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		for n := 0; ; n++ {
			if _, err := r.Next(); err != nil {
				return
			}
			if n*headerSize > len(data) {
				t.Fatal("more entries than the data has room for")
			}
		}
	})
}
