// Package compression opens streams that are perhaps compressed, telling by
// their first bytes how: gzip, xz, zstd or not at all, which is what kernels,
// their modules and their first roots come in. It knows other formats by name
// only, to refuse them.
package compression

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// Format is how a stream is compressed.
type Format string

// The formats that can be read.
const (
	None Format = "none"
	Gzip Format = "gzip"
	XZ   Format = "xz"
	Zstd Format = "zstd"
)

// maxWindow bounds the memory that a stream can ask for: "xz -9" takes 64 MiB,
// "zstd --ultra --long" 128 MiB.
const maxWindow = 128 << 20

// magics are the first bytes of formats (Linux, lib/decompress.c, and for xz and
// zstd the formats' own descriptions).
var magics = []struct {
	magic  string
	format Format
	known  bool
}{
	{"\x1f\x8b", Gzip, true},
	{"\xfd7zXZ\x00", XZ, true},
	{"\x28\xb5\x2f\xfd", Zstd, true},
	{"BZh", "bzip2", false},
	{"\x5d\x00\x00", "lzma", false},
	{"\x89LZO\x00", "lzo", false},
	{"\x02\x21\x4c\x18", "lz4", false},
	{"\x04\x22\x4d\x18", "lz4", false},
}

// longest is the number of bytes that Detect wants to see.
const longest = 6

// Detect tells by its first bytes how a stream is compressed. It refuses a
// format that this package cannot read; everything that is no known format is
// None.
func Detect(head []byte) (Format, error) {
	for _, m := range magics {
		if !bytes.HasPrefix(head, []byte(m.magic)) {
			continue
		}
		if !m.known {
			return "", fmt.Errorf("it is compressed with %s: expected gzip, xz, zstd or no compression", m.format)
		}
		return m.format, nil
	}
	return None, nil
}

// NewReader returns what a stream holds without compression, and how it was
// compressed. Of gzip it reads one member and leaves r right after it; of xz and
// zstd it reads all that there is, and may take more from r than it gives.
func NewReader(r *bufio.Reader) (io.ReadCloser, Format, error) {
	head, err := r.Peek(longest)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	format, err := Detect(head)
	if err != nil {
		return nil, "", err
	}
	switch format {
	case Gzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, format, fmt.Errorf("unpack gzip: %w", err)
		}
		z.Multistream(false)
		return named{z, format}, format, nil
	case XZ:
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return nil, format, fmt.Errorf("unpack xz: %w", err)
		}
		return named{io.NopCloser(z), format}, format, nil
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, format, fmt.Errorf("unpack zstd: %w", err)
		}
		return named{z.IOReadCloser(), format}, format, nil
	}
	return io.NopCloser(r), None, nil
}

// named puts the name of the format to its errors.
type named struct {
	io.ReadCloser
	format Format
}

func (n named) Read(b []byte) (int, error) {
	got, err := n.ReadCloser.Read(b)
	if errors.Is(err, xz.ErrBuf) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("unpack %s: %w", n.format, err)
	}
	return got, err
}

// ReadFile returns what a file holds without compression. It refuses more than
// most bytes.
func ReadFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, _, err := NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case int64(len(b)) > most:
		return nil, fmt.Errorf("read %s: more than %d bytes in it", name, most)
	}
	return b, nil
}
