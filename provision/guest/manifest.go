package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/compression"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Names in a guest's directory. The root is either of the two.
const (
	KernelFile   = "vmlinuz"
	InitrdFile   = "initrd"
	ImageFile    = "image"
	ManifestFile = "manifest.json"
	// Current is the link, in Options.Out, to the directory of the guest to use.
	Current = "current"
)

const manifestVersion = 1

// Manifest says what a guest is made of.
type Manifest struct {
	Version int    `json:"version"`
	Tool    string `json:"tool"` // what made it
	// ID is the guest's directory: the digest of all that it was made from.
	ID       string         `json:"id"`
	Profile  edits.Profile  `json:"profile"`
	Families []FamilyRecord `json:"families"`
	Kernel   KernelRecord   `json:"kernel"`
	Root     RootRecord     `json:"root"`
	// KernelParams are to be added to the guest's kernel command line, and
	// AgentModules to be loaded by Kata's agent (kernel_modules).
	KernelParams []string `json:"kernelParams,omitempty"`
	AgentModules []string `json:"agentModules"`
	// Files are those that were put into the root.
	Files []FileRecord `json:"files"`
	// ModuleBytes is the size of the modules among them, without compression.
	ModuleBytes int64 `json:"moduleBytes"`
	// GrownBytes is how much larger the root is than its base.
	GrownBytes int64 `json:"grownBytes"`
}

// FamilyRecord is a family that a guest serves.
type FamilyRecord struct {
	Name     string       `json:"name"`
	Services qat.Services `json:"services,omitempty"`
}

// KernelRecord is a guest's kernel.
type KernelRecord struct {
	File    string `json:"file"`
	Release string `json:"release"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
}

// RootRecord is a guest's root.
type RootRecord struct {
	File   string     `json:"file"`
	SHA256 string     `json:"sha256"`
	Size   int64      `json:"size"`
	Base   BaseRecord `json:"base"`
	// Verity are the parameters of dm-verity that protect an image, for Kata's
	// kernel_verity_params.
	Verity string `json:"verity,omitempty"`
	// Appended is where the added archive begins in an initrd.
	Appended int64 `json:"appended,omitempty"`
}

// BaseRecord is what a root was made from.
type BaseRecord struct {
	Name    string               `json:"name"`
	SHA256  string               `json:"sha256"`
	Size    int64                `json:"size"`
	Formats []compression.Format `json:"formats,omitempty"` // of an initrd's parts
}

// FileRecord is a file that was put into a root.
type FileRecord struct {
	Path   string `json:"path"`
	Mode   string `json:"mode"`
	Size   int64  `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Target string `json:"target,omitempty"` // of a link
}

func record(f file) FileRecord {
	return FileRecord{Path: "/" + f.path, Mode: fmt.Sprintf("%04o", f.perm), Size: f.size, SHA256: f.sha256, Target: f.target}
}

// ReadManifest reads the manifest in a guest's directory.
func ReadManifest(dir string) (*Manifest, error) {
	name := filepath.Join(dir, ManifestFile)
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the guest's manifest: %w", err)
	}
	m := &Manifest{}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("read the guest's manifest %s: %w", name, err)
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("read the guest's manifest %s: version %d, expected %d: make the guest again", name, m.Version, manifestVersion)
	}
	if m.Kernel.File != KernelFile || m.Root.File != InitrdFile && m.Root.File != ImageFile {
		return nil, fmt.Errorf("read the guest's manifest %s: it names %q and %q, expected %s and %s or %s", name, m.Kernel.File, m.Root.File, KernelFile, InitrdFile, ImageFile)
	}
	return m, nil
}

func (m *Manifest) write(dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ManifestFile), append(b, '\n'), 0o644)
}

// Summary describes the guest in one line.
func (m *Manifest) Summary() string {
	names := make([]string, len(m.Families))
	for i, f := range m.Families {
		names[i] = f.Name
	}
	return fmt.Sprintf("Linux %s and %s (%.1f MiB) for %s in profile %s", m.Kernel.Release, m.Root.File, mib(m.Root.Size), strings.Join(names, ", "), m.Profile)
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// Details says where the guest is, how large it became, and what Kata is to be
// told of it.
func (m *Manifest) Details(dir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  kernel        %s\n", filepath.Join(dir, m.Kernel.File))
	fmt.Fprintf(&b, "  %-13s %s\n", m.Root.File, filepath.Join(dir, m.Root.File))
	fmt.Fprintf(&b, "  grown by      %.2f MiB, for modules of %.2f MiB and %d files in all\n", mib(m.GrownBytes), mib(m.ModuleBytes), len(m.Files))
	if m.Root.Verity != "" {
		fmt.Fprintf(&b, "  kernel_verity_params %s\n", m.Root.Verity)
	}
	if len(m.KernelParams) > 0 {
		fmt.Fprintf(&b, "  kernel_params %s\n", strings.Join(m.KernelParams, " "))
	}
	fmt.Fprintf(&b, "  kernel_modules %s\n", strings.Join(m.AgentModules, "; "))
	return b.String()
}
