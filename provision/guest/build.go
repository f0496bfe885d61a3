package guest

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/unpack"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
)

// buildDir is where kernels and drivers are built, in Options.Out.
const buildDir = ".build"

// builtFile says in a build's directory that it is done.
const builtFile = "built.json"

// target is what a kernel's configuration starts from, where the user names no
// file.
const target = "x86_64_defconfig"

//go:embed kata.config
var kataConfig string

// modulesConfig is without which there is no list of what is built in, and no
// module for an option that has to be one.
const modulesConfig = "CONFIG_MODULES=y\n"

// kernel returns the guest's kernel with the vendor's drivers, if any, among its
// modules. What has to be built for it is built if build is set; otherwise the
// commands that would do it are returned.
func (o *Options) kernel(ctx context.Context, build bool) (k *Kernel, commands [][]string, err error) {
	if o.Source == "" {
		k, err = installed(o.Root, o.Kernel)
	} else {
		k, commands, err = o.buildKernel(ctx, build)
	}
	if err != nil || o.DriverArchive == "" || len(commands) > 0 {
		return k, commands, err
	}
	if err := unpack.CheckDigest(o.DriverArchive, o.DriverSHA256); err != nil {
		return nil, nil, fmt.Errorf("driver archive: %w", err)
	}
	commands, err = o.buildDrivers(ctx, k, build)
	return k, commands, err
}

// kernelBuild is a kernel to be built.
type kernelBuild struct {
	dir    string // all is below it
	source string // the tree
	jobs   int
}

func (b kernelBuild) output() string { return filepath.Join(b.dir, "obj") }
func (b kernelBuild) stage() string  { return filepath.Join(b.dir, "stage") }

// commands are run in order once the kernel is configured.
func (b kernelBuild) commands() [][]string {
	mk := []string{"make", "-C", b.source, "O=" + b.output()}
	return [][]string{
		append(slices.Clone(mk), fmt.Sprintf("-j%d", b.jobs), "bzImage", "modules"),
		// Without depmod, which this machine need not have: package kmod makes the indexes.
		append(slices.Clone(mk), "modules_install", "INSTALL_MOD_PATH="+b.stage(), "INSTALL_MOD_STRIP=1", "DEPMOD=true"),
	}
}

// reproducible keeps the time, the user and the machine out of a kernel (Linux,
// Documentation/kbuild/reproducible-builds.rst).
var reproducible = []string{"KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=kata-qat", "KBUILD_BUILD_HOST=kata-qat", "LC_ALL=C"}

func (o *Options) buildKernel(ctx context.Context, build bool) (*Kernel, [][]string, error) {
	key, isArchive, err := o.sourceKey()
	if err != nil {
		return nil, nil, fmt.Errorf("kernel source: %w", err)
	}
	b := kernelBuild{dir: filepath.Join(o.Out, buildDir, "kernel-"+key), source: o.Source, jobs: runtime.NumCPU()}
	if isArchive {
		b.source = filepath.Join(b.dir, "src")
	}
	if b.source, err = filepath.Abs(b.source); err != nil {
		return nil, nil, err
	}
	var done struct{ Release string }
	if err := readStamp(b.dir, &done); errors.Is(err, fs.ErrNotExist) {
		if !build {
			configure := []string{"kata-qat", "kernel-config", "merge", "--for", string(kernelconfig.Guest), "--profile", string(o.Profile), b.source}
			return nil, append([][]string{configure}, b.commands()...), nil
		}
		if done.Release, err = o.runKernelBuild(ctx, b, isArchive); err != nil {
			return nil, nil, fmt.Errorf("build the kernel: %w", err)
		}
		if err := writeStamp(b.dir, done); err != nil {
			return nil, nil, err
		}
	} else if err != nil {
		return nil, nil, err
	}
	k := &Kernel{Release: done.Release, Image: filepath.Join(b.output(), "arch/x86/boot/bzImage"), Config: filepath.Join(b.output(), ".config"), Build: b.output()}
	return k, nil, k.open(filepath.Join(b.stage(), "lib/modules", done.Release))
}

// sourceKey tells one state of the kernel's sources and their configuration from
// another.
func (o *Options) sourceKey() (key string, isArchive bool, err error) {
	st, err := os.Stat(o.Source)
	if err != nil {
		return "", false, err
	}
	var state string
	if st.IsDir() {
		if _, err := os.Stat(filepath.Join(o.Source, "Kbuild")); err != nil {
			return "", false, fmt.Errorf("%s is no kernel tree: %w", o.Source, err)
		}
		state, err = treeState(o.Source)
	} else {
		state, _, err = digestFile(o.Source)
	}
	if err != nil {
		return "", false, err
	}
	if o.Config != "" {
		config, _, err := digestFile(o.Config)
		if err != nil {
			return "", false, err
		}
		state += config
	}
	selected, err := o.fragments()
	for _, f := range selected {
		state += f.Text
	}
	return sum([]byte(state + modulesConfig + kataConfig))[:16], !st.IsDir(), err
}

// treeState changes when a file of a tree does.
func treeState(dir string) (string, error) {
	var newest, files int64
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files++
			newest = max(newest, info.ModTime().UnixNano())
		}
		return err
	})
	return fmt.Sprintf("%s %d %d", dir, files, newest), err
}

func (o *Options) fragments() ([]kernelconfig.Selected, error) {
	s := kernelconfig.Selection{Side: kernelconfig.Guest, Profiles: []edits.Profile{o.Profile}, Vendor: o.DriverArchive != ""}
	if o.Profile == edits.ProfileGuestKernel {
		for _, f := range o.Families {
			s.Families = append(s.Families, f.Name)
		}
	}
	return kernelconfig.Select(s)
}

func (o *Options) runKernelBuild(ctx context.Context, b kernelBuild, isArchive bool) (release string, err error) {
	if err := os.MkdirAll(b.output(), 0o755); err != nil {
		return "", err
	}
	if isArchive {
		o.progress("unpack the kernel's source", 0, 0)
		if err := unpackTree(ctx, o.Source, b.source); err != nil {
			return "", err
		}
	}
	o.progress("configure the kernel", 0, 0)
	extra := filepath.Join(b.dir, "extra.config")
	merge := kernelconfig.Merge{Source: b.source, Output: b.output(), Base: o.Config, Extra: []string{extra}, Log: o.Log}
	if merge.Fragments, err = o.fragments(); err != nil {
		return "", err
	}
	options := modulesConfig
	if o.Config == "" {
		merge.Target, options = target, options+kataConfig
	}
	if err := os.WriteFile(extra, []byte(options), 0o644); err != nil {
		return "", err
	}
	if _, err := merge.Run(ctx); err != nil {
		return "", err
	}
	for _, c := range b.commands() {
		if err := o.run(ctx, "", reproducible, c); err != nil {
			return "", err
		}
	}
	text, err := os.ReadFile(filepath.Join(b.output(), "include/config/kernel.release"))
	return strings.TrimSpace(string(text)), err
}

// unpackTree unpacks an archive and has its one directory, if it has but one, be
// dir.
func unpackTree(ctx context.Context, archive, dir string) error {
	tmp := dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(dir)); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := unpack.Tar(ctx, archive, tmp); err != nil {
		return err
	}
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	from := tmp
	if len(entries) == 1 && entries[0].IsDir() {
		from = filepath.Join(tmp, entries[0].Name())
	}
	return os.Rename(from, dir)
}

// buildDrivers builds the vendor's drivers for a kernel and puts them among its
// modules.
func (o *Options) buildDrivers(ctx context.Context, k *Kernel, build bool) ([][]string, error) {
	dir := filepath.Join(o.Out, buildDir, "driver-"+o.DriverSHA256[:16]+"-"+k.Release)
	tree := filepath.Join(dir, "src")
	var done struct{ Modules []string }
	if err := readStamp(dir, &done); errors.Is(err, fs.ErrNotExist) {
		if !build {
			return driverCommands(tree, k.Build, true), nil
		}
		if done.Modules, err = o.runDriverBuild(ctx, k, tree); err != nil {
			return nil, fmt.Errorf("build the drivers: %w", err)
		}
		if err := writeStamp(dir, done); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return nil, addModules(k.Tree, tree, done.Modules)
}

// driverCommands build an external module; vendor is the layout of Intel's
// driver package, which has a configure of its own.
func driverCommands(tree, build string, vendor bool) [][]string {
	if vendor {
		return [][]string{{"./configure", "--enable-icp-sriov=guest"}, {"make", "KERNEL_SOURCE_ROOT=" + build}}
	}
	return [][]string{{"make", "-C", build, "M=" + tree, "modules"}}
}

// unpackDrivers unpacks a copy of the archive, which nobody can exchange once its
// digest was looked at.
func (o *Options) unpackDrivers(ctx context.Context, tree string) error {
	if err := os.MkdirAll(filepath.Dir(tree), 0o755); err != nil {
		return err
	}
	own := tree + ".archive"
	defer os.Remove(own)
	if err := unpack.Fetch(o.DriverArchive, own, o.DriverSHA256); err != nil {
		return err
	}
	return unpackTree(ctx, own, tree)
}

func (o *Options) runDriverBuild(ctx context.Context, k *Kernel, tree string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(k.Build, "Makefile")); err != nil {
		return nil, fmt.Errorf("%s is no place to build modules for Linux %s: %w: install its headers", k.Build, k.Release, err)
	}
	o.progress("unpack the drivers' source", 0, 0)
	if err := o.unpackDrivers(ctx, tree); err != nil {
		return nil, err
	}
	_, err := os.Stat(filepath.Join(tree, "configure"))
	for _, c := range driverCommands(tree, k.Build, err == nil) {
		if err := o.run(ctx, tree, append([]string{"KERNEL_SOURCE_ROOT=" + k.Build}, reproducible...), c); err != nil {
			return nil, err
		}
	}
	var modules []string
	err = filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(p) == ".ko" {
			rel, err := filepath.Rel(tree, p)
			modules = append(modules, rel)
			return err
		}
		return err
	})
	if err == nil && len(modules) == 0 {
		err = fmt.Errorf("%s has no module after the build: expected the source of kernel drivers", o.DriverArchive)
	}
	return modules, err
}

// run runs one command and tells of its progress by the lines that it prints.
func (o *Options) run(ctx context.Context, dir string, env, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	// make's children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	tail := make(chan []string)
	go func() { tail <- o.follow(out) }()
	err := cmd.Wait()
	in.Close()
	last := <-tail
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, strings.Join(last, "; "))
	}
	return nil
}

// follow reads what a command prints and returns its last lines.
func (o *Options) follow(r io.Reader) (last []string) {
	const keep = 5
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if o.Log != nil {
			fmt.Fprintln(o.Log, lines.Text())
		}
		text := strings.TrimSpace(lines.Text())
		o.progress(text, n, 0)
		if last = append(last, text); len(last) > keep {
			last = last[1:]
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line too long must not stop the command
	return last
}

func readStamp(dir string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, builtFile))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func writeStamp(dir string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, builtFile), b, 0o644)
}
