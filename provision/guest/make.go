package guest

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/rootimage"
)

// Make makes the guest and puts it in the place of the one that is there, which
// is kept until the one after it comes. After an error, or a crash at any
// moment, the one that was there is still there and whole.
func (d *Design) Make(ctx context.Context) (*Manifest, error) {
	if len(d.Commands) > 0 {
		return nil, errors.New("make the guest: its kernel has not been built: prepare it with build")
	}
	if d.Unchanged {
		return d.Manifest, nil
	}
	err := publish(d.options.Out, d.Manifest.ID, func(dir string) error { return d.write(ctx, dir) })
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: make room below %s: some %.0f MiB", err, d.options.Out, mib(d.Manifest.Root.Base.Size+d.Manifest.ModuleBytes+d.Manifest.Kernel.Size))
	}
	if err != nil {
		return nil, fmt.Errorf("make the guest: %w", err)
	}
	return d.Manifest, nil
}

// write writes the guest's files into a new directory.
func (d *Design) write(ctx context.Context, dir string) error {
	const steps = 4
	m := d.Manifest
	d.options.progress("copy the kernel", 0, steps)
	got, _, err := copyFile(ctx, filepath.Join(dir, KernelFile), d.kernel.Image)
	if err == nil && got != m.Kernel.SHA256 {
		err = fmt.Errorf("the kernel %s changed meanwhile", d.kernel.Image)
	}
	if err != nil {
		return err
	}
	d.options.progress("copy the base", 1, steps)
	root := filepath.Join(dir, m.Root.File)
	got, size, err := copyFile(ctx, root, d.options.Base)
	if err == nil && got != m.Root.Base.SHA256 {
		err = fmt.Errorf("the base %s changed meanwhile", d.options.Base)
	}
	if err != nil {
		return err
	}
	d.options.progress("add "+fmt.Sprint(len(m.Files))+" files", 2, steps)
	if d.image != nil {
		err = d.writeImage(ctx, root)
	} else {
		err = d.appendTo(ctx, root, size)
	}
	if err != nil {
		return err
	}
	d.options.progress("check it", 3, steps)
	if m.Root.SHA256, m.Root.Size, err = digestFile(root); err != nil {
		return err
	}
	m.GrownBytes = m.Root.Size - m.Root.Base.Size
	if err := m.write(dir); err != nil {
		return err
	}
	if err := Verify(ctx, dir); err != nil {
		return fmt.Errorf("what was written is not what was to be written: %w", err)
	}
	d.options.progress("put it in place", steps, steps)
	return nil
}

// appendTo adds the archive to an initrd. The kernel unpacks parts one after the
// other, and expects one that is not compressed at a multiple of 4.
func (d *Design) appendTo(ctx context.Context, name string, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	gap := -size & 3
	if _, err := f.Write(make([]byte, gap)); err != nil {
		return err
	}
	d.Manifest.Root.Appended = size + gap
	var w io.WriteCloser = nopCloser{f}
	if !d.options.Plain {
		w = gzip.NewWriter(f) // without a name and a time
	}
	a := cpio.NewWriter(w, d.contents.directories...)
	for _, file := range d.contents.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := put(a, file); err != nil {
			return err
		}
	}
	return errors.Join(a.Close(), w.Close(), f.Close())
}

func put(a *cpio.Writer, f file) error {
	a.Replace(f.path)
	if f.target != "" {
		a.Link(f.path, f.target)
		return a.Err()
	}
	content, err := f.read()
	if err != nil {
		return err
	}
	a.Bytes(f.path, f.perm, string(content))
	return a.Err()
}

// read returns the content of a file, which is to be what it was when the
// design was made.
func (f file) read() ([]byte, error) {
	content, err := f.content()
	if err == nil && sum(content) != f.sha256 {
		err = fmt.Errorf("%s changed meanwhile", f.path)
	}
	return content, err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// writeImage puts the files into the image's file system.
func (d *Design) writeImage(ctx context.Context, name string) error {
	image, err := rootimage.Open(name)
	if err != nil {
		return err
	}
	var files []rootimage.File
	for _, f := range d.contents.files {
		files = append(files, rootimage.File{Path: f.path, Perm: f.perm, Target: f.target, Content: f.read})
	}
	if err := image.Write(ctx, files); err != nil || !image.Protected() {
		return err
	}
	// With the base's salt: the same inputs give the same bytes.
	protected, err := image.Protect(ctx, d.verity)
	d.Manifest.Root.Verity = protected.String()
	return err
}

// copyFile copies a file and returns the digest of what it copied. Runs of
// zeros become holes: most of an image is empty.
func copyFile(ctx context.Context, to, from string) (sum string, size int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return "", 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", 0, err
	}
	defer out.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	zeros := string(make([]byte, len(buf)))
	for {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		n, err := io.ReadFull(in, buf)
		h.Write(buf[:n])
		if n == len(buf) && strings.Compare(string(buf), zeros) == 0 {
			_, werr := out.Seek(int64(n), io.SeekCurrent)
			if werr != nil {
				return "", 0, werr
			}
		} else if _, werr := out.Write(buf[:n]); werr != nil {
			return "", 0, werr
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return "", 0, err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), size, errors.Join(out.Truncate(size), out.Close())
}
