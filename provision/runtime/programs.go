package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/provision/plan"
)

// programsStep installs our programs from where this process has them: the shim,
// which containerd starts on the machine, and the CLI, which shows what it did.
type programsStep struct{ *machine }

func (*programsStep) Name() string { return "programs" }

var programs = []string{shimProgram, "kata-qat-full", "kata-qat"}

// programFiles are the programs as they are to be on the machine.
func (m *machine) programFiles() ([]file, error) {
	var files []file
	for _, name := range programs {
		b, err := os.ReadFile(filepath.Join(m.Programs, name))
		if err != nil {
			return nil, fmt.Errorf("our programs: %w: expected %s in %s", err, strings.Join(programs, " and "), m.Programs)
		}
		files = append(files, file{name: filepath.Join(m.paths.Shims, name), content: string(b), mode: 0o755, why: "it is of this version"})
	}
	return files, nil
}

func (s *programsStep) Check(ctx context.Context) (plan.State, error) {
	changes, err := s.Plan(ctx)
	if len(changes) > 0 {
		return plan.State{Is: fmt.Sprintf("%d programs are not there, or of another version", len(changes))}, err
	}
	return plan.State{Is: "in " + s.paths.Shims}, err
}

func (s *programsStep) Plan(context.Context) ([]plan.Change, error) {
	files, err := s.programFiles()
	if err != nil {
		return nil, err
	}
	changes, err := s.planFiles(files)
	for i := range changes { // nobody wants to read them
		if c := &changes[i]; c.From != "" {
			c.From = "another version"
		}
		changes[i].To = "as in " + s.Programs
	}
	return changes, err
}

func (s *programsStep) Apply(_ context.Context, j *plan.Journal) error {
	files, err := s.programFiles()
	if err != nil {
		return err
	}
	return s.applyFiles(j, s.Name(), files)
}

func (s *programsStep) Undo(_ context.Context, records []plan.Record) error {
	return s.restore(records)
}
