package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// The kinds of records in the journal.
const (
	kindFile = "file"      // a file or a link, or the absence of one
	kindDir  = "directory" // the absence of one
)

// file is a file or a link that a step wants to be so, or gone.
type file struct {
	name    string
	content string
	target  string      // of a link
	mode    fs.FileMode // 0 for 0644, or that of the file that is there
	gone    bool
	why     string
}

// state is a file as it is.
type state struct {
	Absent  bool        `json:"absent,omitempty"`
	Mode    fs.FileMode `json:"mode,omitempty"`
	UID     int         `json:"uid,omitempty"`
	GID     int         `json:"gid,omitempty"`
	Content []byte      `json:"content,omitempty"`
	Target  string      `json:"target,omitempty"` // of a link
}

func (s state) is(f file) bool {
	switch {
	case f.gone:
		return s.Absent
	case f.target != "":
		return s.Target == f.target
	}
	return !s.Absent && s.Target == "" && string(s.Content) == f.content
}

func (s state) digest() string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%v\x00%s\x00%s", s.Absent, s.Target, s.Content)))
	return hex.EncodeToString(sum[:])
}

func (f file) state() state {
	return state{Absent: f.gone, Mode: f.mode, Content: []byte(f.content), Target: f.target}
}

// place is where an entry of a directory is for this process: links above it are
// followed, it is not.
func (m *machine) place(name string) (string, error) {
	dir, err := m.path(filepath.Dir(name))
	return filepath.Join(dir, filepath.Base(name)), err
}

func (m *machine) state(name string) (state, error) {
	p, err := m.place(name)
	if err != nil {
		return state{}, err
	}
	info, err := os.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return state{Absent: true}, nil
	}
	if err != nil {
		return state{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	s := state{Mode: info.Mode().Perm(), UID: int(st.Uid), GID: int(st.Gid)}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		s.Target, err = os.Readlink(p)
	case info.Mode().IsRegular():
		s.Content, err = os.ReadFile(p)
	default:
		err = fmt.Errorf("%s is no file: move it away", name)
	}
	return s, err
}

// planFiles says what is to be changed for files to be as wanted.
func (m *machine) planFiles(files []file) (changes []plan.Change, err error) {
	for _, f := range files {
		s, err := m.state(f.name)
		if err != nil {
			return nil, err
		}
		if s.is(f) {
			continue
		}
		c := plan.Change{Object: f.name, From: string(s.Content) + s.Target, To: f.content + f.target, Why: f.why}
		changes = append(changes, c)
	}
	return changes, nil
}

// applyFiles makes files as wanted, all journaled before the first is changed.
func (m *machine) applyFiles(j *plan.Journal, step string, files []file) error {
	var changed []file
	var records []plan.Record
	for _, f := range files {
		s, err := m.state(f.name)
		if err != nil {
			return err
		}
		if s.is(f) {
			continue
		}
		var dirs []plan.Record // deepest first
		for dir := filepath.Dir(f.name); dir != "/" && !m.exists(dir); dir = filepath.Dir(dir) {
			r, err := plan.NewRecord(step, kindDir, dir, state{Absent: true}, nil)
			if err != nil {
				return err
			}
			dirs = append(dirs, r)
		}
		slices.Reverse(dirs)
		records = append(records, dirs...)
		r, err := plan.NewRecord(step, kindFile, f.name, s, f.state().digest())
		if err != nil {
			return err
		}
		changed, records = append(changed, f), append(records, r)
	}
	if len(changed) == 0 {
		return nil
	}
	if err := j.Save(records...); err != nil {
		return err
	}
	for _, f := range changed {
		if err := m.put(f.name, f.state()); err != nil {
			return err
		}
		if err := j.Reached("written " + f.name); err != nil {
			return err
		}
	}
	return nil
}

// put makes a file what a state says. A file that is there keeps its mode and
// owner unless the state has others.
func (m *machine) put(name string, s state) error {
	p, err := m.place(name)
	if err != nil {
		return err
	}
	now, err := m.state(name)
	if err != nil {
		return err
	}
	if s.Absent {
		if now.Absent {
			return nil
		}
		if err := os.Remove(p); err != nil {
			return err
		}
		return plan.SyncDir(filepath.Dir(p))
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	if s.Target != "" {
		return replaceLink(p, s.Target)
	}
	if s.Mode == 0 {
		s.Mode, s.UID, s.GID = 0o644, os.Geteuid(), os.Getegid()
		if !now.Absent && now.Target == "" {
			s.Mode, s.UID, s.GID = now.Mode, now.UID, now.GID
		}
	}
	// Kata reads every file of config.d, whatever its name, so one that is not
	// whole must not be there.
	staged := p
	if dir := filepath.Dir(p); filepath.Base(dir) == "config.d" {
		staged = filepath.Join(filepath.Dir(dir), ".new-"+filepath.Base(p))
	}
	if err := plan.WriteFile(staged, s.Content, s.Mode); err != nil {
		return err
	}
	if os.Geteuid() == 0 { // or else nothing that is replaced was another's
		if err := os.Chown(staged, s.UID, s.GID); err != nil {
			return err
		}
	}
	if staged == p {
		return nil
	}
	if err := os.Rename(staged, p); err != nil {
		return err
	}
	return plan.SyncDir(filepath.Dir(p))
}

func replaceLink(p, target string) error {
	tmp := p + ".kata-qat-new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, p); err != nil {
		return err
	}
	return plan.SyncDir(filepath.Dir(p))
}

// restore undoes records, last first. It refuses, before it changes anything, if
// somebody else has changed one of the files since.
func (m *machine) restore(records []plan.Record) error {
	before := make([]state, len(records))
	for i, r := range records {
		if err := json.Unmarshal(r.Before, &before[i]); err != nil {
			return fmt.Errorf("restore %s: %w", r.Object, err)
		}
		if r.Kind != kindFile {
			continue
		}
		var made string
		if err := json.Unmarshal(r.After, &made); err != nil {
			return fmt.Errorf("restore %s: %w", r.Object, err)
		}
		now, err := m.state(r.Object)
		if err != nil {
			return fmt.Errorf("restore %s: %w", r.Object, err)
		}
		if d := now.digest(); d != made && d != before[i].digest() && !now.Absent {
			return fmt.Errorf("restore %s: somebody has changed it since: move it away and run this again, to get back what was there", r.Object)
		}
	}
	for i, r := range slices.Backward(records) {
		var err error
		switch r.Kind {
		case kindFile:
			err = m.put(r.Object, before[i])
		case kindDir:
			err = m.removeDir(r.Object)
		default:
			err = fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
		}
		if err != nil {
			return fmt.Errorf("restore %s: %w", r.Object, err)
		}
	}
	return nil
}

// removeDir removes a directory that was made here, unless somebody has put
// something else into it.
func (m *machine) removeDir(name string) error {
	p, err := m.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}
