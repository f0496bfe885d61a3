// Package cpio writes and reads archives in the "newc" format, which the kernel
// unpacks into its first root (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). It works on
// streams: no file is ever whole in memory. What an archive is for, it does not
// know.
package cpio

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// File types in a mode, as in <linux/stat.h>.
const (
	TypeMask    = 0o170000
	TypeChar    = 0o020000
	TypeDir     = 0o040000
	TypeRegular = 0o100000
	TypeLink    = 0o120000
)

const (
	magic      = "070701"
	magicCRC   = "070702"
	headerSize = 110
	trailer    = "TRAILER!!!"
	maxName    = 4096 // Linux, PATH_MAX
)

// Writer writes an archive. The same calls write the same bytes: owners are
// root, times are 0 and inodes are counted. Directories that files need are
// added by themselves, and the first entry of a name counts.
type Writer struct {
	w     *bufio.Writer
	seen  map[string]bool
	inode int
	err   error // the first; nothing is written after it
}

// NewWriter begins an archive. Directories that exist are not to be added, for
// what is there may be a link to a directory, which a directory would replace.
func NewWriter(w io.Writer, exist ...string) *Writer {
	a := &Writer{w: bufio.NewWriterSize(w, 1<<20), seen: map[string]bool{"": true, ".": true}}
	for _, name := range exist {
		a.seen[Clean(name)] = true
	}
	return a
}

// Clean is a name as it stands in an archive: relative to the root, and never
// above it.
func Clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// Dir adds a directory.
func (a *Writer) Dir(name string) { a.entry(name, TypeDir|0o755, 0, 0, 0, nil) }

// Link adds a symbolic link.
func (a *Writer) Link(name, target string) {
	a.entry(name, TypeLink|0o777, 0, 0, int64(len(target)), strings.NewReader(target))
}

// Char adds a character device.
func (a *Writer) Char(name string, major, minor int) {
	a.entry(name, TypeChar|0o600, major, minor, 0, nil)
}

// Bytes adds a file with the given content.
func (a *Writer) Bytes(name string, perm fs.FileMode, data string) {
	a.entry(name, TypeRegular|int(perm.Perm()), 0, 0, int64(len(data)), strings.NewReader(data))
}

// File adds a file of this machine, or what a link there leads to.
func (a *Writer) File(name, source string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(source)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	if !st.Mode().IsRegular() {
		a.err = fmt.Errorf("%s: expected a regular file", source)
		return
	}
	a.entry(name, TypeRegular|int(st.Mode().Perm()), 0, 0, st.Size(), f)
}

// Err is the first error so far.
func (a *Writer) Err() error { return a.err }

func (a *Writer) entry(name string, mode, major, minor int, size int64, content io.Reader) {
	name = Clean(name)
	if a.err != nil || a.seen[name] {
		return
	}
	if parent := path.Dir(name); !a.seen[parent] {
		a.Dir(parent)
	}
	a.seen[name] = true
	a.record(name, mode, major, minor, size, content)
}

func (a *Writer) record(name string, mode, major, minor int, size int64, content io.Reader) {
	if a.err != nil {
		return
	}
	if size >= 1<<32 {
		a.err = fmt.Errorf("%s: %d bytes: the format holds less than 4 GiB", name, size)
		return
	}
	a.inode++
	header := fmt.Sprintf("%s%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		magic, a.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	if _, a.err = a.w.WriteString(header + padding(int64(len(header)))); a.err != nil || content == nil {
		return
	}
	n, err := io.Copy(a.w, content)
	if err == nil && n != size {
		err = fmt.Errorf("%s: %d bytes, expected %d: it changed meanwhile", name, n, size)
	}
	if err == nil {
		_, err = a.w.WriteString(padding(n))
	}
	a.err = err
}

// Close ends the archive and returns the first error of all. It does not close
// the writer below.
func (a *Writer) Close() error {
	a.record(trailer, 0, 0, 0, 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

func padding(n int64) string { return "\x00\x00\x00"[:-n&3] }

// Replace lets the next entry of a name be written although it exists, as a file
// that takes the place of one in an earlier archive does.
func (a *Writer) Replace(name string) { delete(a.seen, Clean(name)) }
