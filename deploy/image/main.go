// Command image writes the container image of kata-qat as a tar archive, which
// "ctr images import" takes: the programs, the licence, and what makes a node
// without Kubernetes. There is no shell in it and nothing of a distribution: what
// provisioning runs of the machine (modprobe, update-grub, systemctl) it runs with
// the machine's root as its own. The same programs give the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kata-qat/kata-qat/internal/ociimage"
)

func main() {
	out := flag.String("o", "build/image/kata-qat.tar", "`FILE` to write")
	bin := flag.String("bin", "bin", "`DIR` with the programs")
	ref := flag.String("ref", "", "`NAME` of the image, with its tag")
	version := flag.String("version", "", "`VERSION` of the programs")
	commit := flag.String("commit", "", "`COMMIT` that they were built from")
	flag.Parse()
	if err := run(*out, *bin, *ref, *version, *commit); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// programs are in the image where the shim is on a machine, too.
var programs = []string{"kata-qat", "kata-qat-full", "containerd-shim-kata-qat-v2"}

// others are files of the repository, by their path in the image.
var others = map[string]string{
	"usr/share/licenses/kata-qat/LICENSE":               "LICENSE",
	"usr/local/lib/kata-qat/bootstrap-node.sh":          "scripts/bootstrap-node.sh",
	"usr/local/lib/kata-qat/kata-qat.service":           "deploy/systemd/kata-qat.service",
	"usr/local/lib/kata-qat/kata-qat-bootstrap.service": "deploy/systemd/kata-qat-bootstrap.service",
}

func run(out, bin, ref, version, commit string) error {
	if ref == "" {
		return errors.New("-ref: expected the image's name, for example ghcr.io/kata-qat/kata-qat:0.1.0")
	}
	im := ociimage.Image{
		Ref: ref, Architecture: runtime.GOARCH, Compress: true,
		Dirs: []string{"dev", "etc", "host", "proc", "run", "sys", "tmp"},
		Config: v1.ImageConfig{
			Entrypoint: []string{"/usr/local/bin/kata-qat"}, Env: []string{"PATH=/usr/local/bin"},
			Labels: map[string]string{
				v1.AnnotationTitle: "kata-qat", v1.AnnotationLicenses: "Apache-2.0",
				v1.AnnotationSource:  "https://github.com/kata-qat/kata-qat",
				v1.AnnotationVersion: version, v1.AnnotationRevision: commit,
			},
		},
	}
	for _, name := range programs {
		if err := ociimage.CheckStatic(filepath.Join(bin, name)); err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			return err
		}
		im.Files = append(im.Files, ociimage.File{Path: "usr/local/bin/" + name, Content: b})
	}
	for path, source := range others {
		b, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		f := ociimage.File{Path: path, Mode: 0o644, Content: b}
		if filepath.Ext(path) == ".sh" {
			f.Mode = 0o755
		}
		im.Files = append(im.Files, f)
	}
	return write(out, im)
}

// write writes the archive, whole or not at all, and says what it is.
func write(out string, im ociimage.Image) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".image")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	digests, err := ociimage.Write(f, im)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return err
	}
	fmt.Println(im.Ref + "@" + digests[0].String())
	return nil
}
