// Package rootimagetest makes disk images for tests: with the root of a guest as
// Kata has it, of 4 MiB.
package rootimagetest

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Form is how an image is laid out.
type Form string

// The forms.
const (
	Bare Form = "bare" // a file system and nothing else
	MBR  Form = "mbr"
	GPT  Form = "gpt"
	// Measured has a second partition with dm-verity's hashes, made by
	// veritysetup as Kata makes them, and their parameters in Params beside it.
	Measured Form = "measured"
)

// Params is the file beside a Measured image, as Kata names it.
const Params = "root_hash_test.txt"

// Forms are all forms of images that nothing protects.
var Forms = []Form{Bare, MBR, GPT}

// Start is where the partition of an image begins.
const Start = 1 << 20

const (
	size     = 4 << 20
	hashSize = 1 << 20
)

// New makes an image and returns its file. lib and sbin are links in it.
func New(tb testing.TB, form Form) string {
	tb.Helper()
	dir := tb.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"usr/lib/systemd", "usr/sbin", "etc"} {
		must(tb, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	for _, l := range []string{"lib", "sbin"} {
		must(tb, os.Symlink("usr/"+l, filepath.Join(root, l)))
	}
	must(tb, os.WriteFile(filepath.Join(root, "etc/os-release"), []byte("ID=kata\n"), 0o644))
	must(tb, os.WriteFile(filepath.Join(root, "usr/sbin/init"), []byte("agent"), 0o755))
	must(tb, os.WriteFile(filepath.Join(root, "usr/lib/systemd/systemd"), []byte("init"), 0o755))
	file := filepath.Join(dir, "image")
	offset := 0
	if form != Bare {
		offset = Start
	}
	total := offset + size
	if form == Measured {
		total += hashSize
	}
	must(tb, os.WriteFile(file, make([]byte, total), 0o644))
	cmd := exec.Command("mkfs.ext4", "-q", "-F", "-d", root, "-E", fmt.Sprintf("offset=%d", offset), file, fmt.Sprintf("%dk", size>>10))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	must(tb, err)
	defer f.Close()
	write := func(at int64, b []byte) {
		_, err := f.WriteAt(b, at)
		must(tb, err)
	}
	switch form {
	case MBR:
		write(446, Partition(Start/512, size/512))
		write(510, []byte{0x55, 0xaa})
	case Measured:
		write(446, Partition(Start/512, size/512))
		write(446+16, Partition((Start+size)/512, hashSize/512))
		write(510, []byte{0x55, 0xaa})
		write(Start+size, hashes(tb, file, filepath.Join(dir, Params)))
	case GPT:
		entry := Partition(1, 8191)
		entry[4] = 0xee
		write(446, entry)
		write(510, []byte{0x55, 0xaa})
		head := make([]byte, 92)
		copy(head, "EFI PART")
		binary.LittleEndian.PutUint64(head[72:], 2)
		binary.LittleEndian.PutUint32(head[80:], 4)
		binary.LittleEndian.PutUint32(head[84:], 128)
		write(512, head)
		part := make([]byte, 128)
		copy(part, "not all of a type")
		binary.LittleEndian.PutUint64(part[32:], Start/512)
		binary.LittleEndian.PutUint64(part[40:], (Start+size)/512-1)
		write(2*512, part)
	}
	return file
}

// hashes has veritysetup make those of an image's file system, with Kata's options,
// and writes their parameters to a file.
func hashes(tb testing.TB, image, params string) []byte {
	tb.Helper()
	dir := filepath.Dir(image)
	b, err := os.ReadFile(image)
	must(tb, err)
	data, tree := filepath.Join(dir, "p1"), filepath.Join(dir, "p2")
	must(tb, os.WriteFile(data, b[Start:Start+size], 0o644))
	cmd := exec.Command("veritysetup", "format", "--no-superblock", data, tree)
	if cmd.Err != nil {
		cmd = exec.Command("/usr/sbin/veritysetup", cmd.Args[1:]...)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("veritysetup: %v: %s", err, out)
	}
	field := func(label string) string {
		found := regexp.MustCompile(`(?m)^` + label + `:\s+(\S+)`).FindSubmatch(out)
		if found == nil {
			tb.Fatalf("veritysetup did not say %q: %s", label, out)
		}
		return string(found[1])
	}
	text := fmt.Sprintf("root_hash=%s,salt=%s,data_blocks=%s,data_block_size=%s,hash_block_size=%s\n",
		field("Root hash"), field("Salt"), field("Data blocks"), field("Data block size"), field("Hash block size"))
	must(tb, os.WriteFile(params, []byte(text), 0o644))
	b, err = os.ReadFile(tree)
	must(tb, err)
	return b
}

// Partition is an entry of an MBR for a partition that begins at a sector, and has
// so many.
func Partition(start, sectors uint32) []byte {
	entry := make([]byte, 16)
	entry[4] = 0x83
	binary.LittleEndian.PutUint32(entry[8:], start)
	binary.LittleEndian.PutUint32(entry[12:], sectors)
	return entry
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
