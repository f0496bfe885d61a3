// Package rootimage reads and changes the root of a guest that is a raw disk
// image: one with a partition table, as Kata's are, or a bare file system. It
// knows ext4, through the tools of e2fsprogs: it mounts nothing and needs no
// root.
package rootimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Image is a disk image with an ext4 file system that can be changed.
type Image struct {
	File   string
	Offset int64 // of the file system
}

// ErrNoImage is a file without a partition table and without a file system that
// this package knows.
var ErrNoImage = errors.New("no disk image")

const (
	sector      = 512
	extMagicAt  = 1024 + 56 // in the file system (Linux, Documentation/filesystems/ext4/super.rst)
	extMagic    = 0xEF53
	erofsAt     = 1024
	erofsMagic  = 0xE0F5E1E2 // Linux, fs/erofs/erofs_fs.h
	verityMagic = "verity\x00\x00"
)

// Open finds the file system in an image. It refuses one that cannot be changed,
// or not without breaking dm-verity; with ErrNoImage it says that the file is
// something else.
func Open(name string) (*Image, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	offset, err := find(f)
	if err != nil {
		return nil, fmt.Errorf("read the image %s: %w", name, err)
	}
	if strings.Contains(name, "?") {
		return nil, fmt.Errorf("read the image %s: e2fsprogs takes what follows a \"?\" for an option: give it another name", name)
	}
	return &Image{name, offset}, nil
}

func find(r io.ReaderAt) (int64, error) {
	starts := []int64{0}
	parts, err := partitions(r)
	if err != nil {
		return 0, err
	}
	starts = append(starts, parts...)
	found := int64(-1)
	for _, start := range starts {
		switch kind, err := identify(r, start); {
		case err != nil:
			return 0, err
		case kind == "ext4" && found < 0:
			found = start
		case kind == "verity":
			return 0, errVerity
		case kind == "erofs":
			return 0, errors.New("its file system is erofs, which cannot be changed: use the image of Kata that has ext4, or an initrd")
		}
	}
	if found < 0 {
		if len(parts) > 0 {
			return 0, fmt.Errorf("none of its %d partitions is ext4: expected Kata's image with an ext4 root", len(parts))
		}
		return 0, ErrNoImage
	}
	if end, err := extEnd(r, found); err != nil {
		return 0, err
	} else if kind, err := identify(r, end); err != nil || kind == "verity" {
		return 0, errors.Join(err, errVerity)
	}
	return found, nil
}

var errVerity = errors.New("dm-verity protects its root: a change would break the hash that the runtime's configuration has: use an image or an initrd of Kata without dm-verity, and make the hash afterwards")

// identify tells what begins at an offset: a file system, hashes of dm-verity,
// or "".
func identify(r io.ReaderAt, at int64) (string, error) {
	var b [2048]byte
	n, err := r.ReadAt(b[:], at)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch {
	case n >= len(verityMagic) && string(b[:len(verityMagic)]) == verityMagic:
		return "verity", nil
	case n < len(b):
		return "", nil
	case binary.LittleEndian.Uint16(b[extMagicAt:]) == extMagic:
		return "ext4", nil
	case binary.LittleEndian.Uint32(b[erofsAt:]) == erofsMagic:
		return "erofs", nil
	}
	return "", nil
}

// extEnd is where an ext4 file system ends; the superblock says of how many
// blocks it has.
func extEnd(r io.ReaderAt, at int64) (int64, error) {
	var b [1024]byte
	if _, err := r.ReadAt(b[:], at+1024); err != nil {
		return 0, err
	}
	blocks := int64(binary.LittleEndian.Uint32(b[4:]))
	shift := binary.LittleEndian.Uint32(b[24:])
	if shift > 6 {
		return 0, fmt.Errorf("its ext4 has blocks of 2^%d KiB: expected at most 64 KiB", shift)
	}
	return at + blocks*(1024<<shift), nil
}

// partitions are the offsets of an image's partitions, by its MBR or GPT.
func partitions(r io.ReaderAt) ([]int64, error) {
	var mbr [sector]byte
	if _, err := r.ReadAt(mbr[:], 0); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return nil, nil
	}
	var starts []int64
	for i := range 4 {
		entry := mbr[446+16*i:][:16]
		switch kind, start := entry[4], binary.LittleEndian.Uint32(entry[8:]); {
		case kind == 0xee:
			return gpt(r)
		case kind != 0 && start > 0:
			starts = append(starts, int64(start)*sector)
		}
	}
	return starts, nil
}

// gpt reads a GUID partition table (UEFI specification, chapter 5).
func gpt(r io.ReaderAt) ([]int64, error) {
	var head [92]byte
	if _, err := r.ReadAt(head[:], sector); err != nil || !bytes.HasPrefix(head[:], []byte("EFI PART")) {
		return nil, fmt.Errorf("its partition table says that it is a GPT, and there is none: %w", err)
	}
	at := int64(binary.LittleEndian.Uint64(head[72:])) * sector
	count, size := binary.LittleEndian.Uint32(head[80:]), binary.LittleEndian.Uint32(head[84:])
	if count > 1024 || size < 128 || size > 4096 {
		return nil, fmt.Errorf("its partition table has %d entries of %d bytes: expected at most 1024 of 128", count, size)
	}
	var starts []int64
	for i := range int64(count) {
		var entry [48]byte
		if _, err := r.ReadAt(entry[:], at+i*int64(size)); err != nil {
			return nil, fmt.Errorf("read its partition table: %w", err)
		}
		if !bytes.Equal(entry[:16], make([]byte, 16)) {
			starts = append(starts, int64(binary.LittleEndian.Uint64(entry[32:]))*sector)
		}
	}
	return starts, nil
}
