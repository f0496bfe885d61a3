package devconf

import (
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
)

func newStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run", "conf")
	s, err := NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func defaultFile(t *testing.T, fam *qat.Family, s qat.Services) *File {
	t.Helper()
	f, err := ForVF(fam, s, DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func put(t *testing.T, s *Store, fam *qat.Family, f *File) string {
	t.Helper()
	path, err := s.Put(fam, f)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStoreWritesAFileOnceUnderItsContent(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	s, dir := newStore(t)
	f := defaultFile(t, gen4(t), "sym")
	path := put(t, s, gen4(t), f)

	if filepath.Dir(path) != dir || !regexp.MustCompile(`^4xxxvf-[0-9a-f]{16}\.conf$`).MatchString(filepath.Base(path)) {
		t.Errorf("path = %s", path)
	}
	for p, want := range map[string]os.FileMode{dir: 0o755, path: 0o644} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", p, info.Mode().Perm(), want)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != string(f.Render()) {
		t.Errorf("the file says\n%s", text)
	}

	before, _ := os.Stat(path)
	if again := put(t, s, gen4(t), f); again != path {
		t.Errorf("the same file is at %s and %s", path, again)
	}
	after, _ := os.Stat(path)
	if !os.SameFile(before, after) {
		t.Error("a file that was there was written again")
	}
	if other := put(t, s, gen4(t), defaultFile(t, gen4(t), "dc")); other == path {
		t.Error("different files have the same name")
	}
	if names := list(t, dir); len(names) != 2 {
		t.Errorf("the store has %v, want two files and nothing else", names)
	}
}

func TestStoreMendsWhatDoesNotSayWhatItsNameSays(t *testing.T) {
	s, _ := newStore(t)
	f := defaultFile(t, gen4(t), "sym")
	path := put(t, s, gen4(t), f)
	mounted, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	for name, spoil := range map[string]func() error{
		"content": func() error { return os.WriteFile(path, []byte("[GENERAL]\n"), 0o644) },
		"longer": func() error {
			return os.WriteFile(path, append(f.Render(), "[X]\n"...), 0o644)
		},
		"mode": func() error { return os.Chmod(path, 0o666) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		put(t, s, gen4(t), f)
		text, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || string(text) != string(f.Render()) || info.Mode().Perm() != 0o644 {
			t.Errorf("%s was not mended: %v, mode %04o", name, err, info.Mode().Perm())
		}
	}
}

func TestStoreFollowsNoSymbolicLink(t *testing.T) {
	s, dir := newStore(t)
	f := defaultFile(t, gen4(t), "sym")
	path := put(t, s, gen4(t), f)
	for name, victim := range map[string]string{
		"outside":  filepath.Join(t.TempDir(), "victim"),
		"inside":   filepath.Join(dir, "victim"),
		"dangling": "",
	} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(dir, "nothing")
		if victim != "" {
			target = victim
			// Even with the right content it is not the store's file.
			if err := os.WriteFile(victim, f.Render(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		_, err := s.Put(gen4(t), f)
		t.Run(name, func(t *testing.T) { refused(t, err, path, "symbolic link", "remove it") })
		if _, err := os.Lstat(filepath.Join(dir, "nothing")); err == nil {
			t.Errorf("%s: the link was followed", name)
		}
	}
}

func TestStoreRefusesADirectoryThatOthersCanUse(t *testing.T) {
	parent := t.TempDir()
	real := filepath.Join(parent, "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(parent, "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	_, err := NewStore(link)
	refused(t, err, link, "symbolic link")

	if err := os.Chmod(real, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err = NewStore(real)
	refused(t, err, real, "others can write to it")

	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = NewStore(file)
	refused(t, err, file, "plain file")
}

func TestStoreSurvivesTheLossOfItsDirectory(t *testing.T) {
	s, dir := newStore(t)
	f := defaultFile(t, gen4(t), "sym")
	put(t, s, gen4(t), f)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(put(t, s, gen4(t), f)); err != nil {
		t.Error(err)
	}
}

func TestStoreRefusesAFileThatIsNotWhatItSeems(t *testing.T) {
	s, dir := newStore(t)
	f := defaultFile(t, gen4(t), "sym")
	f.Sections[1].Other = []Key{{"A", "1\nB = 2"}}
	_, err := s.Put(gen4(t), f)
	refused(t, err, "store configuration of 4xxxvf", "[SHIM] A")
	if names := list(t, dir); len(names) != 0 {
		t.Errorf("the store has %v", names)
	}
}

func TestPruneRemovesOnlyWhatIsTheStoresAndNotKept(t *testing.T) {
	s, dir := newStore(t)
	kept := put(t, s, gen4(t), defaultFile(t, gen4(t), "sym"))
	gone := put(t, s, gen4(t), defaultFile(t, gen4(t), "dc"))
	half := filepath.Join(dir, ".tmp-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	foreign := filepath.Join(dir, "README")
	for _, p := range []string{half, foreign} {
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := s.Prune(map[string]bool{kept: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(removed) != 2 || removed[0] != half || removed[1] != gone {
		t.Errorf("removed %v, want %s and %s", removed, half, gone)
	}
	if names := list(t, dir); len(names) != 2 {
		t.Errorf("left are %v, want the kept file and README", names)
	}
}

func TestManyMayPutTheSameFile(t *testing.T) {
	s, dir := newStore(t)
	f := defaultFile(t, gen4(t), "sym")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.Put(gen4(t), f); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("the store has %v, want one file", names)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
