package lab

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// archive writes a cpio archive in the "newc" format, which the kernel unpacks
// into its first root (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
// Directories that files need are added by themselves.
type archive struct {
	w     *bufio.Writer
	seen  map[string]bool
	inode int
	err   error // the first; nothing is written after it
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), seen: map[string]bool{"": true, ".": true}}
}

// File types in a mode, as in <linux/stat.h>.
const (
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeLink    = 0o120000
)

func (a *archive) dir(name string) { a.entry(name, typeDir|0o755, 0, 0, 0, nil) }

func (a *archive) link(name, target string) {
	a.entry(name, typeLink|0o777, 0, 0, int64(len(target)), strings.NewReader(target))
}

func (a *archive) char(name string, major, minor int) {
	a.entry(name, typeChar|0o600, major, minor, 0, nil)
}

func (a *archive) bytes(name string, perm fs.FileMode, data string) {
	a.entry(name, typeRegular|int(perm.Perm()), 0, 0, int64(len(data)), strings.NewReader(data))
}

// file adds a file of this machine, or what a link there leads to.
func (a *archive) file(name, source string) {
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
	a.entry(name, typeRegular|int(st.Mode().Perm()), 0, 0, st.Size(), f)
}

// entry adds one entry; the first of a name counts.
func (a *archive) entry(name string, mode, major, minor int, size int64, content io.Reader) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if a.err != nil || a.seen[name] {
		return
	}
	if parent := path.Dir(name); !a.seen[parent] {
		a.dir(parent)
	}
	a.seen[name] = true
	a.record(name, mode, major, minor, size, content)
}

func (a *archive) record(name string, mode, major, minor int, size int64, content io.Reader) {
	if a.err != nil {
		return
	}
	if size >= 1<<32 {
		a.err = fmt.Errorf("%s: %d bytes: the format holds less than 4 GiB", name, size)
		return
	}
	a.inode++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
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

// close ends the archive and returns the first error of all.
func (a *archive) close() error {
	a.record("TRAILER!!!", 0, 0, 0, 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

func padding(n int64) string { return "\x00\x00\x00"[:-n&3] }
