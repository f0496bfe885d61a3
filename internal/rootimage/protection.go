package rootimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kata-qat/kata-qat/internal/verity"
)

// Protected tells whether there is something behind the file system that may be
// dm-verity's hashes. Then Protection is to be asked before Write, and Protect
// called after it.
func (i *Image) Protected() bool { return i.Hashes.Size > 0 }

// Protection finds the parameters of dm-verity that an image has: the given ones,
// or without any those of a file root_hash*.txt beside it, as Kata's releases have
// them. They are known to be the image's by the first block of its hashes; Check
// reads all.
func (i *Image) Protection(given string) (verity.Params, error) {
	p, err := i.protection(given)
	if err != nil {
		return p, fmt.Errorf("read the image %s: dm-verity protects its root: %w", i.File, err)
	}
	return p, nil
}

func (i *Image) protection(given string) (verity.Params, error) {
	texts := []string{given}
	if given == "" {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(i.File), "root_hash*.txt"))
		if err != nil {
			return verity.Params{}, err
		}
		texts = nil
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return verity.Params{}, err
			}
			texts = append(texts, string(b))
		}
	}
	var errs []error
	for _, text := range texts {
		p, err := verity.Parse(text)
		if err == nil {
			err = i.fits(p)
		}
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	if given != "" {
		return verity.Params{}, errors.Join(errs...)
	}
	// Those of other images lie there, too.
	return verity.Params{}, fmt.Errorf("its parameters are not known (%d files root_hash*.txt beside it, none of them its own): name them with --base-verity, as kernel_verity_params of Kata's configuration has them, or use an image or an initrd that is not protected", len(texts))
}

// fits refuses parameters that are not the image's.
func (i *Image) fits(p verity.Params) error {
	if p.DataSize() < i.Size || p.DataSize() > i.Hashes.Offset-i.Offset || p.TreeSize() > i.Hashes.Size {
		return fmt.Errorf("its parameters are for %d bytes with %d bytes of hashes, and it has a file system of %d with %d behind it", p.DataSize(), p.TreeSize(), i.Size, i.Hashes.Size)
	}
	f, err := os.Open(i.File)
	if err != nil {
		return err
	}
	defer f.Close()
	ours, err := p.Begins(io.NewSectionReader(f, i.Hashes.Offset, i.Hashes.Size))
	if err == nil && !ours {
		err = fmt.Errorf("root hash %x is not that of its hashes", p.RootHash)
	}
	return err
}

// Check reads the whole file system and its hashes.
func (i *Image) Check(ctx context.Context, p verity.Params) error {
	f, err := os.Open(i.File)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.Check(ctx, io.NewSectionReader(f, i.Offset, p.DataSize()), io.NewSectionReader(f, i.Hashes.Offset, i.Hashes.Size)); err != nil {
		return fmt.Errorf("check the image %s: %w", i.File, err)
	}
	return nil
}

// Protect makes the hashes again, after the file system was changed. What else was
// in their partition stays.
func (i *Image) Protect(ctx context.Context, p verity.Params) (verity.Params, error) {
	f, err := os.OpenFile(i.File, os.O_RDWR, 0)
	if err != nil {
		return p, err
	}
	defer f.Close()
	p, err = p.Make(ctx, io.NewSectionReader(f, i.Offset, p.DataSize()), io.NewOffsetWriter(f, i.Hashes.Offset))
	if err = errors.Join(err, f.Close()); err != nil {
		return p, fmt.Errorf("make the hashes of the image %s: %w", i.File, err)
	}
	return p, nil
}
