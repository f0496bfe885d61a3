package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	securejoin "github.com/cyphar/filepath-securejoin"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// machine is what the steps see of the machine and do to it.
type machine struct {
	Options
	config *config.Provision
	runner *Runner

	mu  sync.Mutex
	inv *qat.Inventory // of the devices, until something is changed
	// modules of the running kernel, likewise.
	kernelModules *kernelModules
}

func newMachine(o Options) *machine {
	if o.Root == "" {
		o.Root = "/"
	}
	m := &machine{Options: o, runner: o.Runner}
	m.config = &m.Options.Config
	if m.runner == nil {
		m.runner = NewRunner(o.Root)
	}
	return m
}

// path is where a file of the machine is for this process. Links are followed
// as they would be by a process of the machine: below its root.
func (m *machine) path(name string) (string, error) {
	if m.Root == "/" {
		return name, nil
	}
	return securejoin.SecureJoin(m.Root, name)
}

// sys is the path of a file in sysfs or procfs, in which no link leads out.
func (m *machine) sys(name string) string { return filepath.Join(m.Root, name) }

// exists tells whether the machine has a file; what cannot be looked at is not
// there.
func (m *machine) exists(name string) bool {
	p, err := m.path(name)
	if err != nil {
		return false
	}
	_, err = os.Stat(p)
	return err == nil
}

// read returns the content of a file of the machine.
func (m *machine) read(name string) ([]byte, error) {
	p, err := m.path(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(p)
}

// text returns the content of a small file without the white space around it,
// and "" if there is none.
func (m *machine) text(name string) (string, error) {
	b, err := os.ReadFile(m.sys(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// write writes an attribute of sysfs.
func (m *machine) write(name, value string) error {
	m.changed()
	p := m.sys(name)
	if m.Write != nil {
		return m.Write(p, value)
	}
	return vfio.WriteAttribute(p, value)
}

func (m *machine) binder() vfio.Binder { return vfio.Binder{Root: m.Root, Write: m.Write} }

// inventory are the QAT devices as they are now.
func (m *machine) inventory() (*qat.Inventory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inv == nil {
		inv, err := qat.Discover(m.Root)
		if err != nil {
			return nil, err
		}
		m.inv = inv
	}
	return m.inv, nil
}

// changed forgets what was known of the devices and modules.
func (m *machine) changed() {
	m.mu.Lock()
	m.inv, m.kernelModules = nil, nil
	m.mu.Unlock()
}

func devicePath(a qat.Address, attribute string) string {
	return "/sys/bus/pci/devices/" + string(a) + "/" + attribute
}
