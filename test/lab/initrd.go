package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/test/lab/report"
)

const scriptPath = report.Directory + "/script"

// provided are the modules that every guest has.
var provided = []string{
	"vfio-pci", "vfio_iommu_type1", "pci-pf-stub", "overlay",
	"qat_dh895xcc", "qat_c62x", "qat_c3xxx", "qat_4xxx", "qat_420xx", "qat_6xxx",
	"qat_dh895xccvf", "qat_c62xvf", "qat_c3xxxvf", "qat_4xxxvf",
}

// accounts are the files without which programs do not know who they are.
var accounts = map[string]string{
	"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
	"/etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"/etc/hosts":         "127.0.0.1 localhost lab\n",
	"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

// writeInitrd writes the guest's root: it is not compressed, because to unpack
// it under emulation takes longer than to load it.
func (l *lab) writeInitrd(ctx context.Context, file string, cfg Config) error {
	init, err := Build(ctx, "./test/lab/guest/init")
	if err != nil {
		return err
	}
	vfiotest, err := Build(ctx, "./test/lab/vfiotest")
	if err != nil {
		return err
	}
	orders, err := json.Marshal(cfg.orders())
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	a := cpio.NewWriter(f)
	// The kernel opens the console for init, and Go's runtime wants the null
	// device, before init can mount /dev.
	a.Char("/dev/console", 5, 1)
	a.Char("/dev/null", 1, 3)
	for _, d := range []string{"/root", "/var/lib", "/var/log", "/mnt", "/opt"} {
		a.Dir(d)
	}
	a.File("/init", init)
	a.Bytes(path.Join(report.Directory, report.OrdersFile), 0o644, string(orders))
	a.Bytes(scriptPath, 0o755, cfg.Script)
	files, modules := cfg.Files, slices.Concat(provided, cfg.Provide, cfg.Modules)
	if cfg.Disk != "" { // which has all modules
		modules = []string{"virtio_pci", "virtio_blk", "ext4"}
		files = make(map[string]string)
		for name, file := range cfg.Files {
			files[path.Join(report.DiskFiles, name)] = file
		}
	}
	if err := addFiles(a, files); err != nil {
		return err
	}
	a.File("/bin/busybox", "/bin/busybox")
	a.Link("/bin/sh", "busybox")
	a.File("/bin/vfiotest", vfiotest)
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		a.Bytes(name, 0o644, accounts[name])
	}
	if err := l.modules.add(a, modules); err != nil {
		return err
	}
	if err := a.Close(); err != nil {
		return err
	}
	return f.Close()
}

// addFiles adds files and whole directories. A link that is named itself stands
// for what it leads to; inside a directory it stays a link.
func addFiles(a *cpio.Writer, files map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		source, err := filepath.EvalSymlinks(files[name])
		if err != nil {
			return err
		}
		err = filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return addFile(a, path.Join(name, strings.TrimPrefix(p, source)), p, d)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func addFile(a *cpio.Writer, name, source string, d fs.DirEntry) error {
	switch {
	case d.IsDir():
		a.Dir(name)
		return a.Err()
	case d.Type() == fs.ModeSymlink:
		target, err := os.Readlink(source)
		if err != nil {
			return err
		}
		a.Link(name, target)
		return a.Err()
	}
	libs, err := libraries(source)
	if err != nil {
		return err
	}
	a.File(name, source)
	for _, lib := range libs {
		a.File(lib, lib)
	}
	return a.Err()
}

// libraries are the paths of the dynamic linker and the libraries that a
// program is linked with; none if it is static or no program.
func libraries(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, nil // no program
	}
	defer f.Close()
	if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil, nil
	}
	out, err := exec.Command("ldd", file).Output()
	if err != nil {
		return nil, fmt.Errorf("find the libraries of %s: ldd: %w", file, err)
	}
	var libs []string
	for line := range bytes.Lines(out) {
		// "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "/lib64/ld-linux-x86-64.so.2 (0x…)"
		for _, field := range strings.Fields(string(line)) {
			if strings.HasPrefix(field, "/") {
				libs = append(libs, field)
			}
		}
		if bytes.Contains(line, []byte("not found")) {
			return nil, fmt.Errorf("find the libraries of %s: %s", file, bytes.TrimSpace(line))
		}
	}
	return libs, nil
}
