//go:build lab

package lab

import (
	"path/filepath"
	"strings"
	"testing"
)

// The whole way on a real kernel: our binary provisions the host, a pod asks for
// a VF over CRI, and its container uses that VF through VFIO and no other, as an
// ordinary user with the memory limit that it needs.
func TestAPodUsesTheVFThatItGotAndNoOther(t *testing.T) {
	t.Parallel()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/usr/sbin/runc": "/usr/sbin/runc"}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "containerd-shim-kata-v2", "ctr", "pause", "runc-unraised"} {
		files["/opt/tools/"+name] = filepath.Join(root, "build", "tools", name)
	}
	for path, pkg := range map[string]string{
		"/usr/local/bin/kata-qat":                    "./cmd/kata-qat",
		"/usr/local/bin/containerd-shim-kata-qat-v2": "./cmd/containerd-shim-kata-qat-v2",
		"/usr/local/bin/nodetest":                    "./test/lab/nodetest",
	} {
		if files[path], err = Build(t.Context(), pkg); err != nil {
			t.Fatal(err)
		}
	}
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}}, IOMMU: true, Memory: 3072,
		Files:   files,
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "overlay", "qat_4xxx"},
		Script:  "export PATH=$PATH:/usr/local/bin:/usr/sbin\nkata-qat provision host\nnodetest\n",
	})
	out := strings.Join(res.Output, "\n")
	if passed, failed := count(res, "PASS "), count(res, "FAIL "); passed != 1 || failed != 1 {
		t.Errorf("%d VFs were usable in the container and %d were not, expected its own and the neighbour", passed, failed)
	}
	for _, want := range []string{"\n81920\nexit code 0", "devices injected", "sandbox prepared"} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
}
