//go:build lab

package lab

import (
	"strings"
	"testing"
)

// What the kernel announces of VFs reaches kubelet: a VF that loses its driver,
// one that a process of the host opens, and all of them going. Neither has a poll
// within the guest's life.
func TestKubeletIsToldWhatTheKernelAnnounces(t *testing.T) {
	files := make(map[string]string)
	for path, pkg := range map[string]string{"/usr/local/bin/kata-qat": "./cmd/kata-qat", "/usr/local/bin/plugintest": "./test/lab/plugintest"} {
		var err error
		if files[path], err = Build(t.Context(), pkg); err != nil {
			t.Fatal(err)
		}
	}
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}}, IOMMU: true,
		Files:   files,
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "qat_4xxx"},
		Script:  "export PATH=$PATH:/usr/local/bin\nkata-qat provision host\nplugintest\n",
	})
	out := strings.Join(res.Output, "\n")
	for _, want := range []string{"is in use on the host, by no pod: process", "(plugintest) has /dev/vfio/", "all was told"} {
		if !strings.Contains(out, want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
}
