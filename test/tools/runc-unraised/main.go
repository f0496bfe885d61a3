// Command runc-unraised is runc for machines whose root may not raise resource
// limits, as in a container without CAP_SYS_RESOURCE: it gives runc a spec whose
// limits are no higher than its own. The bundle's config.json, which is what a
// test looks at, stays as containerd wrote it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limits are the numbers of the limits that a spec may name.
var limits = map[string]int{
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC,
}

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "runc-unraised:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	for i, arg := range args[:len(args)-1] {
		switch arg {
		case "--bundle":
			args[i+1], err = loweredBundle(args[i+1])
		case "--process": // of exec
			err = lowerProcess(args[i+1])
		}
		if err != nil {
			return err
		}
	}
	return syscall.Exec(runc, append([]string{runc}, args[1:]...), os.Environ())
}

// loweredBundle writes the bundle's spec with lower limits into a directory in
// the bundle and returns that.
func loweredBundle(bundle string) (string, error) {
	var spec specs.Spec
	if err := read(filepath.Join(bundle, "config.json"), &spec); err != nil {
		return "", err
	}
	if spec.Process != nil {
		lower(spec.Process)
	}
	if spec.Root != nil && !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	}
	dir := filepath.Join(bundle, "unraised")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, write(filepath.Join(dir, "config.json"), &spec)
}

// lowerProcess changes the file that the shim made for this exec alone.
func lowerProcess(file string) error {
	var process specs.Process
	if err := read(file, &process); err != nil {
		return err
	}
	lower(&process)
	return write(file, &process)
}

func lower(p *specs.Process) {
	for i := range p.Rlimits {
		l := &p.Rlimits[i]
		number, known := limits[l.Type]
		var own unix.Rlimit
		if !known || unix.Getrlimit(number, &own) != nil {
			continue
		}
		l.Hard, l.Soft = min(l.Hard, own.Max), min(l.Soft, own.Max)
	}
}

func read(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func write(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}
