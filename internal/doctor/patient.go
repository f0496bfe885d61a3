package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"

	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/containers"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/provision/host"
	"github.com/kata-qat/kata-qat/provision/plan"
	"github.com/kata-qat/kata-qat/shim"
)

// The commands that mend most.
const (
	provisionHost    = "kata-qat provision host"
	provisionRuntime = "kata-qat provision runtime"
	restartDaemon    = "systemctl restart kata-qat"
)

// patience is how long somebody may take to answer.
const patience = 2 * time.Second

// patient is the node that is looked at, and what the checks share of it.
type patient struct {
	Options
	states map[string]State // of the checks made so far

	inventory *qat.Inventory
	invErr    error
	table     *vfio.Table
	pfs       []*qat.PF // those that are not excluded

	steps     map[string]plan.Step
	plans     map[string]stepPlan
	stepErrs  []error // that a check has reported
	preflight []host.Finding
	preErr    error

	client     *containers.Client
	containerd string                 // its version; "" if it does not answer
	runtime    containerdConfig       // what its configuration says
	shim       *shim.Config           // nil if it is not valid
	katas      []kataConfig           // of the handlers that get devices
	health     *nodev1.HealthResponse // nil if the daemon does not answer

	allocatable *podresources.AllocatableResourcesResponse // by kubelet; nil if it does not tell
}

// stepPlan is what a step of provision host would change.
type stepPlan struct {
	changes []plan.Change
	err     error
}

func newPatient(ctx context.Context, o Options) *patient {
	p := &patient{Options: o, states: make(map[string]State), steps: make(map[string]plan.Step), plans: make(map[string]stepPlan)}
	if p.inventory, p.invErr = qat.Discover(o.Root); p.invErr != nil {
		p.inventory = &qat.Inventory{}
	}
	p.table = vfio.Load(o.Root, p.inventory, vfio.Options{AllowNoIOMMU: o.Config.AllowNoIOMMU})
	for i := range p.inventory.PFs {
		if pf := &p.inventory.PFs[i]; o.Config.Provision.RuleFor(pf) != nil {
			p.pfs = append(p.pfs, pf)
		}
	}
	h := host.Options{
		Root: o.Root, Config: o.Config.Provision, AllowNoIOMMU: o.Config.AllowNoIOMMU, BootFlags: o.BootFlags,
		// Without directories it finds no program to start.
		Runner: &host.Runner{Root: o.Root},
		Write:  func(path, _ string) error { return fmt.Errorf("write %s: the doctor only reads", path) },
	}
	for _, s := range host.Steps(h) {
		p.steps[s.Name()] = s
	}
	p.preflight, p.preErr = host.Preflight(ctx, h)
	return p
}

func (p *patient) close() {
	if p.client != nil {
		p.client.Close()
	}
}

// failed tells whether a check that was made before has failed.
func (p *patient) failed(check string) bool { return p.states[check] == Fail }

// plan returns what a step of provision host would change.
func (p *patient) plan(ctx context.Context, step string) ([]plan.Change, error) {
	got, known := p.plans[step]
	if !known {
		if s := p.steps[step]; s != nil {
			got.changes, got.err = s.Plan(ctx)
		} else {
			got.err = fmt.Errorf("provision host has no step %s", step)
		}
		p.plans[step] = got
	}
	return got.changes, got.err
}

// path is where a file of the host is for this process. Links are followed as a
// process of the host would follow them.
func (p *patient) path(name string) (string, error) {
	if filepath.Clean(p.Root) == "/" {
		return name, nil
	}
	return securejoin.SecureJoin(p.Root, name)
}

// resolve is the name of the file that a file of the host leads to by links.
func (p *patient) resolve(name string) string {
	file, err := p.path(name) // which resolves links below a root that is not "/"
	root := filepath.Clean(p.Root)
	if err == nil && root == "/" {
		file, err = filepath.EvalSymlinks(file)
	}
	if err != nil {
		return name
	}
	return filepath.Join("/", strings.TrimPrefix(file, root))
}

func (p *patient) stat(name string) (fs.FileInfo, error) {
	file, err := p.path(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(file)
	return info, bare(err)
}

func (p *patient) read(name string) ([]byte, error) {
	file, err := p.path(name)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	return b, bare(err)
}

// sys returns what a file of sysfs or procfs says.
func (p *patient) sys(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(p.Root, name))
	return strings.TrimSpace(string(b)), bare(err)
}

// list are the names in a directory, sorted.
func (p *patient) list(name string) ([]string, error) {
	dir, err := p.path(name)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, bare(err)
}

// bare leaves the path out of an error: the evidence has it, and without the
// root before it.
func bare(err error) error {
	var e *fs.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// loaded tells whether a module is loaded or built in, as far as sysfs shows.
func (p *patient) loaded(module string) bool {
	_, err := os.Stat(filepath.Join(p.Root, "/sys/module", module))
	return err == nil
}

func device(a qat.Address, attribute string) string {
	return filepath.Join("/sys/bus/pci/devices", string(a), attribute)
}

// families are those of the PFs that are not excluded, oldest first.
func (p *patient) families() (fs []*qat.Family) {
	for i := range qat.Families {
		for _, pf := range p.pfs {
			if pf.Family.Name == qat.Families[i].Name {
				fs = append(fs, &qat.Families[i])
				break
			}
		}
	}
	return fs
}

// checkConfig is the only check of what the others rely on.
func checkConfig(_ context.Context, p *patient) finding {
	if p.ConfigErr != nil {
		return fail("it is not valid; everything else is checked with the defaults", "edit "+p.ConfigFile+" (docs/configuration.md has every key), then "+restartDaemon,
			Evidence{Path: p.ConfigFile, Value: p.ConfigErr.Error()})
	}
	if _, err := os.Stat(p.ConfigFile); err != nil {
		return ok(Evidence{Path: config.Path, Value: "none: the defaults hold"})
	}
	return ok(Evidence{Path: p.ConfigFile, Value: "valid"})
}
