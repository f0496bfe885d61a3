package host

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of what an archive may unpack to: QAT's releases are a few megabytes.
const (
	maxArchive  = 1 << 30
	maxUnpacked = 4 << 30
	maxEntries  = 200_000
)

// fetchArchive copies an archive to where nobody else can change it, and refuses
// one that has not the digest.
func fetchArchive(from, to, digest string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxArchive {
		return errors.Join(err, fmt.Errorf("%s: expected a file of at most %d MiB", from, maxArchive>>20))
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, hash), io.LimitReader(in, maxArchive))
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); !strings.EqualFold(got, digest) {
		return errors.Join(fmt.Errorf("%s has the SHA-256 %s, expected %s: it is not the archive that is meant, or is damaged", from, got, digest), os.Remove(to))
	}
	return nil
}

// unpack unpacks an archive below a directory that is there. It refuses, before
// it writes them, entries that would lie outside of it or lead there, and those
// that are no plain files, directories or links.
func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := decompress(bufio.NewReader(f))
	if err != nil {
		return fmt.Errorf("unpack %s: %w", archive, err)
	}
	// The kernel resolves each name below this directory, and nowhere else.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, left: maxUnpacked}
	for r := tar.NewReader(plain); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = u.entry(header, r)
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", archive, err)
		}
	}
	if u.entries == 0 {
		return fmt.Errorf("unpack %s: it is empty", archive)
	}
	return nil
}

func decompress(r *bufio.Reader) (io.Reader, error) {
	head, err := r.Peek(6)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(r), nil
	case bytes.Equal(head, []byte("\xfd7zXZ\x00")), bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, errors.New("it is compressed with xz or zstd: expected .tar.gz, .tar.bz2 or .tar")
	}
	return r, nil
}

type unpacker struct {
	root    *os.Root
	entries int
	left    int64
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if u.entries++; u.entries > maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	name := path.Clean(h.Name)
	if name == "." || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if !filepath.IsLocal(name) || strings.Contains(h.Name, "\x00") {
		return fmt.Errorf("entry %q: expected a name inside of the archive", h.Name)
	}
	if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		err = u.file(name, h, content)
	case tar.TypeSymlink:
		target := path.Join(path.Dir(name), h.Linkname)
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(target) {
			return fmt.Errorf("entry %q: a link to %q, out of the archive", h.Name, h.Linkname)
		}
		err = u.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if !filepath.IsLocal(path.Clean(h.Linkname)) {
			return fmt.Errorf("entry %q: a link to %q, out of the archive", h.Name, h.Linkname)
		}
		err = u.root.Link(path.Clean(h.Linkname), name)
	default:
		return fmt.Errorf("entry %q: of type %q: expected files, directories and links only", h.Name, h.Typeflag)
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	return nil
}

func (u *unpacker) file(name string, h *tar.Header, content io.Reader) error {
	if u.left -= h.Size; h.Size < 0 || u.left < 0 {
		return fmt.Errorf("more than %d MiB in all", maxUnpacked>>20)
	}
	// O_EXCL: nothing is written through what an earlier entry made.
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o644|h.Mode&0o111))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}
