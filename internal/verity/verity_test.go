package verity_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/verity"
)

const salt = "5a7d0000000000000000000000000000000000000000000000000000000000ff"

// params are those of data of so many blocks, but for the root hash.
func params(t testing.TB, blocks, data, hash int64) verity.Params {
	t.Helper()
	p, err := verity.Parse(fmt.Sprintf("root_hash=%s,salt=%s,data_blocks=%d,data_block_size=%d,hash_block_size=%d", strings.Repeat("0", 64), salt, blocks, data, hash))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// data is half noise and half zeros, as an image is.
func data(size int64) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b[:size/2])
	return b
}

// device is a hash device in memory.
type device struct{ b []byte }

func (d *device) WriteAt(p []byte, at int64) (int, error) {
	if need := int(at) + len(p); need > len(d.b) {
		d.b = append(d.b, make([]byte, need-len(d.b))...)
	}
	return copy(d.b[at:], p), nil
}

func (d *device) ReadAt(p []byte, at int64) (int, error) { return bytes.NewReader(d.b).ReadAt(p, at) }

func TestHashesAreThoseOfVeritysetup(t *testing.T) {
	for _, c := range []struct{ blocks, data, hash int64 }{
		{2, 4096, 4096}, {128, 4096, 4096}, {129, 4096, 4096}, {128*128 + 1, 4096, 4096}, {1000, 1024, 4096}, {300, 4096, 512},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			dir := t.TempDir()
			image, hashes := filepath.Join(dir, "data"), filepath.Join(dir, "hashes")
			content := data(c.blocks * c.data)
			if err := os.WriteFile(image, content, 0o644); err != nil {
				t.Fatal(err)
			}
			args := []string{"--no-superblock", "--salt=" + salt, fmt.Sprintf("--data-block-size=%d", c.data), fmt.Sprintf("--hash-block-size=%d", c.hash), fmt.Sprintf("--data-blocks=%d", c.blocks)}
			out, err := veritysetup(append([]string{"format", image, hashes}, args...)...)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			root := regexp.MustCompile(`Root hash:\s+(\S+)`).FindStringSubmatch(out)[1]
			want, err := os.ReadFile(hashes)
			if err != nil {
				t.Fatal(err)
			}

			var made device
			p, err := params(t, c.blocks, c.data, c.hash).Make(t.Context(), bytes.NewReader(content), &made)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%x", p.RootHash); got != root {
				t.Errorf("root hash %s, expected %s", got, root)
			}
			if !bytes.Equal(made.b, want[:p.TreeSize()]) || int64(len(made.b)) != p.TreeSize() {
				t.Errorf("the tree of %d bytes is another than veritysetup's of %d", len(made.b), len(want))
			}
			if err := p.Check(t.Context(), bytes.NewReader(content), bytes.NewReader(want)); err != nil {
				t.Error(err)
			}
			// And the other way round.
			if err := os.WriteFile(hashes, made.b, 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := veritysetup(append([]string{"verify", image, hashes, fmt.Sprintf("%x", p.RootHash)}, args...)...); err != nil {
				t.Errorf("veritysetup refuses it: %v: %s", err, out)
			}
		})
	}
}

func veritysetup(args ...string) (string, error) {
	cmd := exec.Command("veritysetup", args...)
	if cmd.Err != nil {
		cmd = exec.Command("/usr/sbin/veritysetup", args...)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestAnyChangeIsFound(t *testing.T) {
	content := data(300 * 4096)
	var made device
	p, err := params(t, 300, 4096, 4096).Make(t.Context(), bytes.NewReader(content), &made)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 4096*150 - 1, len(content) - 1} {
		content[at] ^= 1
		if err := p.Check(t.Context(), bytes.NewReader(content), &made); !errors.Is(err, verity.ErrMismatch) {
			t.Errorf("byte %d of the data: %v", at, err)
		}
		content[at] ^= 1
	}
	for at := 0; at < len(made.b); at += 511 {
		made.b[at] ^= 1
		if err := p.Check(t.Context(), bytes.NewReader(content), &made); !errors.Is(err, verity.ErrMismatch) {
			t.Errorf("byte %d of the hashes: %v", at, err)
		}
		made.b[at] ^= 1
	}
	if err := p.Check(t.Context(), bytes.NewReader(content[:4096*299]), &made); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("less data: %v", err)
	}
	if ours, err := p.Begins(&made); err != nil || !ours {
		t.Errorf("its own tree: %t, %v", ours, err)
	}
	p.Salt[0]++
	if ours, err := p.Begins(&made); err != nil || ours {
		t.Errorf("the tree of another salt: %t, %v", ours, err)
	}
}

func TestParametersAreWrittenAsTheyAreRead(t *testing.T) {
	text := "root_hash=" + strings.Repeat("ab", 32) + ",salt=00ff,data_blocks=7,data_block_size=4096,hash_block_size=512"
	p, err := verity.Parse(text + "\n")
	if err != nil || p.String() != text {
		t.Errorf("%s, %v: expected %s", p, err, text)
	}
	for _, change := range []string{
		"root_hash=" + strings.Repeat("ab", 32) + "=>root_hash=ab", "salt=00ff,=>", "salt=00ff=>salt=xx", "data_blocks=7=>data_blocks=0", "data_blocks=7,=>",
		"data_block_size=4096=>data_block_size=1000", "hash_block_size=512=>hash_block_size=131072", "data_blocks=7=>data_blocks=99999999999999999999", ",salt=> salt",
	} {
		from, to, _ := strings.Cut(change, "=>")
		if p, err := verity.Parse(strings.Replace(text, from, to, 1)); err == nil {
			t.Errorf("%s: read as %s", change, p)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("root_hash=" + strings.Repeat("ab", 32) + ",salt=00ff,data_blocks=7,data_block_size=4096,hash_block_size=512")
	f.Add("root_hash=1")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := verity.Parse(text)
		if err != nil {
			return
		}
		again, err := verity.Parse(p.String())
		if err != nil || again.String() != p.String() {
			t.Errorf("%q is %s, and that %s, %v", text, p, again, err)
		}
	})
}

func BenchmarkMake(b *testing.B) {
	content := data(64 << 20)
	p := params(b, 64<<20/4096, 4096, 4096)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := p.Make(b.Context(), bytes.NewReader(content), &device{}); err != nil {
			b.Fatal(err)
		}
	}
}
