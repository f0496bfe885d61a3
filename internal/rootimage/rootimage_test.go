package rootimage_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/rootimage"
	"github.com/kata-qat/kata-qat/internal/rootimage/rootimagetest"
	"github.com/kata-qat/kata-qat/internal/verity"
)

func open(t *testing.T, file string) *rootimage.Image {
	t.Helper()
	i, err := rootimage.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func files(content string) []rootimage.File {
	read := func() ([]byte, error) { return []byte(content), nil }
	return []rootimage.File{
		{Path: "usr/lib/modules/6.12+deb-x/new.ko", Perm: 0o644, Content: read},
		{Path: "usr/sbin/hook", Perm: 0o755, Content: read},
		{Path: "usr/sbin/modprobe", Perm: 0o777, Target: "/usr/lib/busybox"},
		{Path: "etc/os-release", Perm: 0o644, Content: read},
	}
}

func TestFilesArePutIntoEveryFormOfImage(t *testing.T) {
	for _, form := range rootimagetest.Forms {
		t.Run(string(form), func(t *testing.T) {
			i := open(t, rootimagetest.New(t, form))
			if err := i.Write(t.Context(), files("hello")); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			err := i.Read(t.Context(), []string{"usr/sbin/hook", "usr/sbin/modprobe", "etc/os-release", "usr/lib/modules/6.12+deb-x/new.ko", "etc/none"},
				func(path string, mode int, target string, content []byte) { got[path] = target + string(content) })
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 4 || got["usr/sbin/hook"] != "hello" || got["usr/sbin/modprobe"] != "/usr/lib/busybox" || got["etc/os-release"] != "hello" {
				t.Errorf("got %q", got)
			}
			root, err := i.Probe(t.Context(), []string{"lib/modules/6.12+deb-x/new.ko", "sbin/hook", "usr/share"})
			if err != nil {
				t.Fatal(err)
			}
			if p, e, err := root.Lookup("sbin/hook"); err != nil || p != "usr/sbin/hook" || e.Mode != cpio.TypeRegular|0o755 {
				t.Errorf("sbin/hook is %s, %o, %v", p, e.Mode, err)
			}
			if p, _, err := root.Lookup("lib/modules/6.12+deb-x/new.ko"); err != nil || p != "usr/lib/modules/6.12+deb-x/new.ko" {
				t.Errorf("a file below a link is %s, %v", p, err)
			}
			if _, _, err := root.Lookup("usr/share"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what is not there: %v", err)
			}
		})
	}
}

func TestTheSameFilesMakeTheSameImage(t *testing.T) {
	first := rootimagetest.New(t, rootimagetest.Bare)
	second := filepath.Join(t.TempDir(), "second")
	b, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(second, b, 0o644); err != nil {
		t.Fatal(err)
	}
	var made [2][]byte
	for n, file := range []string{first, second} {
		if err := open(t, file).Write(t.Context(), files("x")); err != nil {
			t.Fatal(err)
		}
		if made[n], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("they differ")
	}
}

func TestAFullImageIsSaidToBeFull(t *testing.T) {
	err := open(t, rootimagetest.New(t, rootimagetest.Bare)).Write(t.Context(), files(strings.Repeat("x", 8<<20)))
	if err == nil || !strings.Contains(err.Error(), "is full") {
		t.Errorf("got %v", err)
	}
}

func TestNamesThatAreCommandsAreRefused(t *testing.T) {
	i := open(t, rootimagetest.New(t, rootimagetest.Bare))
	for _, name := range []string{"etc/x\nrm /etc/os-release", "etc/x y", `etc/"x`} {
		if err := i.Write(t.Context(), []rootimage.File{{Path: name, Content: func() ([]byte, error) { return nil, nil }}}); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestImagesThatCannotBeChangedAreRefused(t *testing.T) {
	at := func(t *testing.T, file string, offset int64, data []byte) string {
		t.Helper()
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if offset < 0 {
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			offset = st.Size()
		}
		if _, err := f.WriteAt(data, offset); err != nil {
			t.Fatal(err)
		}
		return file
	}
	erofs := binary.LittleEndian.AppendUint32(nil, 0xE0F5E1E2)
	hashes := append([]byte("verity\x00\x00"), make([]byte, 4096)...)
	for name, tc := range map[string]struct {
		file func(t *testing.T) string
		says string
	}{
		"erofs in a partition": {func(t *testing.T) string {
			return at(t, at(t, rootimagetest.New(t, rootimagetest.MBR), rootimagetest.Start+1080, []byte{0, 0}), rootimagetest.Start+1024, erofs)
		}, "erofs"},
		"bare erofs": {func(t *testing.T) string {
			return at(t, at(t, rootimagetest.New(t, rootimagetest.Bare), 1080, []byte{0, 0}), 1024, erofs)
		}, "erofs"},
		"hashes behind": {func(t *testing.T) string { return at(t, rootimagetest.New(t, rootimagetest.Bare), -1, hashes) }, "dm-verity"},
		"hashes in a partition": {func(t *testing.T) string {
			file := rootimagetest.New(t, rootimagetest.MBR)
			return at(t, at(t, file, 446+16, rootimagetest.Partition(100, 8)), 100*512, hashes)
		}, "dm-verity"},
		"no file system": {func(t *testing.T) string {
			return at(t, rootimagetest.New(t, rootimagetest.MBR), rootimagetest.Start+1080, []byte{0, 0})
		}, "none of its 1 partitions is ext4"},
		"damaged table": {func(t *testing.T) string {
			return at(t, rootimagetest.New(t, rootimagetest.GPT), 512, []byte("x"))
		}, "says that it is a GPT"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := rootimage.Open(tc.file(t)); err == nil || errors.Is(err, rootimage.ErrNoImage) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, expected %q", err, tc.says)
			}
		})
	}
}

func TestAMeasuredImageIsProtectedAgain(t *testing.T) {
	file := rootimagetest.New(t, rootimagetest.Measured)
	i := open(t, file)
	if !i.Protected() {
		t.Fatal("its hashes are not seen")
	}
	was, err := i.Protection("")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Check(t.Context(), was); err != nil {
		t.Fatal(err)
	}
	if err := i.Write(t.Context(), files("hello")); err != nil {
		t.Fatal(err)
	}
	if err := i.Check(t.Context(), was); !errors.Is(err, verity.ErrMismatch) {
		t.Errorf("changed and not protected again: %v", err)
	}
	now, err := i.Protect(t.Context(), was)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Check(t.Context(), now); err != nil {
		t.Error(err)
	}
	if bytes.Equal(now.RootHash, was.RootHash) || !bytes.Equal(now.Salt, was.Salt) || now.DataBlocks != was.DataBlocks {
		t.Errorf("from %s to %s: expected another root hash and nothing else", was, now)
	}
	// As the kernel would: by the tool whose format it is.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data, hashes := filepath.Join(t.TempDir(), "p1"), filepath.Join(t.TempDir(), "p2")
	if err := errors.Join(os.WriteFile(data, b[i.Offset:i.Offset+i.Size], 0o644), os.WriteFile(hashes, b[i.Hashes.Offset:], 0o644)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/sbin/veritysetup", "verify", "--no-superblock", fmt.Sprintf("--salt=%x", now.Salt), fmt.Sprintf("--data-blocks=%d", now.DataBlocks), data, hashes, fmt.Sprintf("%x", now.RootHash)).CombinedOutput()
	if err != nil {
		t.Errorf("veritysetup refuses it: %v: %s", err, out)
	}
}

func TestAProtectionThatIsNotKnownIsRefused(t *testing.T) {
	file := rootimagetest.New(t, rootimagetest.Measured)
	i := open(t, file)
	params := filepath.Join(filepath.Dir(file), rootimagetest.Params)
	own, err := os.ReadFile(params)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(own), "root_hash=", "root_hash="+strings.Repeat("0", 64)+",was=", 1)
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "root_hash_another.txt"), []byte(other), 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err := i.Protection(""); err != nil || p.String()+"\n" != string(own) {
		t.Errorf("of two files: %s, %v", p, err)
	}
	if err := os.Remove(params); err != nil {
		t.Fatal(err)
	}
	for given, says := range map[string]string{
		"":    "its parameters are not known (1 files root_hash*.txt beside it, none of them its own): name them with --base-verity",
		other: "root hash " + strings.Repeat("0", 64) + " is not that of its hashes",
		strings.Replace(string(own), "data_blocks=1024", "data_blocks=512", 1): "its parameters are for 2097152 bytes",
		"root_hash=1": `root_hash "1": expected 64 hexadecimal digits`,
	} {
		if _, err := i.Protection(given); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, expected %q", given, err, says)
		}
	}
	if p, err := i.Protection(string(own)); err != nil {
		t.Errorf("as named: %s, %v", p, err)
	}
}

func TestADamagedFileSystemIsRefused(t *testing.T) {
	file := rootimagetest.New(t, rootimagetest.Bare)
	if out, err := exec.Command("/usr/sbin/debugfs", "-w", "-R", "clri <12>", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := open(t, file).Write(t.Context(), files("x")); err == nil || !strings.Contains(err.Error(), "not clean as it is") {
		t.Errorf("got %v", err)
	}
}

func TestOtherFilesAreNoImages(t *testing.T) {
	for name, data := range map[string][]byte{"empty": nil, "short": []byte("070701"), "cpio": bytes.Repeat([]byte("070701"), 1000)} {
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := rootimage.Open(file); !errors.Is(err, rootimage.ErrNoImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
