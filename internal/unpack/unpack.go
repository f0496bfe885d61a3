// Package unpack unpacks tar archives that came from elsewhere into a directory
// of this machine, and nothing outside of it. Whether an archive is the one that
// is meant, a digest says before.
package unpack

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/kata-qat/kata-qat/internal/compression"
)

// Limits of what an archive may unpack to: a kernel's sources are 1.5 GiB in
// 90000 files.
const (
	maxBytes   = 8 << 30
	maxEntries = 500_000
)

// Tar unpacks an archive, perhaps compressed by gzip, xz or zstd, into a
// directory that is there. It refuses names and links that lead out of it, and
// whatever is neither a file nor a directory nor a link; what it unpacked before
// it came to that stays.
func Tar(ctx context.Context, archive, dir string) error {
	if err := unpackTar(ctx, archive, dir); err != nil {
		return fmt.Errorf("unpack %s: %w", archive, err)
	}
	return nil
}

func unpackTar(ctx context.Context, archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, _, err := compression.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return err
	}
	defer plain.Close()
	// The kernel resolves each name below this directory, and nowhere else.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, dirs: map[string]bool{".": true}, left: maxBytes}
	for r := tar.NewReader(plain); ; u.entries++ {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF) && u.entries == 0:
			return errors.New("it is empty")
		case errors.Is(err, io.EOF):
			_, err := io.Copy(io.Discard, plain) // behind which is the checksum
			return err
		case err == nil:
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

type unpacker struct {
	root    *os.Root
	dirs    map[string]bool // that are there
	entries int
	left    int64
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.entries >= maxEntries {
		return fmt.Errorf("the archive has more than %d entries", maxEntries)
	}
	name := path.Clean(h.Name)
	if name == "." || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if !filepath.IsLocal(name) {
		return errors.New("its name leads out of the archive")
	}
	if err := u.dir(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(name)
	case tar.TypeReg:
		return u.file(name, h, content)
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
			return fmt.Errorf("it is a link to %q, which leads out of the archive", h.Linkname)
		}
		return u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if !filepath.IsLocal(path.Clean(h.Linkname)) {
			return fmt.Errorf("it is a link to %q, which leads out of the archive", h.Linkname)
		}
		return u.root.Link(path.Clean(h.Linkname), name)
	}
	return fmt.Errorf("it is of type %q: expected files, directories and links only", h.Typeflag)
}

func (u *unpacker) dir(name string) error {
	if u.dirs[name] {
		return nil
	}
	u.dirs[name] = true
	return u.root.MkdirAll(name, 0o755)
}

func (u *unpacker) file(name string, h *tar.Header, content io.Reader) error {
	if u.left -= h.Size; h.Size < 0 || u.left < 0 {
		return fmt.Errorf("the archive unpacks to more than %d MiB", maxBytes>>20)
	}
	// O_EXCL: nothing is written through what an earlier entry made.
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o644|h.Mode&0o111))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	// make goes by the times of files.
	return errors.Join(err, f.Close(), u.root.Chtimes(name, h.ModTime, h.ModTime))
}
