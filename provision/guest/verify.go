package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/compression"
	"github.com/kata-qat/kata-qat/internal/cpio"
	"github.com/kata-qat/kata-qat/internal/rootimage"
)

// Verify checks a guest's directory, or Options.Out for the current one, against
// its manifest: kernel and root as a whole, the base in an initrd, and every
// file that was put in. All that is wrong is in the error.
func Verify(ctx context.Context, dir string) error {
	if err := verify(ctx, dir); err != nil {
		return fmt.Errorf("verify the guest in %s: %w", dir, err)
	}
	return nil
}

func verify(ctx context.Context, dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, Current)); err == nil {
		dir = filepath.Join(dir, Current)
	}
	m, err := checkFiles(dir)
	if err != nil {
		return err
	}
	root := filepath.Join(dir, m.Root.File)
	var have map[string]FileRecord
	if m.Root.File == ImageFile {
		have, err = imageFiles(ctx, root, m)
	} else {
		have, err = appendedFiles(ctx, root, m)
	}
	if err != nil {
		return err
	}
	return compare(m.Files, have)
}

// checkFiles checks a guest's files as a whole.
func checkFiles(dir string) (*Manifest, error) {
	m, err := ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	return m, errors.Join(
		checkFile(filepath.Join(dir, KernelFile), m.Kernel.SHA256, m.Kernel.Size),
		checkFile(filepath.Join(dir, m.Root.File), m.Root.SHA256, m.Root.Size))
}

func checkFile(name, want string, wantSize int64) error {
	got, size, err := digestFile(name)
	if err != nil {
		return err
	}
	if got != want || size != wantSize {
		return fmt.Errorf("%s has %d bytes and SHA-256 %s, expected %d and %s: make the guest again", name, size, got, wantSize, want)
	}
	return nil
}

// appendedFiles reads the archive that was added to an initrd, and checks that
// what is before it is the base.
func appendedFiles(ctx context.Context, name string, m *Manifest) (map[string]FileRecord, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	got, _, err := digest(io.LimitReader(f, m.Root.Base.Size))
	if err != nil {
		return nil, err
	}
	if got != m.Root.Base.SHA256 {
		return nil, fmt.Errorf("%s does not begin with the base: SHA-256 %s, expected %s", name, got, m.Root.Base.SHA256)
	}
	if _, err := f.Seek(m.Root.Appended, io.SeekStart); err != nil {
		return nil, err
	}
	r, _, err := compression.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("read what was added to %s: %w", name, err)
	}
	defer r.Close()
	a := cpio.NewReader(r)
	all := map[string]FileRecord{}
	for {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("read what was added to %s: %w", name, err)
		}
		rec := FileRecord{Path: "/" + h.Name, Mode: fmt.Sprintf("%04o", h.Mode&0o7777)}
		switch h.Type() {
		case cpio.TypeDir:
			continue
		case cpio.TypeLink:
			target, err := io.ReadAll(io.LimitReader(a, 4096))
			if err != nil {
				return nil, err
			}
			rec.Target = string(target)
		default:
			if rec.SHA256, rec.Size, err = digest(a); err != nil {
				return nil, err
			}
		}
		all[rec.Path] = rec
	}
	// The checksum comes after the last byte.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, fmt.Errorf("read what was added to %s: %w", name, err)
	}
	return all, nil
}

// imageFiles reads the files of a manifest out of an image, and checks the hashes of
// one that is protected.
func imageFiles(ctx context.Context, name string, m *Manifest) (map[string]FileRecord, error) {
	image, err := rootimage.Open(name)
	if err != nil {
		return nil, err
	}
	if image.Protected() || m.Root.Verity != "" {
		p, err := image.Protection(m.Root.Verity)
		if err == nil {
			err = image.Check(ctx, p)
		}
		if err != nil {
			return nil, err
		}
	}
	var names []string
	for _, f := range m.Files {
		names = append(names, strings.TrimPrefix(f.Path, "/"))
	}
	all := map[string]FileRecord{}
	err = image.Read(ctx, names, func(path string, mode int, target string, content []byte) {
		rec := FileRecord{Path: "/" + path, Mode: fmt.Sprintf("%04o", mode&0o7777), Target: target}
		if target == "" {
			rec.SHA256, rec.Size = sum(content), int64(len(content))
		}
		all[rec.Path] = rec
	})
	return all, err
}

func compare(want []FileRecord, have map[string]FileRecord) error {
	var errs []error
	have = maps.Clone(have)
	for _, w := range want {
		h, ok := have[w.Path]
		delete(have, w.Path)
		if !ok {
			errs = append(errs, fmt.Errorf("%s is missing", w.Path))
		} else if h != w {
			errs = append(errs, fmt.Errorf("%s is %+v, expected %+v", w.Path, h, w))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		errs = append(errs, fmt.Errorf("%s is there and not in the manifest", name))
	}
	return errors.Join(errs...)
}
