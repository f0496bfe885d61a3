package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// Directory is where the journal and the lock are, below the machine's root.
const Directory = "/var/lib/kata-qat"

const (
	journalName    = "journal.json"
	journalVersion = 1
)

// Journal is what was there before the changes to a machine. It is on the disk
// before the change is made, and whole after a power cut.
type Journal struct {
	path   string
	fault  func(point string) error
	killed atomic.Bool // by fault, after which nothing is cleaned up

	mu      sync.Mutex
	records []Record
	fresh   int // records before this index were there when it was opened
}

type journalFile struct {
	Version int      `json:"version"`
	Records []Record `json:"records"`
}

// openJournal reads the journal below dir. That there is none is no error.
func openJournal(dir string) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, journalName)}
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	var f journalFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("read the journal %s: %w: it is written whole or not at all, so something else changed it", j.path, err)
	}
	if f.Version != journalVersion {
		return nil, fmt.Errorf("read the journal %s: version %d, expected %d: use the kata-qat that wrote it", j.path, f.Version, journalVersion)
	}
	j.records, j.fresh = f.Records, len(f.Records)
	return j, nil
}

// Save writes down what was there before a change; it is on the disk when Save
// returns. Of an object that the journal knows already it keeps what was before
// the first change. Several records take no longer than one.
func (j *Journal) Save(records ...Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := false
	for _, r := range records {
		switch i := slices.IndexFunc(j.records, r.same); {
		case i < 0:
			j.records, changed = append(j.records, r), true
		case r.After != nil && string(r.After) != string(j.records[i].After):
			j.records[i].After, changed = r.After, true
		}
	}
	if changed {
		if err := j.write(); err != nil {
			return err
		}
	}
	return j.Reached("journal saved")
}

// Reached is a place at which tests stop a run as if it were killed there. An
// error that it returns must be returned at once, with nothing cleaned up.
func (j *Journal) Reached(point string) error {
	if j.fault == nil {
		return nil
	}
	err := j.fault(point)
	if err != nil {
		j.killed.Store(true)
	}
	return err
}

// Records returns the records of a step, in the order in which they were saved.
func (j *Journal) Records(step string) []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.of(step, 0)
}

func (j *Journal) of(step string, from int) (records []Record) {
	for _, r := range j.records[from:] {
		if r.Step == step {
			records = append(records, r)
		}
	}
	return records
}

// Forget takes records out of the journal, because what they were about is as
// it was.
func (j *Journal) Forget(records ...Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range records {
		if i := slices.IndexFunc(j.records, r.same); i >= 0 {
			j.records = slices.Delete(j.records, i, i+1)
			if i < j.fresh {
				j.fresh--
			}
		}
	}
	return j.write()
}

func (r Record) same(other Record) bool {
	return r.Step == other.Step && r.Kind == other.Kind && r.Object == other.Object
}

func (j *Journal) write() error {
	if len(j.records) == 0 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the journal: %w", err)
		}
		return SyncDir(filepath.Dir(j.path))
	}
	b, err := json.MarshalIndent(journalFile{Version: journalVersion, Records: j.records}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	// What it keeps of configuration files may be nobody else's business.
	return WriteFile(j.path, append(b, '\n'), 0o600)
}
