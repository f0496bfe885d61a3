package host

import (
	"context"
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

// The kinds of records that every step may have.
const (
	kindFile = "file"      // a file's content, or the absence of one
	kindLink = "link"      // a symbolic link's target, or the absence of one
	kindDir  = "directory" // the absence of one
)

// fileState is a file before it was changed.
type fileState struct {
	Absent  bool        `json:"absent,omitempty"`
	Mode    fs.FileMode `json:"mode,omitempty"`
	UID     int         `json:"uid,omitempty"`
	GID     int         `json:"gid,omitempty"`
	Content []byte      `json:"content,omitempty"`
	Target  string      `json:"target,omitempty"` // of a link
}

// fileMark is what the last change made of a file. It tells a file that somebody
// else has changed since.
type fileMark struct {
	SHA256 string `json:"sha256"`
}

func mark(content []byte) fileMark {
	sum := sha256.Sum256(content)
	return fileMark{hex.EncodeToString(sum[:])}
}

// file is a file that a step wants to be so.
type file struct {
	name    string
	content string
	mode    fs.FileMode // 0 means 0644, or that of the file that is there
	why     string
}

// planFiles says what is to be changed for files to be as wanted.
func (m *machine) planFiles(files ...file) (changes []plan.Change, err error) {
	for _, f := range files {
		was, err := m.read(f.name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil && string(was) == f.content {
			continue
		}
		changes = append(changes, plan.Change{Object: f.name, From: string(was), To: f.content, Why: f.why})
	}
	return changes, nil
}

// record notes a file, and the directories that have to be made for it.
func (m *machine) recordFile(step string, f file) ([]plan.Record, error) {
	p, err := m.path(f.name)
	if err != nil {
		return nil, err
	}
	state := fileState{Absent: true}
	info, err := os.Stat(p)
	switch {
	case err == nil:
		if state, err = readState(p, info); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	records, err := m.recordDirs(step, f.name)
	if err != nil {
		return nil, err
	}
	r, err := plan.NewRecord(step, kindFile, f.name, state, mark([]byte(f.content)))
	return append(records, r), err
}

func readState(p string, info fs.FileInfo) (fileState, error) {
	content, err := os.ReadFile(p)
	st := info.Sys().(*syscall.Stat_t)
	return fileState{Mode: info.Mode().Perm(), UID: int(st.Uid), GID: int(st.Gid), Content: content}, err
}

// recordDirs notes the directories above a name that are not there, highest
// first.
func (m *machine) recordDirs(step, name string) (records []plan.Record, err error) {
	for dir := filepath.Dir(name); dir != "/" && !m.exists(dir); dir = filepath.Dir(dir) {
		r, err := plan.NewRecord(step, kindDir, dir, fileState{Absent: true}, nil)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	slices.Reverse(records)
	return records, nil
}

// applyFiles makes files as wanted, each journaled before.
func (m *machine) applyFiles(j *plan.Journal, step string, files ...file) error {
	for _, f := range files {
		changes, err := m.planFiles(f)
		if err != nil || len(changes) == 0 {
			if err != nil {
				return err
			}
			continue
		}
		records, err := m.recordFile(step, f)
		if err != nil {
			return err
		}
		if err := j.Save(records...); err != nil {
			return err
		}
		p, err := m.path(f.name)
		if err != nil {
			return err
		}
		mode := f.mode
		info, err := os.Stat(p)
		switch {
		case err == nil && mode == 0:
			mode = info.Mode().Perm()
		case mode == 0:
			mode = 0o644
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := plan.WriteFile(p, []byte(f.content), mode); err != nil {
			return err
		}
		if info != nil {
			if err := chown(p, info.Sys().(*syscall.Stat_t)); err != nil {
				return err
			}
		}
	}
	return nil
}

func chown(p string, st *syscall.Stat_t) error {
	if os.Geteuid() != 0 { // then nothing that is replaced was another's
		return nil
	}
	return os.Chown(p, int(st.Uid), int(st.Gid))
}

// applyLink makes a symbolic link, journaled before.
func (m *machine) applyLink(j *plan.Journal, step, name, target string) error {
	state, p, err := m.linkState(name)
	if err != nil || state.Target == target {
		return err
	}
	records, err := m.recordDirs(step, name)
	if err != nil {
		return err
	}
	r, err := plan.NewRecord(step, kindLink, name, state, nil)
	if err != nil {
		return err
	}
	if err := j.Save(append(records, r)...); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return replaceLink(p, target)
}

// linkState reads a link; it does not follow it.
func (m *machine) linkState(name string) (fileState, string, error) {
	dir, err := m.path(filepath.Dir(name))
	if err != nil {
		return fileState{}, "", err
	}
	p := filepath.Join(dir, filepath.Base(name))
	target, err := os.Readlink(p)
	if errors.Is(err, fs.ErrNotExist) {
		return fileState{Absent: true}, p, nil
	}
	return fileState{Target: target}, p, err
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

// restore undoes records of the kinds above, last first; those of other kinds
// are for restoreOther.
func (m *machine) restore(_ context.Context, records []plan.Record, restoreOther func(plan.Record) error) error {
	defer m.changed()
	for _, r := range slices.Backward(records) {
		var err error
		switch r.Kind {
		case kindFile:
			err = m.restoreFile(r)
		case kindLink:
			err = m.restoreLink(r)
		case kindDir:
			err = m.removeDir(r.Object)
		default:
			if restoreOther == nil {
				return fmt.Errorf("the journal has a record of kind %q: use the kata-qat that wrote it", r.Kind)
			}
			err = restoreOther(r)
		}
		if err != nil {
			return fmt.Errorf("restore %s: %w", r.Object, err)
		}
	}
	return nil
}

func (m *machine) restoreFile(r plan.Record) error {
	var was fileState
	if err := json.Unmarshal(r.Before, &was); err != nil {
		return err
	}
	var made fileMark
	if err := json.Unmarshal(r.After, &made); err != nil {
		return err
	}
	p, err := m.path(r.Object)
	if err != nil {
		return err
	}
	now, err := os.ReadFile(p)
	switch {
	case errors.Is(err, fs.ErrNotExist) && was.Absent:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err == nil && mark(now) != made && (was.Absent || string(now) != string(was.Content)):
		return errors.New("somebody has changed it since: move it away and run this again, to get back what was there")
	case was.Absent:
		if err := os.Remove(p); err != nil {
			return err
		}
		return plan.SyncDir(filepath.Dir(p))
	}
	if err := plan.WriteFile(p, was.Content, was.Mode); err != nil {
		return err
	}
	return chown(p, &syscall.Stat_t{Uid: uint32(was.UID), Gid: uint32(was.GID)})
}

func (m *machine) restoreLink(r plan.Record) error {
	var was fileState
	if err := json.Unmarshal(r.Before, &was); err != nil {
		return err
	}
	now, p, err := m.linkState(r.Object)
	switch {
	case err != nil:
		return err
	case was.Absent && now.Absent:
		return nil
	case was.Absent:
		return os.Remove(p)
	}
	return replaceLink(p, was.Target)
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
