package cpio

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Header is one entry of an archive.
type Header struct {
	Name string // as in the archive; Clean makes it relative to the root
	Mode int    // with the type
	Size int64
}

// Type is the type in the mode, such as TypeDir.
func (h Header) Type() int { return h.Mode & TypeMask }

// IsArchive tells whether these are the first bytes of an archive in a format
// that Reader reads.
func IsArchive(head []byte) bool {
	return len(head) >= len(magic) && (string(head[:len(magic)]) == magic || string(head[:len(magic)]) == magicCRC)
}

// Reader reads one archive from a stream, and leaves the stream right behind it.
type Reader struct {
	r    io.Reader
	left int64 // of the content of the current entry
	pad  int64 // after it
	done bool
}

// NewReader begins to read an archive.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next goes on to the next entry, past what was not read of the content of the
// last. It returns io.EOF after the archive's trailer, and io.ErrUnexpectedEOF
// for one that ends before it.
func (a *Reader) Next() (Header, error) {
	if a.done {
		return Header{}, io.EOF
	}
	if _, err := io.CopyN(io.Discard, a.r, a.left+a.pad); err != nil {
		return Header{}, whole(err)
	}
	a.left, a.pad = 0, 0
	var raw [headerSize]byte
	if _, err := io.ReadFull(a.r, raw[:]); err != nil {
		return Header{}, whole(err)
	}
	if !IsArchive(raw[:]) {
		return Header{}, fmt.Errorf("an entry begins with %q: expected a cpio archive in the newc format", raw[:len(magic)])
	}
	field := func(n int) int64 {
		v, err := strconv.ParseUint(string(raw[6+8*n:14+8*n]), 16, 32)
		if err != nil {
			return -1
		}
		return int64(v)
	}
	mode, size, nameSize := field(1), field(6), field(11)
	if mode < 0 || size < 0 || nameSize < 2 || nameSize > maxName {
		return Header{}, fmt.Errorf("an entry has the header %q: expected hexadecimal numbers and a name of 1 to %d bytes", raw, maxName-1)
	}
	name := make([]byte, nameSize+(-(headerSize+nameSize)&3))
	if _, err := io.ReadFull(a.r, name); err != nil {
		return Header{}, whole(err)
	}
	h := Header{Name: strings.TrimRight(string(name[:nameSize]), "\x00"), Mode: int(mode), Size: size}
	a.left, a.pad = size, -size&3
	if h.Name == trailer {
		a.done = true
		return Header{}, io.EOF
	}
	return h, nil
}

// Read reads the content of the current entry.
func (a *Reader) Read(b []byte) (int, error) {
	if a.left == 0 {
		return 0, io.EOF
	}
	n, err := a.r.Read(b[:min(int64(len(b)), a.left)])
	a.left -= int64(n)
	if a.left > 0 || !errors.Is(err, io.EOF) {
		err = whole(err)
	}
	return n, err
}

// whole is the error of a stream that was to go on.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
