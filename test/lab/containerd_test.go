//go:build lab

package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// tools are the container runtime's programs for the guest.
func tools(t *testing.T) map[string]string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"/usr/sbin/runc": "/usr/sbin/runc"}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		files["/usr/bin/"+name] = filepath.Join(root, "build", "tools", name)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("%v: expected it from `make tools` or Debian's package runc", err)
		}
	}
	return files
}

func TestAContainerInTheGuestUsesTheDeviceThatItIsGivenAndNoOther(t *testing.T) {
	res := Run(t, Config{
		PFs: []PF{{Family: "4xxx", ACS: true}}, IOMMU: true,
		Memory:  2048,
		Files:   tools(t),
		Modules: []string{"vfio-pci", "vfio_iommu_type1", "overlay", "qat_4xxx"},
		Script: functions + `
			enable; bind
			containerd --log-level warn &
			until ctr version >/dev/null 2>&1; do sleep 0.1; done
			echo containerd is up after $(cut -d' ' -f1 /proc/uptime) s
			mkdir -p /rootfs/bin; cp /bin/busybox /bin/vfiotest /rootfs/bin; ln -s busybox /rootfs/bin/sh
			set -- $(vfs)
			mine=$(group /sys/bus/pci/devices/$1)
			run() { ctr run --rm --rootfs --device /dev/vfio/vfio --device /dev/vfio/$mine /rootfs $1 /bin/vfiotest $2; }
			run own $1
			run other $2 || true
			ctr run --rm --rootfs /rootfs cgroup /bin/busybox cat /proc/self/cgroup
			echo done after $(cut -d' ' -f1 /proc/uptime) s`,
	})
	if passed, failed := count(res, "PASS "), count(res, "FAIL "); passed != 1 || failed != 1 {
		t.Errorf("%d VFs were usable in a container and %d were not, expected one of each", passed, failed)
	}
	expect(t, res, "0::/default/cgroup")
}
