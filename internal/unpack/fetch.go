package unpack

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxArchive is more than any release has: a kernel's sources are 150 MB.
const maxArchive = 1 << 30

// CheckDigest refuses what is no file, and a file that does not have the SHA-256,
// in hexadecimal.
func CheckDigest(name, want string) error {
	f, err := open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, want) {
		return fmt.Errorf("%s has the SHA-256 %s, expected %s: it is not the archive that is meant, or is damaged", name, got, want)
	}
	return nil
}

// open opens an archive; it does not wait for whoever may write to a pipe.
func open(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxArchive {
		return nil, errors.Join(err, f.Close(), fmt.Errorf("%s: expected a file of at most %d MiB", name, maxArchive>>20))
	}
	return f, nil
}

// Fetch copies an archive to where nobody else can change it, and only then looks
// whether it is the one with the SHA-256, in hexadecimal. What it copied stays
// there if it is not.
func Fetch(from, to, digest string) error {
	in, err := open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := CheckDigest(to, digest); err != nil {
		return fmt.Errorf("copy of %s: %w", from, err)
	}
	return nil
}
