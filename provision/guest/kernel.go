package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod"
	kernelconfig "github.com/kata-qat/kata-qat/kernel-config"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// Kernel is what a guest boots.
type Kernel struct {
	Release string
	Image   string // the file
	SHA256  string
	Size    int64
	Tree    *kmod.Tree
	Config  string // the file with its configuration; "" where there is none
	// Build is where modules can be built for it: the headers of a distribution,
	// or the directory in which it was built.
	Build string
}

// errNoKernel is a release without an image.
var errNoKernel = errors.New("no such kernel is installed")

var releaseFiles = []string{"modules.dep", "modules.builtin", "modules.order"}

// installed finds an installed kernel by its release, or in a directory: one
// that is such a kernel's lib/modules/RELEASE, or has boot and lib/modules in
// it with one kernel.
func installed(root, kernel string) (*Kernel, error) {
	if kernel == "" {
		release, err := running(root)
		if err != nil {
			return nil, err
		}
		k, err := openKernel(root, modulesDir(root, release), release)
		if errors.Is(err, errNoKernel) { // in a container, or from elsewhere
			err = plan.Absent(err)
		}
		return k, err
	}
	if !isDirectory(kernel) || isDirectory(modulesDir(root, kernel)) {
		return openKernel(root, modulesDir(root, kernel), kernel)
	}
	dir, err := filepath.Abs(kernel)
	if err != nil {
		return nil, err
	}
	for _, name := range releaseFiles {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return openKernel(strings.TrimSuffix(filepath.Join(dir, "../../.."), "/usr"), dir, filepath.Base(dir))
		}
	}
	var releases []string
	for _, pattern := range []string{"lib/modules/*/modules.builtin", "usr/lib/modules/*/modules.builtin"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if r := filepath.Base(filepath.Dir(f)); len(releases) == 0 || releases[0] != r {
				releases = append(releases, r)
			}
		}
	}
	if len(releases) != 1 {
		return nil, fmt.Errorf("find the kernel in %s: it has %d kernels with modules (%s): expected one: name its lib/modules/RELEASE", dir, len(releases), strings.Join(releases, ", "))
	}
	return openKernel(dir, modulesDir(dir, releases[0]), releases[0])
}

// running is the release of the kernel that runs.
func running(root string) (string, error) {
	b, err := os.ReadFile(filepath.Join(root, "proc/sys/kernel/osrelease"))
	if err != nil {
		return "", fmt.Errorf("find the kernel that runs: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func isDirectory(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

func modulesDir(root, release string) string {
	dir := filepath.Join(root, "lib/modules", release)
	if _, err := os.Stat(dir); err != nil {
		return filepath.Join(root, "usr/lib/modules", release)
	}
	return dir
}

func openKernel(root, modules, release string) (*Kernel, error) {
	k := &Kernel{Release: release}
	for _, name := range []string{filepath.Join(root, "boot/vmlinuz-"+release), filepath.Join(modules, "vmlinuz")} {
		if _, err := os.Stat(name); err == nil {
			k.Image = name
			break
		}
	}
	if k.Image == "" {
		return nil, fmt.Errorf("find kernel %s: %w: neither %s nor %s is there: name an installed kernel, as \"ls %s\" shows them, or a directory that has one", release, errNoKernel,
			filepath.Join(root, "boot/vmlinuz-"+release), filepath.Join(modules, "vmlinuz"), filepath.Dir(modules))
	}
	for _, name := range []string{filepath.Join(root, "boot/config-"+release), filepath.Join(modules, "config")} {
		if _, err := os.Stat(name); err == nil {
			k.Config = name
			break
		}
	}
	k.Build = filepath.Join(modules, "build")
	return k, k.open(modules)
}

// open reads the kernel's image and modules.
func (k *Kernel) open(modules string) error {
	f, err := os.Open(k.Image)
	if err != nil {
		return fmt.Errorf("read the kernel: %w", err)
	}
	defer f.Close()
	release, err := imageRelease(f)
	if err != nil {
		return fmt.Errorf("read the kernel %s: %w", k.Image, err)
	}
	if release != "" && release != k.Release {
		return fmt.Errorf("the kernel %s is Linux %s, but its modules are to be those of %s: name the two of one kernel", k.Image, release, k.Release)
	}
	if k.SHA256, k.Size, err = digest(io.NewSectionReader(f, 0, 1<<40)); err != nil {
		return fmt.Errorf("read the kernel %s: %w", k.Image, err)
	}
	k.Tree, err = kmod.Open(modules, k.Release)
	return err
}

// imageRelease is the release that a bzImage says it is, or "" for an image of
// another form (Linux, Documentation/arch/x86/boot.rst, kernel_version).
func imageRelease(r io.ReaderAt) (string, error) {
	var head [0x210]byte
	if _, err := r.ReadAt(head[:], 0); errors.Is(err, io.EOF) {
		return "", errors.New("it is too short for a kernel")
	} else if err != nil {
		return "", err
	}
	if string(head[0x202:0x206]) != "HdrS" {
		if string(head[:4]) == "\x7fELF" {
			return "", nil
		}
		return "", fmt.Errorf("it begins with % x: expected a bzImage or an ELF kernel", head[:4])
	}
	var text [256]byte
	n, err := r.ReadAt(text[:], int64(binary.LittleEndian.Uint16(head[0x20e:]))+0x200)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	release, _, _ := bytes.Cut(text[:n], []byte(" "))
	return string(release), nil
}

func digest(r io.Reader) (sum string, size int64, err error) {
	h := sha256.New()
	size, err = io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// digestFile is the SHA-256 of a file in hexadecimal, and its size.
func digestFile(name string) (sum string, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	return digest(f)
}

// notes tells what of the options that QAT needs the kernel's configuration
// lacks. Modules that the guest needs are looked for themselves, so these are
// hints, not a verdict.
func (k *Kernel) notes(profile edits.Profile) ([]string, error) {
	if k.Config == "" {
		return nil, nil
	}
	config, err := kernelconfig.ReadConfig(k.Config)
	if err != nil {
		return nil, err
	}
	fragments, err := kernelconfig.Select(kernelconfig.Selection{Side: kernelconfig.Guest, Profiles: []edits.Profile{profile}})
	if err != nil {
		return nil, err
	}
	var notes []string
	for _, r := range kernelconfig.Check(config, config.Version, fragments) {
		if r.Failed() {
			notes = append(notes, fmt.Sprintf("Linux %s has CONFIG_%s %s, expected %s (fragment %s)", k.Release, r.Symbol, r.State, strings.Join(r.Expected, " or "), r.Fragment))
		}
	}
	return notes, nil
}

// addModules puts modules that were built below dir into a tree, before those of
// the kernel itself.
func addModules(tree *kmod.Tree, dir string, files []string) error {
	for _, f := range files {
		m, err := kmod.ReadModule(filepath.Join(dir, f))
		if err != nil {
			return err
		}
		tree.Add(m, "updates/"+m.Name+".ko")
	}
	return nil
}
