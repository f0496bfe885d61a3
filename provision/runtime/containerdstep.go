package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// containerdStep makes the entries in containerd's configuration, restarts it if
// it has not read them, and puts everything back if it does not come back.
type containerdStep struct{ *machine }

func (*containerdStep) Name() string { return "containerd" }

// loadedName is the file, in Paths.State, with the digest of what containerd has
// read, and was healthy with.
const loadedName = "containerd-loaded"

func (s *containerdStep) loaded() string { return filepath.Join(s.paths.State, loadedName) }

func (s *containerdStep) Check(ctx context.Context) (plan.State, error) {
	d, err := s.design(ctx)
	if err != nil {
		return plan.State{}, err
	}
	changes, err := s.changes(d)
	state := plan.State{Is: d.String(), Notes: d.notes}
	if err != nil {
		return state, err
	}
	if len(changes) == 0 {
		names := make([]string, len(s.handlers))
		for i, h := range s.handlers {
			names[i] = h.name
		}
		state.Is += ", for " + strings.Join(names, ", ")
		return state, nil
	}
	if s.NoRestart {
		return state, nil
	}
	// One that is broken already could not be told from one that we broke.
	if err := s.cri(d.socket).healthy(ctx, nil); err != nil {
		return state, fmt.Errorf("containerd on %s is not healthy: %w: see to that first, or say --no-restart", d.socket, err)
	}
	_, err = s.unit(ctx, d.setup)
	return state, err
}

func (s *containerdStep) Plan(ctx context.Context) ([]plan.Change, error) {
	d, err := s.design(ctx)
	if err != nil {
		return nil, err
	}
	return s.changes(d)
}

func (s *containerdStep) changes(d *design) ([]plan.Change, error) {
	changes, err := s.planFiles(d.files)
	if err != nil || s.NoRestart {
		return changes, err
	}
	loaded, err := s.state(s.loaded())
	if err != nil {
		return nil, err
	}
	if string(loaded.Content) != d.digest()+"\n" {
		changes = append(changes, plan.Change{Object: d.name, From: "has not read this configuration", To: "restarted", Why: "it reads its configuration only when it starts; pods live on"})
	}
	return changes, nil
}

func (s *containerdStep) Apply(ctx context.Context, j *plan.Journal) error {
	d, err := s.design(ctx)
	if err != nil {
		return err
	}
	known := j.Records(s.Name())
	good, err := s.lastGood(d, known)
	if err != nil {
		return err
	}
	// Until containerd is healthy again what is there is not known to be good.
	unload := file{name: s.loaded(), gone: true}
	if err := s.applyFiles(j, s.Name(), append([]file{unload}, d.files...)); err != nil || s.NoRestart {
		return err
	}
	if err := s.restart(ctx, d.setup, s.handlers); err != nil {
		return errors.Join(err, s.rollBack(ctx, j, d.setup, good, known))
	}
	return s.applyFiles(j, s.Name(), []file{{name: s.loaded(), content: d.digest() + "\n"}})
}

// lastGood are the files with which containerd was healthy last: as they are, or,
// when a run was killed after it changed them, as they were before the first run.
func (s *containerdStep) lastGood(d *design, known []plan.Record) (map[string]state, error) {
	good := map[string]state{}
	loaded, err := s.state(s.loaded())
	if err != nil {
		return nil, err
	}
	for _, r := range known {
		if r.Kind != kindFile {
			continue
		}
		var before state
		if err := json.Unmarshal(r.Before, &before); err != nil {
			return nil, fmt.Errorf("read the journal of %s: %w", r.Object, err)
		}
		if !loaded.Absent {
			if before, err = s.state(r.Object); err != nil {
				return nil, err
			}
		}
		good[r.Object] = before
	}
	for _, f := range d.files {
		if _, ok := good[f.name]; ok {
			continue
		}
		if good[f.name], err = s.state(f.name); err != nil {
			return nil, err
		}
	}
	return good, nil
}

// rollBack puts the files back with which containerd was healthy. What this run
// has made is gone then, from the journal, too.
func (s *containerdStep) rollBack(ctx context.Context, j *plan.Journal, c *setup, good map[string]state, known []plan.Record) error {
	for name, was := range good {
		if err := s.put(name, was); err != nil {
			return fmt.Errorf("roll back: %w", err)
		}
	}
	fresh := slices.DeleteFunc(j.Records(s.Name()), func(r plan.Record) bool {
		return slices.ContainsFunc(known, func(k plan.Record) bool { return k.Kind == r.Kind && k.Object == r.Object })
	})
	err := errors.Join(s.restore(fresh), j.Forget(fresh...), j.Save(known...))
	if err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	if err := s.restart(ctx, c, nil); err != nil {
		return fmt.Errorf("roll back: containerd's configuration is what it was, but: %w", err)
	}
	return errors.New("rolled back: containerd runs with the configuration that it had")
}

// restart restarts containerd and returns when it serves the handlers.
func (s *containerdStep) restart(ctx context.Context, c *setup, handlers []handler) error {
	unit, err := s.unit(ctx, c)
	if err != nil {
		return err
	}
	timed, cancel := context.WithTimeout(ctx, s.HealthTimeout)
	defer cancel()
	if _, err := s.Runner.Run(timed, "", "systemctl", "restart", unit); err != nil {
		return fmt.Errorf("restart containerd: %w: see journalctl -u %s", err, unit)
	}
	if err := s.cri(c.socket).wait(ctx, handlers, s.HealthTimeout); err != nil {
		return fmt.Errorf("restart %s: %w: see journalctl -u %[1]s", unit, err)
	}
	return nil
}

// unit is the unit of systemd that runs containerd. One that has failed is the
// one, too: it is to be started with another configuration.
func (s *containerdStep) unit(ctx context.Context, c *setup) (string, error) {
	for _, u := range c.units {
		out, err := s.Runner.Run(ctx, "", "systemctl", "is-active", u)
		switch state := strings.TrimSpace(out); {
		case slices.Contains([]string{"active", "activating", "reloading", "failed"}, state):
			return u, nil
		case err != nil && (state == "" || strings.Contains(state, " ")): // no state, but why it cannot tell
			return "", fmt.Errorf("find the unit of containerd: %w", err)
		}
	}
	return "", fmt.Errorf("none of the units %s is active: which one runs containerd? Restart it yourself, and say --no-restart", strings.Join(c.units, ", "))
}

func (s *containerdStep) Undo(ctx context.Context, records []plan.Record) error {
	if err := s.restore(records); err != nil {
		return err
	}
	if s.NoRestart {
		return nil
	}
	c, err := s.containerd(ctx)
	if err != nil {
		return err
	}
	return s.restart(ctx, c, nil)
}
