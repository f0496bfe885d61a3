package host

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/unpack"
)

// maxArchive is more than any QAT release has, which are a few megabytes.
const maxArchive = 1 << 30

// fetchArchive copies an archive to where nobody else can change it, and only
// then looks whether it is the one with the digest.
func fetchArchive(from, to, digest string) error {
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
	if err := unpack.CheckDigest(to, digest); err != nil {
		return fmt.Errorf("copy of %s: %w", from, err)
	}
	return nil
}
