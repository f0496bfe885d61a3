package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

const (
	lockFile  = ".lock"
	newPrefix = ".new-"
	// previous is a link to the guest that was current before.
	previous = "previous"
)

var guestID = lazyregexp.New(`^[0-9a-f]{16}$`)

// publish has write fill a new directory, and makes it the current one. After an
// error or a crash the current one is what it was.
func publish(out, id string, write func(dir string) error) (err error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	unlock, err := lock(out)
	if err != nil {
		return err
	}
	defer unlock()
	if err := removeHalfMade(out); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(out, newPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }() // which is not there any more when all went well
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := write(dir); err != nil {
		return err
	}
	if err := syncAll(dir); err != nil {
		return err
	}
	final := filepath.Join(out, id)
	// Either it is not whole, or it is not current: then nothing uses it.
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	if err := os.Rename(dir, final); err != nil {
		return err
	}
	if err := sync(out); err != nil {
		return err
	}
	if err := switchTo(out, id); err != nil {
		return err
	}
	return prune(out)
}

// switchTo makes a guest the current one, and the current one the previous.
func switchTo(out, id string) error {
	was, err := os.Readlink(filepath.Join(out, Current))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if was != "" && was != id {
		if err := link(out, previous, was); err != nil {
			return err
		}
	}
	return link(out, Current, id)
}

// link makes a link at one stroke.
func link(out, name, target string) error {
	tmp := filepath.Join(out, newPrefix+name)
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(out, name)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return sync(out)
}

// Undo makes the guest current that was before the last one, or none if there
// was none. It returns its manifest, nil for none.
func Undo(out string) (*Manifest, error) {
	m, err := undo(out)
	if err != nil {
		return nil, fmt.Errorf("undo the guest in %s: %w", out, err)
	}
	return m, nil
}

func undo(out string) (*Manifest, error) {
	if _, err := os.Lstat(filepath.Join(out, Current)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := lock(out)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeHalfMade(out); err != nil {
		return nil, err
	}
	was, err := os.Readlink(filepath.Join(out, previous))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(os.Remove(filepath.Join(out, Current)), prune(out))
	}
	if err != nil {
		return nil, err
	}
	m, err := checkFiles(filepath.Join(out, was))
	if err != nil {
		return nil, err
	}
	// In this order: a crash between the two leaves both links at one guest.
	if err := link(out, Current, was); err != nil {
		return nil, err
	}
	return m, errors.Join(os.Remove(filepath.Join(out, previous)), prune(out))
}

// prune removes the guests that are neither current nor the one before.
func prune(out string) error {
	keep := map[string]bool{}
	for _, name := range []string{Current, previous} {
		if target, err := os.Readlink(filepath.Join(out, name)); err == nil {
			keep[target] = true
		}
	}
	return removeAll(out, func(name string) bool { return guestID.MatchString(name) && !keep[name] })
}

// removeHalfMade removes what a run left behind that was killed.
func removeHalfMade(out string) error {
	return removeAll(out, func(name string) bool { return strings.HasPrefix(name, newPrefix) })
}

func removeAll(out string, which func(name string) bool) error {
	entries, err := os.ReadDir(out)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if which(e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(out, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// lock keeps another run out.
func lock(out string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(out, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another kata-qat is at work in %s: wait for it: %w", out, err)
	}
	return func() { f.Close() }, nil
}

// syncAll puts a directory and the files in it on the disk.
func syncAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := sync(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return sync(dir)
}

func sync(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
