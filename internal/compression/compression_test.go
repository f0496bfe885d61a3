package compression

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// pack compresses with the program that people use for it.
func pack(t *testing.T, plain []byte, program ...string) []byte {
	t.Helper()
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", program, err)
	}
	return out
}

var programs = map[Format][]string{
	None: {"cat"},
	Gzip: {"gzip", "-c"},
	XZ:   {"xz", "-c", "--check=crc32"},
	Zstd: {"zstd", "-c", "-19"},
}

func TestEveryFormatIsReadAndNamed(t *testing.T) {
	plain := bytes.Repeat([]byte("070701 and more "), 10000)
	for want, program := range programs {
		packed := pack(t, plain, program...)
		r, got, err := NewReader(bufio.NewReader(bytes.NewReader(packed)))
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		b, err := io.ReadAll(r)
		if err != nil || got != want || !bytes.Equal(b, plain) {
			t.Errorf("%s: format %s, %d bytes, %v: expected %d bytes", want, got, len(b), err, len(plain))
		}
		if want == None {
			continue
		}
		r, _, err = NewReader(bufio.NewReader(bytes.NewReader(packed[:len(packed)-9])))
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s, cut short: %v, expected an unexpected end", want, err)
		}
	}
}

func TestWhatFollowsAGzipMemberIsLeft(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, "first")
	z.Close()
	b.WriteString("rest")
	in := bufio.NewReader(&b)
	r, _, err := NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := io.ReadAll(r)
	rest, _ := io.ReadAll(in)
	if string(first) != "first" || string(rest) != "rest" {
		t.Errorf("got %q and %q", first, rest)
	}
}

func TestOtherFormatsAreRefusedByName(t *testing.T) {
	for name, head := range map[string]string{"bzip2": "BZh91AY", "lz4": "\x02\x21\x4c\x18", "lzma": "\x5d\x00\x00\x80", "lzo": "\x89LZO\x00"} {
		_, _, err := NewReader(bufio.NewReader(strings.NewReader(head)))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFileHasALimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, pack(t, make([]byte, 5000), "gzip", "-c"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(file, 5000); err != nil || len(b) != 5000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := ReadFile(file, 4999); err == nil {
		t.Error("more than the limit was read")
	}
}
