package plan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const lockName = "lock"

// lock is held by the one run that may change the machine.
type lock struct {
	file *os.File
	dir  string
}

// LockedError says that another run is changing the machine.
type LockedError struct {
	Path string
	PID  int // 0 when it is not known
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%s is provisioning this machine (it holds %s): wait for it to end, then run this again", who, e.Path)
}

// acquire takes the lock or returns a *LockedError. The kernel drops it with the
// process, however that ends, so no lock is ever stale.
func acquire(dir string) (*lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock the machine: %w: run this as root", err)
	}
	name := filepath.Join(dir, lockName)
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) { // the directory went with another run's undo
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, fmt.Errorf("lock the machine: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("lock the machine: %w: run this as root", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer f.Close()
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("lock %s: %w", name, err)
			}
			b, _ := os.ReadFile(name) // only to say who
			pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
			return nil, &LockedError{Path: name, PID: pid}
		}
		// Who held it before may have removed it in between.
		if current, err := os.Stat(name); err != nil || !sameFile(f, current) {
			f.Close()
			continue
		}
		l := &lock{file: f, dir: dir}
		if err := l.sign(); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock the machine: %w", err)
		}
		return l, nil
	}
}

func sameFile(f *os.File, info fs.FileInfo) bool {
	own, err := f.Stat()
	return err == nil && os.SameFile(own, info)
}

func (l *lock) sign() error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// release gives the lock up. Where no journal is left, it leaves nothing.
func (l *lock) release() error {
	defer l.file.Close()
	if _, err := os.Stat(filepath.Join(l.dir, journalName)); err == nil {
		return nil
	}
	if err := os.Remove(filepath.Join(l.dir, lockName)); err != nil {
		return fmt.Errorf("remove the lock: %w", err)
	}
	// What else somebody keeps there stays.
	if err := os.Remove(l.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the lock's directory: %w", err)
	}
	return nil
}
