//go:build lab

package main

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/lab"
)

// The whole chain: our binary provisions the host, a pod asks for a VF over CRI,
// and its virtual machine, a real one within the guest, has that VF and no other
// and uses it: what it wrote is found on the PF, whose counters have moved by what
// it did, and verify says so. The program of this package has the assertions.
func TestAPodsRequestReachesTheHardwareThroughItsVM(t *testing.T) {
	tools, err := bed.ToolsDir("")
	if err != nil {
		t.Fatal(err)
	}
	payload, err := lab.Payload()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"/usr/sbin/runc":              "/usr/sbin/runc",
		"/usr/bin/qemu-system-x86_64": "/usr/bin/qemu-system-x86_64",
		"/opt/vm/payload.elf":         payload,
	}
	// What QEMU wants for a machine of the kind pc that starts a kernel.
	for _, name := range []string{"seabios/bios-256k.bin", "qemu/multiboot_dma.bin"} {
		files["/usr/share/"+name] = "/usr/share/" + name
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "containerd-shim-kata-v2", "ctr", "pause"} {
		files["/opt/tools/"+name] = filepath.Join(tools, name)
	}
	for _, pkg := range []string{"cmd/kata-qat", "cmd/containerd-shim-kata-qat-v2", "test/lab/katavm", "test/lab/chaintest"} {
		if files["/usr/local/bin/"+filepath.Base(pkg)], err = lab.Build(t.Context(), "./"+pkg); err != nil {
			t.Fatal(err)
		}
	}
	lab.Run(t, lab.Config{
		PFs: []lab.PF{{Family: "4xxx", ACS: true}}, IOMMU: true, Memory: 2560,
		Files:   files,
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "overlay", "qat_4xxx"},
		Script:  "export PATH=$PATH:/usr/local/bin:/usr/sbin\nkata-qat provision host\nchaintest\n",
		// A minute on a quiet machine; two CPUs may have to serve many.
		Timeout: 8 * time.Minute,
	})
}
