package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"

	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/tomledit"
	"github.com/kata-qat/kata-qat/provision/plan"
	"github.com/kata-qat/kata-qat/shim"
)

// shimProgram is our shim as it is installed; it serves the handler that it is
// called by the name of.
const shimProgram = "containerd-shim-kata-qat-v2"

// shimPath is what a handler's containerd entry has as runtime_path.
func (m *machine) shimPath(h handler) string {
	return filepath.Join(m.paths.Shims, "containerd-shim-"+h.name+"-v2")
}

// shimFiles are our shim under the name of each handler, and its configuration.
func (m *machine) shimFiles(ctx context.Context) ([]file, error) {
	program := filepath.Join(m.paths.Shims, shimProgram)
	if err := m.executable(program); err != nil && m.Programs == "" {
		err = fmt.Errorf("our shim: %w: install it (scripts/bootstrap-node.sh)", err)
		if !m.exists(program) {
			err = plan.Absent(err)
		}
		return nil, err
	}
	in, err := m.kata(ctx)
	if err != nil {
		return nil, err
	}
	return m.shimFilesFor(in)
}

func (m *machine) shimFilesFor(in *installation) ([]file, error) {
	program := filepath.Join(m.paths.Shims, shimProgram)
	var files []file
	for _, h := range m.handlers {
		name := m.shimPath(h)
		if name == program {
			continue
		}
		now, err := m.state(name)
		if err != nil {
			return nil, err
		}
		if !now.Absent && now.Target != shimProgram && now.Target != program && !m.Replace {
			return nil, fmt.Errorf("%s is there and is not our shim: choose another handler than %s, or say --replace", name, h.name)
		}
		files = append(files, file{name: name, target: shimProgram, why: "the shim knows the handler by the name that it is called"})
	}
	config, err := m.shimConfig(in)
	if err != nil {
		return nil, err
	}
	return append(files, file{name: m.paths.ShimConfig, content: string(config.Bytes()), why: "the shim becomes Kata's when it has given the sandbox its devices"}), nil
}

// shimConfig is the shim's configuration with our handlers in it; what else it
// says stays.
func (m *machine) shimConfig(in *installation) (*tomledit.Document, error) {
	b, err := m.read(m.paths.ShimConfig)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = []byte("# Which shim of Kata's each runtime handler is served by.\n"), nil
	}
	if err != nil {
		return nil, err
	}
	d, err := tomledit.Parse(m.paths.ShimConfig, b)
	if err != nil {
		return nil, err
	}
	for _, h := range m.handlers {
		if now, ok := d.Get("runtimes", h.name); ok && now != in.shim && !m.Replace {
			return nil, fmt.Errorf("%s:%d: runtimes.%s is %q, expected %q: take it out, or say --replace", d.Name(), d.Line("runtimes", h.name), h.name, now, in.shim)
		} else if ok && now == in.shim {
			continue
		}
		if err := d.Set(tomledit.String(in.shim), "runtimes", h.name); err != nil {
			return nil, err
		}
	}
	socket := filepath.Join(m.Options.Config.RunDir, api.SocketName)
	now, ok := d.Get("socket")
	if !ok {
		now = api.Socket
	}
	if now != socket {
		if err := d.Set(tomledit.String(socket), "socket"); err != nil {
			return nil, err
		}
	}
	if err := toml.NewDecoder(bytes.NewReader(d.Bytes())).DisallowUnknownFields().Decode(&shim.Config{}); err != nil {
		return nil, fmt.Errorf("the shim's configuration %s: %w: expected socket, timeout and [runtimes]", d.Name(), err)
	}
	return d, nil
}

// shimStep puts our shim before Kata's.
type shimStep struct{ *machine }

func (*shimStep) Name() string { return "shim" }

func (s *shimStep) Check(ctx context.Context) (plan.State, error) {
	changes, err := s.Plan(ctx)
	if err != nil {
		return plan.State{}, err
	}
	if len(changes) > 0 {
		return plan.State{Is: fmt.Sprintf("%d files are not as they should be", len(changes))}, nil
	}
	return plan.State{Is: fmt.Sprintf("before Kata's for %d handlers", len(s.handlers))}, nil
}

func (s *shimStep) Plan(ctx context.Context) ([]plan.Change, error) {
	files, err := s.shimFiles(ctx)
	if err != nil {
		return nil, err
	}
	return s.planFiles(files)
}

func (s *shimStep) Apply(ctx context.Context, j *plan.Journal) error {
	files, err := s.shimFiles(ctx)
	if err != nil {
		return err
	}
	return s.applyFiles(j, s.Name(), files)
}

func (s *shimStep) Undo(_ context.Context, records []plan.Record) error { return s.restore(records) }
