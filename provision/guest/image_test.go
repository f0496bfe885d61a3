package guest_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/kmod/kmodtest"
	"github.com/kata-qat/kata-qat/internal/rootimage/rootimagetest"
	"github.com/kata-qat/kata-qat/provision/guest"
)

// imageMachine has an image as the base, and a kernel that can start from it.
func imageMachine(t *testing.T, form rootimagetest.Form) *machine {
	t.Helper()
	m := newMachine(t)
	m.o.Base = rootimagetest.New(t, form)
	m.write("lib/modules/"+kmodtest.Release+"/modules.builtin", []byte("kernel/"+strings.Join(append(builtin, "virtio_blk", "virtio_net", "dm-mod", "dm-verity"), ".ko\nkernel/")+".ko\n"))
	return m
}

func TestAGuestFromAnImage(t *testing.T) {
	for _, form := range append(rootimagetest.Forms, rootimagetest.Measured) {
		t.Run(string(form), func(t *testing.T) {
			m := imageMachine(t, form)
			m.o.Profile = edits.ProfileGuestKernel
			got := m.mustMake()
			if got.Root.File != guest.ImageFile || len(got.KernelParams) != 0 {
				t.Errorf("root %s, kernel parameters %q", got.Root.File, got.KernelParams)
			}
			joined := strings.Join(paths(got), " ")
			for _, want := range []string{"/usr/sbin/modprobe", "/etc/modules-load.d/kata-qat.conf", "/" + modules + "/kernel/drivers/qat_c62xvf.ko"} {
				if !strings.Contains(joined, want) {
					t.Errorf("%s is not among %s", want, joined)
				}
			}
			if strings.Contains(joined, "kata-qat-init") {
				t.Error("there is a hook for an initrd")
			}
			m.must(guest.Verify(t.Context(), m.o.Out))
			if (got.Root.Verity != "") != (form == rootimagetest.Measured) {
				t.Errorf("dm-verity %q", got.Root.Verity)
			}
			first, err := os.ReadFile(filepath.Join(m.current(), guest.ImageFile))
			m.must(err)
			m.o.Out = filepath.Join(t.TempDir(), "again")
			m.mustMake()
			second, err := os.ReadFile(filepath.Join(m.current(), guest.ImageFile))
			m.must(err)
			if !bytes.Equal(first, second) {
				t.Error("the same inputs make another image")
			}
		})
	}
}

// The base's root hash, which Kata's configuration has, is not that of what is made
// of it; the new one is in the manifest.
func TestAMeasuredImageIsMeasuredAnew(t *testing.T) {
	m := imageMachine(t, rootimagetest.Measured)
	params := filepath.Join(filepath.Dir(m.o.Base), rootimagetest.Params)
	was, err := os.ReadFile(params)
	m.must(err)
	got := m.mustMake()
	before, after := strings.Split(strings.TrimSpace(string(was)), ","), strings.Split(got.Root.Verity, ",")
	if before[0] == after[0] || !slices.Equal(before[1:], after[1:]) {
		t.Errorf("from %s to %s: expected another root hash and nothing else", was, got.Root.Verity)
	}
	m.must(os.Remove(params))
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "its parameters are not known") {
		t.Errorf("without its parameters: %v", err)
	}
	m.o.BaseVerity = string(was)
	if again := m.mustMake(); again.ID != got.ID {
		t.Error("with its parameters named it is another guest")
	}

	f, err := os.OpenFile(filepath.Join(m.current(), guest.ImageFile), os.O_RDWR, 0)
	m.must(err)
	_, err = f.WriteAt([]byte("x"), rootimagetest.Start+2<<20)
	m.must(errors.Join(err, f.Close()))
	if err := guest.Verify(t.Context(), m.o.Out); err == nil {
		t.Error("a byte was changed, and the guest is as its manifest says")
	}
	m.o.Plain = true // anything, to have it made again
	f, err = os.OpenFile(m.o.Base, os.O_RDWR, 0)
	m.must(err)
	_, err = f.WriteAt([]byte("x"), rootimagetest.Start+3<<20)
	m.must(errors.Join(err, f.Close()))
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "the hashes of dm-verity do not match") {
		t.Errorf("a base that is not what its root hash says: %v", err)
	}
}

func TestImagesThatAKernelCannotStartFromAreRefused(t *testing.T) {
	m := newMachine(t)
	m.o.Base = rootimagetest.New(t, rootimagetest.MBR)
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "has no virtio_blk or nd_pmem built in") {
		t.Errorf("a kernel with its disk driver as a module: %v", err)
	}
	m = imageMachine(t, rootimagetest.Bare)
	m.must(exec.Command("/usr/sbin/debugfs", "-w", "-R", "rm /usr/lib/systemd/systemd", m.o.Base).Run())
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "vmw_vsock_virtio_transport as a module, and the image") {
		t.Errorf("an image whose agent would start before its modules: %v", err)
	}
	m = imageMachine(t, rootimagetest.Bare)
	f, err := os.OpenFile(m.o.Base, os.O_APPEND|os.O_WRONLY, 0)
	m.must(err)
	_, err = f.Write(append([]byte("verity\x00\x00"), make([]byte, 4096)...))
	m.must(err)
	m.must(f.Close())
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "dm-verity") {
		t.Errorf("an image with dm-verity: %v", err)
	}
	m = imageMachine(t, rootimagetest.Measured)
	m.write("lib/modules/"+kmodtest.Release+"/modules.builtin", []byte("kernel/"+strings.Join(append(builtin, "virtio_blk", "dm-mod"), ".ko\nkernel/")+".ko\n"))
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "has no dm_verity built in") {
		t.Errorf("a kernel without dm-verity: %v", err)
	}
	m = imageMachine(t, rootimagetest.Measured)
	m.write("boot/config-"+kmodtest.Release, []byte("CONFIG_DM_VERITY=y\n# CONFIG_DM_INIT is not set\n"))
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "without CONFIG_DM_INIT") {
		t.Errorf("a kernel that cannot set it up: %v", err)
	}
	m = imageMachine(t, rootimagetest.Bare)
	m.o.BaseVerity = "root_hash=1"
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "which it does not protect") {
		t.Errorf("parameters for an image without dm-verity: %v", err)
	}
	m = imageMachine(t, rootimagetest.Bare)
	m.mustMake()
	m.o.Base = filepath.Join(m.current(), guest.ImageFile)
	if _, err := m.make(); err == nil || !strings.Contains(err.Error(), "was made by kata-qat") {
		t.Errorf("an image that was made from one: %v", err)
	}
}
