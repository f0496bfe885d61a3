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
	File string
	Area // of the file system
	// Hashes are the partition behind it, if there is something in it that is no
	// file system: where Kata has dm-verity's hashes (kata-containers 4.1,
	// tools/osbuilder/image-builder/image_builder.sh, setup_verity). What is in it
	// does not say that it is such; see Protection.
	Hashes Area
}

// Area is a part of an image; the zero value is none.
type Area struct{ Offset, Size int64 }

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

// Open finds the file system in an image. It refuses one that cannot be changed, or
// that is protected in another way than Kata's images are; with ErrNoImage it says
// that the file is something else.
func Open(name string) (*Image, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	image, err := find(f)
	if err != nil {
		return nil, fmt.Errorf("read the image %s: %w", name, err)
	}
	if strings.Contains(name, "?") {
		return nil, fmt.Errorf("read the image %s: e2fsprogs takes what follows a \"?\" for an option: give it another name", name)
	}
	image.File = name
	return image, nil
}

func find(r io.ReaderAt) (*Image, error) {
	parts, err := partitions(r)
	if err != nil {
		return nil, err
	}
	i := &Image{}
	for _, part := range append([]Area{{}}, parts...) {
		kind, err := identify(r, part.Offset)
		if err != nil {
			return nil, err
		}
		switch {
		case kind == "ext4" && i.Size == 0:
			end, err := extEnd(r, part.Offset)
			if err != nil {
				return nil, err
			}
			if part.Size > 0 && end > part.Offset+part.Size {
				return nil, fmt.Errorf("its ext4 at byte %d has %d bytes, and its partition %d: the image is damaged", part.Offset, end-part.Offset, part.Size)
			}
			i.Area = Area{part.Offset, end - part.Offset}
		case kind == "verity":
			return nil, errVerity
		case kind == "erofs":
			return nil, errors.New("its file system is erofs, which cannot be changed: use the image of Kata that has ext4, or an initrd")
		}
	}
	if i.Size == 0 {
		if len(parts) > 0 {
			return nil, fmt.Errorf("none of its %d partitions is ext4: expected Kata's image with an ext4 root", len(parts))
		}
		return nil, ErrNoImage
	}
	if kind, err := identify(r, i.Offset+i.Size); err != nil || kind == "verity" {
		return nil, errors.Join(err, errVerity)
	}
	i.Hashes, err = hashes(r, i.Area, parts)
	return i, err
}

// hashes are the second of two partitions, when the first has the file system.
func hashes(r io.ReaderAt, system Area, parts []Area) (Area, error) {
	if len(parts) != 2 || parts[0].Offset != system.Offset || parts[1].Offset < system.Offset {
		return Area{}, nil
	}
	kind, err := identify(r, parts[1].Offset)
	if err != nil || kind != "" {
		return Area{}, err
	}
	empty, err := isEmpty(io.NewSectionReader(r, parts[1].Offset, parts[1].Size))
	if err != nil || empty {
		return Area{}, err
	}
	return parts[1], nil
}

// isEmpty tells whether there are only zeros to read.
func isEmpty(r io.Reader) (bool, error) {
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

var errVerity = errors.New("dm-verity protects its root in another way than Kata's images have it (hashes in the second partition, without a superblock): its hashes cannot be made again: use an image or an initrd of Kata's")

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

// partitions are those of an image, by its MBR or GPT.
func partitions(r io.ReaderAt) ([]Area, error) {
	var mbr [sector]byte
	if _, err := r.ReadAt(mbr[:], 0); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return nil, nil
	}
	var parts []Area
	for i := range 4 {
		entry := mbr[446+16*i:][:16]
		start, size := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
		switch kind := entry[4]; {
		case kind == 0xee:
			return gpt(r)
		case kind != 0 && start > 0:
			parts = append(parts, Area{int64(start) * sector, int64(size) * sector})
		}
	}
	return parts, nil
}

// gpt reads a GUID partition table (UEFI specification, chapter 5).
func gpt(r io.ReaderAt) ([]Area, error) {
	var head [92]byte
	if _, err := r.ReadAt(head[:], sector); err != nil || !bytes.HasPrefix(head[:], []byte("EFI PART")) {
		return nil, fmt.Errorf("its partition table says that it is a GPT, and there is none: %w", err)
	}
	at := int64(binary.LittleEndian.Uint64(head[72:])) * sector
	count, size := binary.LittleEndian.Uint32(head[80:]), binary.LittleEndian.Uint32(head[84:])
	if count > 1024 || size < 128 || size > 4096 {
		return nil, fmt.Errorf("its partition table has %d entries of %d bytes: expected at most 1024 of 128", count, size)
	}
	var parts []Area
	for i := range int64(count) {
		var entry [48]byte
		if _, err := r.ReadAt(entry[:], at+i*int64(size)); err != nil {
			return nil, fmt.Errorf("read its partition table: %w", err)
		}
		if !bytes.Equal(entry[:16], make([]byte, 16)) {
			first, last := int64(binary.LittleEndian.Uint64(entry[32:])), int64(binary.LittleEndian.Uint64(entry[40:]))
			parts = append(parts, Area{first * sector, (last + 1 - first) * sector})
		}
	}
	return parts, nil
}
