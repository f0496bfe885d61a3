package edits

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	pkgcdi "tags.cncf.io/container-device-interface/pkg/cdi"
)

// c62x returns the n-th VF of a c62x device.
func c62x(n int) VF {
	v := cy(n)
	v.Resource, v.Module = "qat.intel.com/generic", "qat_c62xvf"
	return v
}

func TestSandboxEdits(t *testing.T) {
	for name, tc := range map[string]struct {
		vfs         []VF
		profile     Profile
		annotations map[string]string
		paths       []string
		want        map[string]string
	}{
		"vfio: the nodes of the groups, without the control node": {
			vfs: []VF{c62x(2), c62x(1)}, profile: ProfileVFIO,
			paths: []string{"/dev/vfio/42", "/dev/vfio/41"},
			want:  map[string]string{DevicesAnnotation: "generic=0000:6b:00.2,generic=0000:6b:00.1"},
		},
		"guest-kernel: the module, once": {
			vfs: []VF{c62x(1), c62x(2)}, profile: ProfileGuestKernel,
			paths: []string{"/dev/vfio/41", "/dev/vfio/42"},
			want:  map[string]string{DevicesAnnotation: "generic=0000:6b:00.1,generic=0000:6b:00.2", KernelModulesAnnotation: "qat_c62xvf"},
		},
		"guest-kernel: what the user wants loaded stays": {
			vfs: []VF{c62x(1)}, profile: ProfileGuestKernel,
			annotations: map[string]string{KernelModulesAnnotation: "e1000e EEE=1; i915 "},
			paths:       []string{"/dev/vfio/41"},
			want:        map[string]string{DevicesAnnotation: "generic=0000:6b:00.1", KernelModulesAnnotation: "e1000e EEE=1;i915;qat_c62xvf"},
		},
		"guest-kernel: a module that the user names with parameters is not named again": {
			vfs: []VF{c62x(1)}, profile: ProfileGuestKernel,
			annotations: map[string]string{KernelModulesAnnotation: "qat_c62xvf debug=1"},
			paths:       []string{"/dev/vfio/41"},
			want:        map[string]string{DevicesAnnotation: "generic=0000:6b:00.1", KernelModulesAnnotation: "qat_c62xvf debug=1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := Sandbox(tc.vfs, tc.profile, tc.annotations)
			var paths []string
			for _, d := range e.CDI.DeviceNodes {
				paths = append(paths, d.Path)
			}
			if diff := cmp.Diff(tc.paths, paths); diff != "" {
				t.Errorf("nodes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.want, e.Annotations); diff != "" {
				t.Errorf("annotations (-want +got):\n%s", diff)
			}
		})
	}
	if e := Sandbox(nil, ProfileVFIO, nil); e != nil {
		t.Errorf("a pod without VFs got edits: %+v", e)
	}
}

// What is written is what the CDI library reads, by the names that Kata asks for.
func TestCDISpecsAreFoundByTheLibrary(t *testing.T) {
	dc := cy(3)
	dc.Resource = "qat.intel.com/dc"
	dir := t.TempDir()
	cache, err := pkgcdi.NewCache(pkgcdi.WithSpecDirs(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range CDISpecs([]VF{cy(2), dc, cy(1)}, control) {
		if err := cache.WriteSpec(s, "x-"+s.Kind[len("qat.intel.com/"):]+".json"); err != nil {
			t.Fatalf("%s: %v", s.Kind, err)
		}
	}
	if cache, err = pkgcdi.NewCache(pkgcdi.WithSpecDirs(dir), pkgcdi.WithAutoRefresh(false)); err != nil {
		t.Fatal(err)
	}
	if err := cache.Refresh(); err != nil {
		t.Fatal(err)
	}
	if errs := cache.GetErrors(); len(errs) > 0 {
		t.Errorf("the library says: %v", errs)
	}
	want := []string{"qat.intel.com/cy=0000:6b:00.1", "qat.intel.com/cy=0000:6b:00.2", "qat.intel.com/dc=0000:6b:00.3"}
	if diff := cmp.Diff(want, cache.ListDevices()); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	nodes := cache.GetDevice(want[2]).ContainerEdits.DeviceNodes
	if len(nodes) != 1 || nodes[0].Path != "/dev/vfio/43" {
		t.Errorf("nodes of %s: %v", want[2], nodes)
	}
}
