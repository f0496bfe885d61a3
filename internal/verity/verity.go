// Package verity makes and checks the hashes of dm-verity of the form that Kata's
// images have: SHA-256 behind the salt (format 1), without a superblock, the tree
// from the beginning of the hash device. It knows no other form, and no device.
package verity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strconv"
	"strings"
)

// Params are what the kernel is told of a protected file system, as Kata has it in
// kernel_verity_params (kata-containers 4.1,
// src/libs/kata-types/src/config/hypervisor/mod.rs, parse_kernel_verity_params).
type Params struct {
	RootHash      []byte
	Salt          []byte
	DataBlocks    int64
	DataBlockSize int64
	HashBlockSize int64
}

// Parse reads "root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…".
func Parse(text string) (Params, error) {
	p, err := parse(strings.TrimSpace(text))
	if err != nil {
		return p, fmt.Errorf("parameters of dm-verity %q: %w", text, err)
	}
	return p, nil
}

func parse(text string) (p Params, err error) {
	values := map[string]string{}
	for field := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(field), "=")
		if !ok {
			return p, fmt.Errorf("%q: expected root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…", field)
		}
		values[key] = value
	}
	if p.RootHash, err = hex.DecodeString(values["root_hash"]); err != nil || len(p.RootHash) != sha256.Size {
		return p, fmt.Errorf("root_hash %q: expected %d hexadecimal digits, which SHA-256 has", values["root_hash"], 2*sha256.Size)
	}
	// The kernel takes 256 bytes at most (Linux, drivers/md/dm-verity-target.c).
	if p.Salt, err = hex.DecodeString(values["salt"]); err != nil || len(p.Salt) == 0 || len(p.Salt) > 256 {
		return p, fmt.Errorf("salt %q: expected 1 to 256 bytes in hexadecimal", values["salt"])
	}
	for key, n := range map[string]*int64{"data_blocks": &p.DataBlocks, "data_block_size": &p.DataBlockSize, "hash_block_size": &p.HashBlockSize} {
		// A single block would have no tree.
		if *n, err = strconv.ParseInt(values[key], 10, 64); err != nil || *n < 2 || *n > 1<<32 {
			return p, fmt.Errorf("%s %q: expected a number from 2 to 2^32", key, values[key])
		}
	}
	for _, size := range []int64{p.DataBlockSize, p.HashBlockSize} {
		if size < 512 || size > 64<<10 || bits.OnesCount64(uint64(size)) != 1 {
			return p, fmt.Errorf("a block size of %d: expected a power of two from 512 to 65536", size)
		}
	}
	return p, nil
}

// String is what Parse reads.
func (p Params) String() string {
	return fmt.Sprintf("root_hash=%x,salt=%x,data_blocks=%d,data_block_size=%d,hash_block_size=%d", p.RootHash, p.Salt, p.DataBlocks, p.DataBlockSize, p.HashBlockSize)
}

// DataSize is how many bytes are protected.
func (p Params) DataSize() int64 { return p.DataBlocks * p.DataBlockSize }

// TreeSize is how many bytes the hashes of the data take.
func (p Params) TreeSize() (size int64) {
	for _, n := range p.levels() {
		size += n * p.HashBlockSize
	}
	return size
}

// levels are the numbers of blocks of hashes, the lowest level first. The highest
// has one block and comes first on the device (Linux,
// Documentation/admin-guide/device-mapper/verity.rst).
func (p Params) levels() (levels []int64) {
	each := p.HashBlockSize / sha256.Size
	for n := p.DataBlocks; n > 1; {
		n = (n + each - 1) / each
		levels = append(levels, n)
	}
	return levels
}

// Begins tells whether a hash device begins with the block that the root hash is
// of. It is a quick answer to whose tree it is, and no check of it.
func (p Params) Begins(hashes io.ReaderAt) (bool, error) {
	top := make([]byte, p.HashBlockSize)
	if _, err := hashes.ReadAt(top, 0); err != nil {
		return false, err
	}
	return bytes.Equal(p.digest(top), p.RootHash), nil
}

func (p Params) digest(block []byte) []byte {
	h := sha256.New()
	h.Write(p.Salt)
	h.Write(block)
	return h.Sum(nil)
}

// ErrMismatch is data or hashes that are not what the root hash stands for.
var ErrMismatch = errors.New("the hashes of dm-verity do not match: it was changed, or damaged")

// Check reads all data and its hashes.
func (p Params) Check(ctx context.Context, data, hashes io.ReaderAt) error {
	made, tree, err := p.tree(ctx, data)
	if err != nil {
		return err
	}
	have := make([]byte, len(tree))
	if _, err := hashes.ReadAt(have, 0); err != nil {
		return fmt.Errorf("read the hashes: %w", err)
	}
	if !bytes.Equal(made.RootHash, p.RootHash) || !bytes.Equal(have, tree) {
		return ErrMismatch
	}
	return nil
}

// Make writes the hashes of the data, with the salt and the sizes of p, and
// returns p with their root hash. The same data gives the same hashes.
func (p Params) Make(ctx context.Context, data io.ReaderAt, hashes io.WriterAt) (Params, error) {
	made, tree, err := p.tree(ctx, data)
	if err == nil {
		_, err = hashes.WriteAt(tree, 0)
	}
	return made, err
}

// tree computes the hashes, in memory: they are less than a hundredth of the data.
func (p Params) tree(ctx context.Context, data io.ReaderAt) (Params, []byte, error) {
	tree := make([]byte, p.TreeSize())
	end := int64(len(tree))
	source, size, blocks := data, p.DataBlockSize, p.DataBlocks
	for _, n := range p.levels() {
		level := tree[end-n*p.HashBlockSize : end]
		if err := p.level(ctx, level, source, size, blocks); err != nil {
			return p, nil, err
		}
		end -= int64(len(level))
		source, size, blocks = bytes.NewReader(level), p.HashBlockSize, n
	}
	p.RootHash = p.digest(tree[:p.HashBlockSize])
	return p, tree, nil
}

// level puts the hashes of blocks one after the other; each block of hashes is
// filled, as the number of hashes in it is a power of two.
func (p Params) level(ctx context.Context, level []byte, source io.ReaderAt, size, blocks int64) error {
	const chunk = 1 << 20
	buf := make([]byte, max(chunk, size))
	zeros := make([]byte, size)
	empty := p.digest(zeros) // most of an image
	for at := int64(0); at < blocks; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(int64(len(buf))/size, blocks-at)
		part := buf[:n*size]
		if _, err := source.ReadAt(part, at*size); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("it ends before %d blocks of %d bytes: %w", blocks, size, io.ErrUnexpectedEOF)
			}
			return fmt.Errorf("read what is to be hashed: %w", err)
		}
		for ; len(part) > 0; part, at = part[size:], at+1 {
			digest := empty
			if !bytes.Equal(part[:size], zeros) {
				digest = p.digest(part[:size])
			}
			copy(level[at*sha256.Size:], digest)
		}
	}
	return nil
}
