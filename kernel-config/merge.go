package kernelconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// Merge configures a kernel tree: a base, and over it fragments.
type Merge struct {
	// Source is the kernel tree, which stays as it is.
	Source string
	// Output is where make writes (O=) and where the .config ends up. It is made
	// if it is not there.
	Output string
	// Base is a file to start from, such as a distribution's configuration;
	// Target is one of make's targets, such as "x86_64_defconfig". One of them.
	Base, Target string
	// Minimal turns off what neither the base nor a fragment asks for, as Kata
	// does for its guest kernels. Otherwise it takes the kernel's default.
	Minimal bool
	// Fragments are this project's.
	Fragments []Selected
	// Extra are files of the user's own, merged last.
	Extra []string
	// Log gets what make says; nil: nobody.
	Log io.Writer
}

// Merged is what became of it.
type Merged struct {
	Config  string   `json:"config"` // the file
	Version Version  `json:"version"`
	Symbols []Result `json:"symbols"`
}

// arch is the only architecture that QAT is on, as make calls it; srcarch is its
// directory below arch/.
const arch, srcarch = "x86_64", "x86"

// pending is the configuration that is being made, in Output: it takes the place
// of .config when everything is in it.
const pending = ".config.kata-qat"

// Run merges with the kernel's own merge_config.sh and make. It fails, naming
// each of them and why, when options of the fragments are not in the result; an
// earlier .config in Output is then left as it was. An option that this kernel
// does not have fails before anything is done, unless it is optional or its
// fragment is not required.
func (m Merge) Run(ctx context.Context) (*Merged, error) {
	tree, err := openTree(m.Source)
	if err != nil {
		return nil, err
	}
	asked, skipped, err := tree.resolve(m.Fragments, m.Extra)
	if err != nil {
		return nil, err
	}
	if m.Output, err = filepath.Abs(m.Output); err != nil {
		return nil, fmt.Errorf("output directory %s: %w", m.Output, err)
	}
	if m.Output == tree.dir {
		return nil, fmt.Errorf("output directory %s is the kernel tree: name another, which keeps the tree clean", m.Output)
	}
	if err := os.MkdirAll(m.Output, 0o755); err != nil {
		return nil, fmt.Errorf("make the output directory: %w", err)
	}
	work, err := os.MkdirTemp(m.Output, ".kata-qat-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the merge: %w", err)
	}
	defer os.RemoveAll(work)
	file := filepath.Join(m.Output, pending)
	defer func() {
		os.Remove(file)
		os.Remove(file + ".old") // make's copy of what it began with
	}()
	if err := m.configure(ctx, tree, work, file, asked); err != nil {
		return nil, err
	}
	result, err := ReadConfig(file)
	if err != nil {
		return nil, err
	}
	merged := &Merged{Config: filepath.Join(m.Output, ".config"), Version: tree.version}
	if merged.Symbols, err = tree.verify(asked, result); err != nil {
		return nil, err
	}
	merged.Symbols = append(merged.Symbols, skipped...)
	if err := os.Rename(file, merged.Config); err != nil {
		return nil, fmt.Errorf("put the configuration in place: %w", err)
	}
	return merged, nil
}

// configure makes the configuration file out of base and options.
func (m Merge) configure(ctx context.Context, tree *tree, work, file string, asked []request) error {
	base := filepath.Join(work, "base.config")
	switch {
	case (m.Base == "") == (m.Target == ""):
		return errors.New("merge: expected one of a base file and a make target")
	case m.Target != "":
		if !targetPattern.MatchString(m.Target) {
			return fmt.Errorf("make target %q: expected one that makes a configuration, such as x86_64_defconfig", m.Target)
		}
		if err := m.make(ctx, tree, file, m.Target); err != nil {
			return err
		}
		if err := os.Rename(file, base); err != nil {
			return fmt.Errorf("keep what make %s made: %w", m.Target, err)
		}
	default:
		if err := copyConfig(m.Base, base); err != nil {
			return err
		}
	}
	basis, err := ReadConfig(base)
	if err != nil {
		return err
	}
	fragment := filepath.Join(work, "kata-qat.config")
	if err := os.WriteFile(fragment, lines(asked, basis), 0o644); err != nil {
		return fmt.Errorf("write the options to merge: %w", err)
	}
	// With -m the script only merges: it would run make in the tree, and judge
	// the result by rules that know no alternative values.
	script := filepath.Join(tree.dir, mergeScript)
	if err := m.run(ctx, work, file, "sh", script, "-m", "-O", m.Output, base, fragment); err != nil {
		return err
	}
	if !m.Minimal {
		return m.make(ctx, tree, file, "olddefconfig")
	}
	all := filepath.Join(work, "merged.config")
	if err := os.Rename(file, all); err != nil {
		return fmt.Errorf("keep what was merged: %w", err)
	}
	return m.make(ctx, tree, file, "KCONFIG_ALLCONFIG="+all, "allnoconfig")
}

var targetPattern = lazyregexp.New(`^[A-Za-z0-9_./-]*config$`)

// copyConfig copies a configuration, which may be compressed.
func copyConfig(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("read base config: %w", err)
	}
	defer f.Close()
	text, err := plain(f)
	if err != nil {
		return fmt.Errorf("read base config %s: %w", from, err)
	}
	if _, err := ParseConfig(bytes.NewReader(text)); err != nil {
		return fmt.Errorf("read base config %s: %w", from, err)
	}
	return os.WriteFile(to, text, 0o644)
}

// lines writes the options as a fragment. What the base, or an option before, has
// in another way that will do stays so: a driver that is built in is not made a
// module.
func lines(asked []request, base *Config) []byte {
	var order []string
	values := make(map[string]string)
	for _, r := range asked {
		have, ok := values[r.name]
		if !ok {
			have, _ = base.Value(r.name)
			order = append(order, r.name)
		}
		if !slices.Contains(r.accept, have) {
			have = r.value
		}
		values[r.name] = have
	}
	var b bytes.Buffer
	for _, name := range order {
		fmt.Fprintln(&b, option(name, values[name]))
	}
	return b.Bytes()
}

func (m Merge) make(ctx context.Context, tree *tree, file string, args ...string) error {
	args = append([]string{"-s", "-C", tree.dir, "O=" + m.Output, "ARCH=" + arch}, args...)
	return m.run(ctx, m.Output, file, "make", args...)
}

// run runs a command in dir that reads or writes the configuration file.
func (m Merge) run(ctx context.Context, dir, file, name string, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &said, &said
	if m.Log != nil {
		cmd.Stdout, cmd.Stderr = m.Log, io.MultiWriter(m.Log, &said)
	}
	cmd.Env = append(environment(), "KCONFIG_CONFIG="+file, "LC_ALL=C")
	// make's children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("configure kernel tree %s: %w: install make, gcc, flex and bison", m.Source, err)
	}
	if err != nil {
		return fmt.Errorf("configure kernel tree %s: %s: %w: %s", m.Source, name+" "+args[len(args)-1], err, lastLines(said.String()))
	}
	return nil
}

// environment is this process's, without what would change what make does.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		switch name {
		case "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GNUMAKEFLAGS", "ARCH", "SUBARCH", "O", "KBUILD_OUTPUT", "KBUILD_DEFCONFIG", "CONFIG_":
			return true
		}
		return strings.HasPrefix(name, "KCONFIG_")
	})
}

// lastLines returns what make says before it gives up; flex and bison are what
// is most often not there.
func lastLines(s string) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	text := strings.Join(all[max(0, len(all)-4):], "; ")
	for _, tool := range []string{"flex", "bison", "gcc"} {
		if strings.Contains(s, tool+": not found") || strings.Contains(s, tool+": command not found") {
			text += ": install " + tool
		}
	}
	return text
}
