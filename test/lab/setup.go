package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// built are the sources of what setup.sh builds, in the order in which it
// digests them.
var built = []string{"setup.sh", "qemu/qatemu.c", "guest/Kbuild", "guest/qat_stub.c", "payload/payload.c"}

// lab is what setup.sh made.
type lab struct {
	root    string // of the module
	dir     string
	modules modules
}

var open = sync.OnceValues(func() (*lab, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	dir := os.Getenv("KATA_QAT_LAB_DIR")
	if dir == "" {
		dir = filepath.Join(root, "build", "lab")
	}
	if err := checkBuilt(filepath.Join(root, "test", "lab"), dir); err != nil {
		return nil, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	m, err := readModules(filepath.Join(dir, "root"), strings.TrimSpace(string(release)))
	if err != nil {
		return nil, err
	}
	return &lab{root: root, dir: dir, modules: m}, nil
})

func checkBuilt(source, dir string) error {
	h := sha256.New()
	for _, name := range built {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return err
		}
		h.Write(data)
	}
	got, err := os.ReadFile(filepath.Join(dir, "built"))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nothing is set up in %s: run test/lab/setup.sh as root, or name another directory in KATA_QAT_LAB_DIR", dir)
	}
	if err != nil {
		return err
	}
	if want := hex.EncodeToString(h.Sum(nil)); strings.TrimSpace(string(got)) != want {
		return fmt.Errorf("%s was built from other sources than these: run test/lab/setup.sh again", dir)
	}
	return nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module's root: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", fmt.Errorf("find the module's root: go env GOMOD says %q: expected to run inside the module", mod)
	}
	return filepath.Dir(mod), nil
}

// Build builds a command of this module for the guest, statically linked, and
// returns where it is. The package is given relative to the module's root:
// "./cmd/kata-qat". It is built once for each process that asks.
func Build(ctx context.Context, pkg string) (string, error) {
	return buildOnce(ctx, pkg, "", "build", "-tags", lean)
}

// lean are the tags of the programs that are shipped, as in the Makefile.
const lean = "urfave_cli_no_docs,grpcnotrace"

// BuildTest builds the tests of a package as a program for the guest, with the
// tags that its files need.
func BuildTest(ctx context.Context, pkg string, tags ...string) (string, error) {
	return buildOnce(ctx, pkg, ".test", "test", "-c", "-tags", strings.Join(tags, ","))
}

// Payload is what virtual machines of the guest run, payload/payload.c.
func Payload() (string, error) {
	l, err := open()
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	return filepath.Join(l.dir, "payload.elf"), nil
}

var programs struct {
	sync.Mutex
	paths map[string]string // by the command that built it
}

func buildOnce(ctx context.Context, pkg, suffix string, goArgs ...string) (string, error) {
	key := strings.Join(append(goArgs, pkg), " ")
	programs.Lock()
	defer programs.Unlock()
	if p, ok := programs.paths[key]; ok {
		return p, nil
	}
	p, err := build(ctx, pkg, suffix, goArgs...)
	if err != nil {
		return "", fmt.Errorf("lab: build %s: %w", pkg, err)
	}
	if programs.paths == nil {
		programs.paths = map[string]string{}
	}
	programs.paths[key] = p
	return p, nil
}

func build(ctx context.Context, pkg, suffix string, goArgs ...string) (string, error) {
	l, err := open()
	if err != nil {
		return "", err
	}
	name := strings.ReplaceAll(strings.TrimPrefix(filepath.Clean(pkg), "./"), "/", "-") + suffix
	bin := filepath.Join(l.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	// Another process may build the same program at this moment.
	tmp, err := os.MkdirTemp(bin, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, name)
	cmd := exec.CommandContext(ctx, "go", append(goArgs, "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)...)
	cmd.Dir = l.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, msg)
	}
	final := filepath.Join(bin, name)
	return final, os.Rename(out, final)
}
