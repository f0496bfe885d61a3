package initrd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/compression"
	"github.com/kata-qat/kata-qat/internal/cpio"
)

func archive(t *testing.T, fill func(*cpio.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// base is a root as distributions have it: /lib is a link.
func base(t *testing.T) []byte {
	return archive(t, func(w *cpio.Writer) {
		w.Link("lib", "usr/lib")
		w.Link("sbin", "/usr/sbin")
		w.Link("init", "/sbin/init")
		w.Bytes("usr/sbin/init", 0o755, "agent")
		w.Bytes("usr/lib/os-release", 0o644, strings.Repeat("ID=test\n", 10000))
		w.Link("usr/lib/out", "../../../etc/x")
		w.Link("loop", "loop")
	})
}

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

func read(t *testing.T, data []byte) *Root {
	t.Helper()
	root, err := Read(t.Context(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestInitrdsOfEveryFormatAreRead(t *testing.T) {
	for format, program := range map[compression.Format][]string{
		compression.None: {"cat"}, compression.Gzip: {"gzip", "-c"},
		compression.XZ: {"xz", "-c", "--check=crc32"}, compression.Zstd: {"zstd", "-qc"},
	} {
		data := pack(t, base(t), program...)
		root := read(t, data)
		if e := root.Entries["init"]; e.Target != "/sbin/init" || root.Size != int64(len(data)) || len(root.SHA256) != 64 {
			t.Errorf("%s: %+v, %d bytes, %s", format, e, root.Size, root.SHA256)
		}
		if !slices.Equal(root.Formats, []compression.Format{format}) {
			t.Errorf("%s: formats %v", format, root.Formats)
		}
	}
}

func TestAllPartsOfAnInitrdAreRead(t *testing.T) {
	early := archive(t, func(w *cpio.Writer) { w.Bytes("kernel/x86/microcode/GenuineIntel.bin", 0o644, "x") })
	late := archive(t, func(w *cpio.Writer) { w.Bytes("late", 0o644, "x") })
	data := slices.Concat(early, make([]byte, 512), pack(t, slices.Concat(base(t), make([]byte, 8), late), "gzip", "-c"), pack(t, late, "zstd", "-qc"))
	root := read(t, data)
	for _, name := range []string{"kernel/x86/microcode/GenuineIntel.bin", "usr/sbin/init", "late"} {
		if _, ok := root.Entries[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	if !slices.Equal(root.Formats, []compression.Format{compression.None, compression.Gzip, compression.Zstd}) {
		t.Errorf("formats %v", root.Formats)
	}
}

func TestACutInitrdIsRefused(t *testing.T) {
	for _, program := range [][]string{{"cat"}, {"gzip", "-c"}, {"xz", "-c"}, {"zstd", "-qc"}} {
		data := pack(t, base(t), program...)
		for _, cut := range []int{len(data) / 2, len(data) - 140, len(data) - 20, len(data) - 5, 4} {
			file := filepath.Join(t.TempDir(), "initrd")
			if err := os.WriteFile(file, data[:max(cut, 1)], 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := ReadFile(t.Context(), file)
			if err == nil {
				t.Errorf("%s: cut at %d of %d: not refused", program[0], cut, len(data))
			} else if cut > 64 && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: cut at %d of %d: %v", program[0], cut, len(data), err)
			}
		}
	}
}

func TestWhatIsNoInitrdIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		data []byte
		says string
	}{
		"empty":        {nil, "nothing in it"},
		"zeros":        {make([]byte, 100), "nothing in it"},
		"text":         {[]byte("hello, world"), "expected a cpio archive"},
		"bzip2":        {[]byte("BZh91AY&SY"), "compressed with bzip2"},
		"old cpio":     {[]byte("070707000000000000"), "expected a cpio archive"},
		"junk behind":  {append(archive(t, func(w *cpio.Writer) { w.Dir("x") }), "junk"...), "6a 75 6e 6b"},
		"junk inside":  {pack(t, append(archive(t, func(w *cpio.Writer) { w.Dir("x") }), bytes.Repeat([]byte("junk"), 99)...), "gzip", "-c"), "an entry begins with"},
		"climbing out": {bytes.ReplaceAll(archive(t, func(w *cpio.Writer) { w.Bytes("xx/evil", 0o644, "") }), []byte("xx/evil"), []byte("../evil")), "leads out of the root"},
		"packed text":  {pack(t, bytes.Repeat([]byte("hello "), 99), "xz", "-c"), "an entry begins with"},
	} {
		_, err := Read(t.Context(), bytes.NewReader(test.data))
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, expected %q", name, err, test.says)
		}
	}
}

func TestNamesAreResolvedAsTheKernelWould(t *testing.T) {
	root := read(t, base(t))
	for name, want := range map[string]string{
		"lib/modules/6.12": "usr/lib/modules/6.12", "/sbin/modprobe": "usr/sbin/modprobe", "init": "init", "etc/x": "etc/x",
	} {
		if got, err := root.Resolve(name); err != nil || got != want {
			t.Errorf("%s is %s, %v: expected %s", name, got, err, want)
		}
	}
	if p, e, err := root.Lookup("init"); err != nil || p != "usr/sbin/init" || e.Mode != cpio.TypeRegular|0o755 {
		t.Errorf("init leads to %s (%+v), %v", p, e, err)
	}
	if p, err := root.Resolve("usr/lib/out/y"); err != nil || p != "etc/x/y" {
		t.Errorf("a link out of the root leads to %s, %v: expected to stay in it", p, err)
	}
	if _, _, err := root.Lookup("usr/lib/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	if _, _, err := root.Lookup("loop"); err == nil || !strings.Contains(err.Error(), "links") {
		t.Errorf("a link to itself: %v", err)
	}
}

func TestReadingStopsWhenItIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, bytes.NewReader(base(t))); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("070701"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := Read(context.Background(), bytes.NewReader(data))
		if (root == nil) == (err == nil) {
			t.Errorf("%v, %v", root, err)
		}
	})
}
