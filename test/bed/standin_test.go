//go:build bed

package bed_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/test/bed"
)

func TestKataStandInRecordsWhatItIsGiven(t *testing.T) {
	everyVersion(t, testKataStandInRecordsWhatItIsGiven)
}

func testKataStandInRecordsWhatItIsGiven(t *testing.T, version string) {
	config := filepath.Join(t.TempDir(), "configuration.toml")
	b := bed.ForTest(t, bed.Options{ContainerdVersion: version, Handlers: map[string]bed.Handler{
		"runc": {}, "kata": {RuntimeType: bed.KataType, ConfigPath: config, PodAnnotations: []string{"io.katacontainers.*", "kata-qat.io/*"}},
	}})
	annotations := map[string]string{"io.katacontainers.x": "1", "kata-qat.io/y": "2", "example.org/z": "3"}
	c := runContainer(t, b, bed.PodSpec{Handler: "kata", Annotations: annotations}, bed.ContainerSpec{
		Devices: []bed.Device{{Host: deviceNode(t, 0o660, 1000, 2000), Container: "/dev/vfio/9"}},
	})

	sandbox, err := b.ShimCreate(c.Pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	if sandbox.ContainerType != "sandbox" || sandbox.ConfigPath != config || sandbox.Bundle != b.Bundle(c.Pod.ID) {
		t.Errorf("the sandbox was created as %+v", sandbox)
	}
	container, err := b.ShimCreate(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if container.ContainerType != "container" || container.ConfigPath != config || container.Bundle != b.Bundle(c.ID) {
		t.Errorf("the container was created as %+v", container)
	}
	if container.PID != sandbox.PID {
		t.Errorf("sandbox and container were created by processes %d and %d, expected one shim for the pod", sandbox.PID, container.PID)
	}
	for _, e := range []bed.ShimEvent{sandbox, container} {
		if got := e.Annotations; got["io.katacontainers.x"] != "1" || got["kata-qat.io/y"] != "2" || got["example.org/z"] != "" {
			t.Errorf("%s: annotations %v, expected those of the handler's PodAnnotations and no other of the pod", e.ContainerType, got)
		}
	}
	mode, uid, gid := os.FileMode(0o660), uint32(1000), uint32(2000)
	want := []specs.LinuxDevice{{Path: "/dev/vfio/9", Type: "c", Major: 1, Minor: 7, FileMode: &mode, UID: &uid, GID: &gid}}
	if diff := cmp.Diff(want, container.Devices); diff != "" {
		t.Errorf("the container's devices (-expected +recorded):\n%s", diff)
	}
	events, err := b.ShimEvents()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events, func(e bed.ShimEvent) bool {
		return e.Event == "invoked" && slices.Contains(e.Args, "start") && e.Dir == b.Bundle(c.Pod.ID)
	}) {
		t.Errorf("no start in the sandbox's bundle among the events %+v", events)
	}
}

// deviceNode makes a node of the device that is /dev/full.
func deviceNode(t *testing.T, mode uint32, uid, gid int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "full")
	if err := unix.Mknod(path, unix.S_IFCHR|mode, int(unix.Mkdev(1, 7))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, os.FileMode(mode)); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	return path
}

func TestHandlerRunsShimAtItsPath(t *testing.T) {
	everyVersion(t, testHandlerRunsShimAtItsPath)
}

// A wrapper finds the pod's annotations in the bundle that it is started in, and
// what it writes there is what the shim behind it is given.
func testHandlerRunsShimAtItsPath(t *testing.T, version string) {
	shim := filepath.Join(t.TempDir(), "shim")
	script := "#!/bin/sh\nsed -i s/asked-for/granted/ config.json || exit 1\nexec containerd-shim-kata-v2 \"$@\"\n"
	if err := os.WriteFile(shim, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b := bed.ForTest(t, bed.Options{ContainerdVersion: version, Handlers: map[string]bed.Handler{
		"runc": {}, "kata-qat": {RuntimeType: bed.KataType, RuntimePath: shim, PodAnnotations: []string{"kata-qat.io/*"}},
	}})
	c := runContainer(t, b, bed.PodSpec{Annotations: map[string]string{"kata-qat.io/x": "asked-for"}}, bed.ContainerSpec{})
	sandbox, err := b.ShimCreate(c.Pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := sandbox.Annotations["kata-qat.io/x"]; got != "granted" {
		t.Errorf("the sandbox was created with the annotation %q, expected that of the wrapper", got)
	}
	if _, err := b.ShimCreate(c.ID); err != nil {
		t.Error(err)
	}
}
