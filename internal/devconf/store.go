package devconf

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Store is a directory of rendered files that are mounted into pods read-only.
// A file is named for what it says, so it never changes under a pod, and equal
// configurations are one file. Put all that pods could need before they start:
// then no file is written while one does. A Store may be used by any number of
// goroutines.
type Store struct {
	dir string
	mu  sync.Mutex
}

// stored are the names of the files of a store, and of those that a crash left
// half-written.
var stored = lazyregexp.New(`^([0-9a-z]+-[0-9a-f]{16}\.conf|\.tmp-[0-9A-Z]{26})$`)

// NewStore makes the directory, if it is not there yet, and checks that nobody
// else can plant a file in it. The parent directory must be as safe.
func NewStore(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open configuration store %s: %w", dir, err)
	}
	s := &Store{dir: abs}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	return s, root.Close()
}

// Put stores the file of a VF of the family and returns its absolute path. A
// file that is there already is read and compared; one that does not say what
// its name says is replaced.
func (s *Store) Put(fam *qat.Family, f *File) (string, error) {
	if err := f.wellFormed(); err != nil {
		return "", fmt.Errorf("store configuration of %s: %w", fam.Conf, err)
	}
	text := f.Render()
	name := fmt.Sprintf("%s-%x.conf", fam.Conf, sha256.Sum256(text))
	name = name[:len(fam.Conf)+1+16] + ".conf"

	s.mu.Lock()
	defer s.mu.Unlock()
	root, err := s.open()
	if err != nil {
		return "", err
	}
	defer root.Close()
	path := filepath.Join(s.dir, name)
	ok, err := holds(root, name, text)
	if err != nil {
		return "", fmt.Errorf("check %s: %w", path, err)
	}
	if ok {
		return path, nil
	}
	if err := write(root, name, text); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return path, nil
}

// Prune removes the files whose paths, as Put returned them, are not in keep,
// and returns the paths of those it removed. What is not a store's file stays.
func (s *Store) Prune(keep map[string]bool) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("read configuration store %s: %w", s.dir, err)
	}
	var removed []string
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if keep[path] || !stored.MatchString(e.Name()) || e.IsDir() {
			continue
		}
		if err := root.Remove(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("prune %s: %w", path, err))
			continue
		}
		removed = append(removed, path)
	}
	return removed, errors.Join(errs...)
}

// open opens the directory anew for every use: it lives below /run, and may
// have been removed. What it opened is what it checked.
func (s *Store) open() (*os.Root, error) {
	if err := makeDir(s.dir); err != nil {
		return nil, fmt.Errorf("make configuration store: %w", err)
	}
	before, err := os.Lstat(s.dir)
	if err != nil {
		return nil, fmt.Errorf("open configuration store: %w", err)
	}
	if !before.IsDir() {
		return nil, fmt.Errorf("open configuration store %s: it is a %s, expected a directory: remove it", s.dir, kind(before))
	}
	if !own(before) || before.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("open configuration store %s: others can write to it (mode %04o): make it belong to user %d with mode 0755", s.dir, before.Mode().Perm(), os.Geteuid())
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, fmt.Errorf("open configuration store: %w", err)
	}
	after, err := root.Stat(".")
	if err == nil && !os.SameFile(before, after) {
		err = errors.New("the directory was exchanged")
	}
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open configuration store %s: %w", s.dir, err)
	}
	return root, nil
}

// makeDir gives a new directory its mode whatever the umask is.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return os.Chmod(dir, 0o755)
}

// holds tells whether the name is a file with the text, as this package would
// have written it. A name that is anything but a plain file is an error:
// somebody put it there.
func holds(root *os.Root, name string, text []byte) (bool, error) {
	before, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !before.Mode().IsRegular() {
		return false, fmt.Errorf("it is a %s, expected a plain file: remove it", kind(before))
	}
	file, err := root.Open(name)
	if err != nil {
		return false, err
	}
	defer file.Close()
	after, err := file.Stat()
	if err != nil {
		return false, err
	}
	if !os.SameFile(before, after) || !own(after) || after.Mode().Perm() != 0o644 {
		return false, nil
	}
	have, err := io.ReadAll(io.LimitReader(file, int64(len(text))+1))
	return bytes.Equal(have, text), err
}

// write puts a whole file under the name or none.
func write(root *os.Root, name string, text []byte) (err error) {
	temporary := ".tmp-" + rand.Text()
	file, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Remove(temporary))
		}
	}()
	_, err = file.Write(text)
	if err == nil {
		err = file.Chmod(0o644)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err = root.Rename(temporary, name); err != nil {
		return err
	}
	// The file is complete under its name; that the name lasts is for the
	// directory to write down, and Put makes it again if it does not.
	dir, openErr := root.Open(".")
	if openErr != nil {
		return nil
	}
	defer dir.Close()
	_ = dir.Sync()
	return nil
}

func own(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

func kind(info fs.FileInfo) string {
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		return "symbolic link"
	case mode.IsDir():
		return "directory"
	case mode.IsRegular():
		return "plain file"
	}
	return "special file"
}
