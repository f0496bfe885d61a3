package rootimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/initrd"
	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// File is a file to put into an image, as root's.
type File struct {
	Path    string // without links on the way
	Perm    fs.FileMode
	Target  string                 // of a link
	Content func() ([]byte, error) // of anything else
}

// plainPath are the names that debugfs takes without quotes.
var plainPath = lazyregexp.New(`^[A-Za-z0-9._+@,=:/-]+$`)

// Probe tells what of some names is in the image: them, the directories above
// them and where links lead. What was not asked for is not in the result.
func (i *Image) Probe(ctx context.Context, names []string) (*initrd.Root, error) {
	root := &initrd.Root{Entries: map[string]initrd.Entry{}}
	asked := map[string]bool{}
	for {
		var ask []string
		for _, name := range names {
			for _, resolve := range []func(string) (string, error){root.Resolve, lookup(root)} {
				p, err := resolve(name)
				if err != nil {
					return nil, fmt.Errorf("read the image %s: %w", i.File, err)
				}
				for ; p != "." && p != ""; p = path.Dir(p) {
					if !asked[p] {
						asked[p], ask = true, append(ask, p)
					}
				}
			}
		}
		if len(ask) == 0 {
			return root, nil
		}
		if err := i.stat(ctx, ask, root.Entries); err != nil {
			return nil, err
		}
	}
}

// lookup is the path that a name leads to even if nothing is there.
func lookup(root *initrd.Root) func(string) (string, error) {
	return func(name string) (string, error) {
		p, _, err := root.Lookup(name)
		if errors.Is(err, fs.ErrNotExist) {
			return root.Resolve(name)
		}
		return p, err
	}
}

var (
	statType   = lazyregexp.New(`(?m)^Inode: \d+ +Type: (.+?) +Mode: +(\d+) `)
	statTarget = lazyregexp.New(`(?m)^Fast link dest: "(.*)"$`)
	statTypes  = map[string]int{"directory": cpio.TypeDir, "regular": cpio.TypeRegular, "symlink": cpio.TypeLink}
)

func (i *Image) stat(ctx context.Context, names []string, into map[string]initrd.Entry) error {
	var script strings.Builder
	for _, n := range names {
		if !plainPath.MatchString(n) {
			return fmt.Errorf("read the image %s: name %q: expected letters, digits and ._+@,=:/-", i.File, n)
		}
		fmt.Fprintf(&script, "stat /%s\n", n)
	}
	out, complaints, err := i.debugfs(ctx, script.String())
	if err != nil {
		return err
	}
	for _, c := range complaints {
		if !strings.Contains(c, "File not found by ext2_lookup") {
			return fmt.Errorf("read the image %s: debugfs: %s", i.File, c)
		}
	}
	for answer := range strings.SplitSeq("\n"+out, "\ndebugfs: stat /") {
		name, text, _ := strings.Cut(answer, "\n")
		m := statType.FindStringSubmatch(text)
		if m == nil {
			continue
		}
		perm, err := strconv.ParseInt(m[2], 8, 32)
		if err != nil {
			return fmt.Errorf("read the image %s: mode %q of /%s: %w", i.File, m[2], name, err)
		}
		e := initrd.Entry{Mode: statTypes[m[1]] | int(perm)}
		if e.Mode&cpio.TypeMask == cpio.TypeLink {
			t := statTarget.FindStringSubmatch(text)
			if t == nil {
				return fmt.Errorf("read the image %s: link /%s leads to a name of more than 59 bytes", i.File, name)
			}
			e.Target = t[1]
		}
		into[name] = e
	}
	return nil
}

// Write puts files into the image, in the place of those that are there. The
// image is to be a copy: after an error it is of no use.
func (i *Image) Write(ctx context.Context, files []File) error {
	if err := i.fsck(ctx); err != nil {
		return fmt.Errorf("the image's file system is not clean as it is: %w", err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
	}
	root, err := i.Probe(ctx, names)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(i.File), ".files-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script, err := i.script(root, files, dir)
	if err != nil {
		return err
	}
	_, complaints, err := i.debugfs(ctx, script, "-w")
	if err == nil && len(complaints) > 0 {
		err = errors.New(complaints[0])
		if strings.Contains(complaints[0], "allocate") || strings.Contains(complaints[0], "No free space") {
			err = fmt.Errorf("%w: its file system is full: make it larger (truncate, resize2fs) or use an initrd", err)
		}
	}
	if err != nil {
		return fmt.Errorf("write into the image %s: debugfs: %w", i.File, err)
	}
	return i.fsck(ctx)
}

func (i *Image) script(root *initrd.Root, files []File, dir string) (string, error) {
	var b strings.Builder
	made := map[string]bool{".": true}
	var makeDir func(name string)
	makeDir = func(name string) {
		if _, ok := root.Entries[name]; ok || made[name] {
			return
		}
		makeDir(path.Dir(name))
		made[name] = true
		fmt.Fprintf(&b, "mkdir /%s\nset_inode_field /%s mode 040755\n", name, name)
	}
	for n, f := range files {
		if !plainPath.MatchString(f.Path) || f.Target != "" && !plainPath.MatchString(f.Target) {
			return "", fmt.Errorf("write %q into the image: expected a name of letters, digits and ._+@,=:/-", f.Path)
		}
		makeDir(path.Dir(f.Path))
		if e, ok := root.Entries[f.Path]; ok {
			if e.Mode&cpio.TypeMask == cpio.TypeDir {
				return "", fmt.Errorf("write /%s into the image: it has a directory of that name", f.Path)
			}
			fmt.Fprintf(&b, "rm /%s\n", f.Path)
		}
		if f.Target != "" {
			fmt.Fprintf(&b, "symlink /%s %s\n", f.Path, f.Target)
			continue
		}
		content, err := f.Content()
		if err != nil {
			return "", err
		}
		source := filepath.Join(dir, strconv.Itoa(n))
		if err := os.WriteFile(source, content, 0o644); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "write %d /%s\nset_inode_field /%s mode 0100%03o\n", n, f.Path, f.Path, f.Perm)
	}
	fmt.Fprintf(&b, "close\n")
	return "lcd " + dir + "\n" + b.String(), nil
}

// Read reads files out of the image. Those that are not there are left out.
func (i *Image) Read(ctx context.Context, names []string, each func(path string, mode int, target string, content []byte)) error {
	root, err := i.Probe(ctx, names)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kata-qat-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script := "lcd " + dir + "\n"
	for n, name := range names {
		if e, ok := root.Entries[name]; ok && e.Mode&cpio.TypeMask == cpio.TypeRegular {
			script += fmt.Sprintf("dump /%s %d\n", name, n)
		}
	}
	_, complaints, err := i.debugfs(ctx, script)
	if err == nil && len(complaints) > 0 {
		err = errors.New(complaints[0])
	}
	if err != nil {
		return fmt.Errorf("read the image %s: debugfs: %w", i.File, err)
	}
	for n, name := range names {
		e, ok := root.Entries[name]
		if !ok {
			continue
		}
		var content []byte
		if e.Mode&cpio.TypeMask == cpio.TypeRegular {
			if content, err = os.ReadFile(filepath.Join(dir, strconv.Itoa(n))); err != nil {
				return err
			}
		}
		each(name, e.Mode, e.Target, content)
	}
	return nil
}

// fsck has e2fsck look at the file system.
func (i *Image) fsck(ctx context.Context) error {
	out, err := i.command(ctx, "e2fsck", "-f", "-n", i.device()).CombinedOutput()
	if err != nil {
		lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(l string) bool {
			return strings.HasPrefix(l, "e2fsck ") || strings.HasPrefix(l, "Pass ") || l == ""
		})
		return fmt.Errorf("check the image %s: e2fsck: %w: %s%s", i.File, err, strings.Join(lines[:min(len(lines), 3)], "; "), missing(err))
	}
	return nil
}

// debugfs runs commands of debugfs, whose exit status says nothing of them. What
// it prints of its own accord are complaints.
func (i *Image) debugfs(ctx context.Context, script string, args ...string) (out string, complaints []string, err error) {
	cmd := i.command(ctx, "debugfs", append(args, "-f", "-", i.device())...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(script), &stdout, &stderr
	err = cmd.Run()
	for line := range strings.Lines(stderr.String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "debugfs 1.") {
			complaints = append(complaints, line)
		}
	}
	var status *exec.ExitError
	if errors.As(err, &status) && status.Exited() && len(complaints) > 0 {
		err = nil // of a command, and so among the complaints
	}
	if err != nil {
		err = fmt.Errorf("run debugfs: %w%s", err, missing(err))
	}
	return stdout.String(), complaints, err
}

func missing(err error) string {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return ": install e2fsprogs"
	}
	return ""
}

func (i *Image) device() string { return fmt.Sprintf("%s?offset=%d", i.File, i.Offset) }

func (i *Image) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// The tools are in sbin, which a user's path need not have.
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p := filepath.Join(dir, name); exec.Command(p).Err == nil {
			if _, err := os.Stat(p); err == nil {
				name = p
				break
			}
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	// A time that does not pass makes the same image of the same files.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "E2FSPROGS_FAKE_TIME=1")
	return cmd
}
