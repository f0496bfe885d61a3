package unpack

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxArchive is more than any release has: a kernel's sources are 150 MB.
const maxArchive = 1 << 30

// Fetch copies an archive to where nobody else can change it, and only then looks
// whether it is the one with the SHA-256, in hexadecimal. What it copied stays
// there if it is not.
func Fetch(from, to, digest string) error {
	// Not to wait for whoever may write to a pipe.
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
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := CheckDigest(to, digest); err != nil {
		return fmt.Errorf("copy of %s: %w", from, err)
	}
	return nil
}
