// Package initrd reads the archive that a kernel unpacks into its first root:
// one or several cpio archives, each perhaps compressed, laid one after the
// other (Linux, init/initramfs.c). It tells what is in it and whether it is
// whole; nothing of it is ever written to this machine.
package initrd

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/compression"
	"github.com/kata-qat/kata-qat/internal/cpio"
)

// Entry is a file of the root.
type Entry struct {
	Mode   int    // with the type, as package cpio has it
	Target string // of a link
}

// Root is what an initrd unpacks to.
type Root struct {
	Entries map[string]Entry // by path, relative to the root
	// Formats are those of its parts, in their order.
	Formats []compression.Format
	Size    int64 // of the file
	SHA256  string
}

// ReadFile reads an initrd. It refuses one that is not whole, one in a format
// that it does not know, and one whose names lead out of its root.
func ReadFile(ctx context.Context, name string) (*Root, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the initrd: %w", err)
	}
	defer f.Close()
	root, err := Read(ctx, f)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it is cut short: get it again", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the initrd %s: %w", name, err)
	}
	return root, nil
}

// Read reads an initrd from a stream.
func Read(ctx context.Context, r io.Reader) (*Root, error) {
	hash := sha256.New()
	count := &counter{ctx: ctx, r: io.TeeReader(r, hash)}
	in := bufio.NewReaderSize(count, 1<<16)
	root := &Root{Entries: map[string]Entry{}}
	for {
		if err := skipZeros(in); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if err := root.part(in, count.n-int64(in.Buffered())); err != nil {
			return nil, err
		}
	}
	if len(root.Entries) == 0 {
		return nil, errors.New("there is nothing in it: expected cpio archives")
	}
	root.Size, root.SHA256 = count.n, hex.EncodeToString(hash.Sum(nil))
	return root, nil
}

// part reads one archive, or one compressed stream of archives.
func (root *Root) part(in *bufio.Reader, offset int64) error {
	r, format, err := compression.NewReader(in)
	if err != nil {
		return fmt.Errorf("at byte %d: %w", offset, err)
	}
	defer r.Close()
	root.Formats = append(root.Formats, format)
	if format == compression.None {
		if head, _ := in.Peek(6); !cpio.IsArchive(head) {
			return fmt.Errorf("at byte %d it goes on with % x: expected a cpio archive (newc), plain or compressed with gzip, xz or zstd", offset, head)
		}
		if offset%4 != 0 {
			return fmt.Errorf("an archive that is not compressed begins at byte %d: the kernel expects a multiple of 4", offset)
		}
		return root.archive(in)
	}
	plain := bufio.NewReaderSize(r, 1<<16)
	for {
		err := skipZeros(plain)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = root.archive(plain)
		}
		if err != nil {
			return fmt.Errorf("in the part at byte %d: %w", offset, err)
		}
	}
}

func (root *Root) archive(r *bufio.Reader) error {
	a := cpio.NewReader(r)
	for {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(h.Name, "/"), "..") {
			return fmt.Errorf("it has an entry %q: expected no name that leads out of the root", h.Name)
		}
		e := Entry{Mode: h.Mode}
		if h.Type() == cpio.TypeLink {
			if h.Size >= maxTarget {
				return fmt.Errorf("link %q leads to a name of %d bytes: expected less than %d", h.Name, h.Size, maxTarget)
			}
			target, err := io.ReadAll(a)
			if err != nil {
				return err
			}
			e.Target = string(target)
		}
		if name := cpio.Clean(h.Name); name != "" {
			root.Entries[name] = e
		}
	}
}

const maxTarget = 4096 // Linux, PATH_MAX

func skipZeros(r *bufio.Reader) error {
	for {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return r.UnreadByte()
		}
	}
}

// counter counts what is read, and stops when nobody waits for it any more.
type counter struct {
	ctx context.Context
	r   io.Reader
	n   int64
}

func (c *counter) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// maxLinks is how many links a path may lead through (Linux, MAXSYMLINKS).
const maxLinks = 40

// Resolve returns the path that a name really has once the links to directories
// on the way are followed, but not one at its end: where /lib is a link to
// usr/lib, "lib/modules" is "usr/lib/modules". What is written under the name
// that it returns goes where the name meant and replaces no link. It never leads
// out of the root.
func (root *Root) Resolve(name string) (string, error) { return root.resolve(name, false) }

// Lookup returns the entry that a name leads to, links followed, and its path.
// An entry that is not there is fs.ErrNotExist.
func (root *Root) Lookup(name string) (string, Entry, error) {
	p, err := root.resolve(name, true)
	if err != nil {
		return "", Entry{}, err
	}
	e, ok := root.Entries[p]
	if !ok {
		return "", Entry{}, &fs.PathError{Op: "look up", Path: name, Err: fs.ErrNotExist}
	}
	return p, e, nil
}

func (root *Root) resolve(name string, last bool) (string, error) {
	left := strings.Split(cpio.Clean(name), "/")
	at, links := "", 0
	for len(left) > 0 {
		part := left[0]
		left = left[1:]
		if part == ".." {
			at = cpio.Clean(path.Dir(at))
			continue
		}
		next := cpio.Clean(path.Join(at, part))
		e, ok := root.Entries[next]
		if !ok || e.Mode&cpio.TypeMask != cpio.TypeLink || len(left) == 0 && !last {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("look up %s: more than %d links on the way", name, maxLinks)
		}
		if path.IsAbs(e.Target) {
			at = ""
		}
		var parts []string
		for p := range strings.SplitSeq(e.Target, "/") {
			if p != "" && p != "." {
				parts = append(parts, p)
			}
		}
		left = append(parts, left...)
	}
	return at, nil
}

// Directories are the names of all directories of the root, and of everything
// else that it has, which nothing may replace by a directory.
func (root *Root) Directories() []string {
	var all []string
	for name := range root.Entries {
		all = append(all, name)
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			all = append(all, dir)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
