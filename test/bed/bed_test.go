//go:build bed

package bed_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func runContainer(t *testing.T, b *bed.Bed, pod bed.PodSpec, container bed.ContainerSpec) *bed.Container {
	t.Helper()
	pod.HostNetwork = true
	p, err := b.RunPod(testContext(t), pod)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.RunContainer(testContext(t), container)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func output(t *testing.T, c *bed.Container, command ...string) string {
	t.Helper()
	r, err := c.Exec(testContext(t), command...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("%q ended with %d: %s", command, r.Code, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// everyVersion runs a test with each release of containerd that a bed has.
func everyVersion(t *testing.T, test func(t *testing.T, version string)) {
	t.Helper()
	for _, version := range []string{"2.4", "1.7"} {
		t.Run(version, func(t *testing.T) { test(t, version) })
	}
}

func TestEveryHandlerRunsPodsAndStopLeavesNothing(t *testing.T) {
	everyVersion(t, func(t *testing.T, version string) {
		b, err := bed.Start(bed.Options{ContainerdVersion: version})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Stop() // when the test fails before its own
		for handler := range bed.DefaultHandlers() {
			c := runContainer(t, b, bed.PodSpec{Handler: handler}, bed.ContainerSpec{})
			if got := output(t, c, "echo", handler); got != handler {
				t.Errorf("handler %s: exec printed %q", handler, got)
			}
			if err := c.Pod.Remove(testContext(t)); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(b.Bundle(c.ID)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("handler %s: the bundle of a removed container: %v, expected none", handler, err)
			}
		}
		// One pod is left for Stop to remove.
		runContainer(t, b, bed.PodSpec{}, bed.ContainerSpec{})
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(b.Dir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory of a stopped bed: %v, expected none", err)
		}
	})
}

func TestContainerIsWhatItsSpecSays(t *testing.T) {
	everyVersion(t, testContainerIsWhatItsSpecSays)
}

func testContainerIsWhatItsSpecSays(t *testing.T, version string) {
	b := bed.ForTest(t, bed.Options{ContainerdVersion: version})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("mounted"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := runContainer(t, b, bed.PodSpec{Handler: "kata"}, bed.ContainerSpec{
		Command:     []string{"sh", "-c", "echo started; exec sleep 1000"},
		Env:         []string{"KEY=a=b"},
		Devices:     []bed.Device{{Host: "/dev/null", Container: "/dev/vfio/7"}},
		Mounts:      []bed.Mount{{Host: dir, Container: "/mnt/in", ReadOnly: true}},
		User:        &bed.User{UID: 1000, GID: 2000},
		Annotations: map[string]string{"io.katacontainers.x": "y"},
	})
	for _, want := range []struct {
		command []string
		output  string
	}{
		{[]string{"sh", "-c", "echo $KEY"}, "a=b"},
		{[]string{"cat", "/mnt/in/file"}, "mounted"},
		{[]string{"sh", "-c", "echo $(id -u):$(id -g)"}, "1000:2000"},
		{[]string{"sh", "-c", "test -c /dev/vfio/7 && echo node"}, "node"},
	} {
		if got := output(t, c, want.command...); got != want.output {
			t.Errorf("%q printed %q, expected %q", want.command, got, want.output)
		}
	}
	if r, err := c.Exec(testContext(t), "sh", "-c", "echo wrong >&2; exit 3"); err != nil || r.Code != 3 || r.Stderr != "wrong\n" {
		t.Errorf("a failing command: %+v, %v", r, err)
	}
	spec, err := c.OCISpec()
	if err != nil {
		t.Fatal(err)
	}
	if spec.Annotations["io.katacontainers.x"] != "y" {
		t.Errorf("annotations of the spec: %v, expected Kata's to be passed on", spec.Annotations)
	}
	if stats, err := c.Stats(testContext(t)); err != nil || stats.Memory.WorkingSetBytes.Value == 0 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	// containerd has written all of a container's output once it is stopped.
	if err := c.Stop(testContext(t), 0); err != nil {
		t.Fatal(err)
	}
	if log, err := os.ReadFile(c.LogPath()); err != nil || !strings.Contains(string(log), "stdout F started") {
		t.Errorf("log: %q, %v", log, err)
	}
	if status, err := c.Status(testContext(t)); err != nil || status.ExitCode != 128+int32(syscall.SIGKILL) {
		t.Errorf("the killed container: %v, %v: expected the exit code of SIGKILL", status, err)
	}
}

func TestPodsOutliveContainerd(t *testing.T) {
	everyVersion(t, testPodsOutliveContainerd)
}

func testPodsOutliveContainerd(t *testing.T, version string) {
	b := bed.ForTest(t, bed.Options{ContainerdVersion: version})
	c := runContainer(t, b, bed.PodSpec{}, bed.ContainerSpec{})
	started := []string{"sh", "-c", "set -- $(cat /proc/1/stat); echo ${22}"}
	before := output(t, c, started...)

	if err := b.KillContainerd(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(testContext(t)); err == nil {
		t.Error("CRI answers although containerd was killed")
	}
	if err := b.RestartContainerd(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if after := output(t, c, started...); after != before {
		t.Errorf("process 1 of the container started at tick %s, expected the one of before the restart, started at %s", after, before)
	}
	// Stop has to do without containerd.
	if err := b.KillContainerd(); err != nil {
		t.Fatal(err)
	}
}

func TestContainerNeedsRequiredPlugin(t *testing.T) {
	b := bed.ForTest(t, bed.Options{RequiredPlugins: []string{"kata-qat"}})
	p, err := b.RunPod(testContext(t), bed.PodSpec{HostNetwork: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.CreateContainer(testContext(t), bed.ContainerSpec{})
	if err == nil || !strings.Contains(err.Error(), "kata-qat") {
		t.Errorf("container without the required plugin: %v, expected an error that names the plugin", err)
	}
}

func TestStopNamesAndClearsLeftovers(t *testing.T) {
	b, err := bed.Start(bed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop()
	// A pod makes the parent of the pods' cgroups, which stays when it goes.
	if err := runContainer(t, b, bed.PodSpec{}, bed.ContainerSpec{}).Pod.Remove(testContext(t)); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(cgroupParent(t, b), "left")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(b.Dir(), "left behind")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "1000")
	process.Env = append(os.Environ(), "KATA_QAT_BED="+b.Dir())
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	err = b.Stop()
	for _, want := range []string{"mount " + target, "(sleep)", "cgroup " + group} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("stop: %v, expected it to name %s", err, want)
		}
	}
	if err := process.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v, expected it to be killed", err)
	}
	for _, path := range []string{b.Dir(), group, filepath.Dir(group)} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after stop: %v, expected it to be gone", path, err)
		}
	}
}

// cgroupParent is one of the directories that have the cgroups of the bed's
// pods: the only one of cgroup version 2, one of many of version 1.
func cgroupParent(t *testing.T, b *bed.Bed) string {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		if found, err := filepath.Glob(pattern + b.Cgroup()); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("no cgroup %s in /sys/fs/cgroup", b.Cgroup())
	return ""
}

// childVariable makes this test binary a process that dies with a bed up.
const childVariable = "KATA_QAT_BED_TEST_CHILD"

// orphan is what the container of that process runs.
var orphan = []string{"sleep", "98765"}

func TestStartClearsAwayBedOfKilledProcess(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		b, err := bed.Start(bed.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := runContainer(t, b, bed.PodSpec{}, bed.ContainerSpec{Command: orphan})
		if err := os.WriteFile(os.Getenv(childVariable), []byte(b.Bundle(c.ID)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	note := filepath.Join(t.TempDir(), "bundle")
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), childVariable+"="+note)
	out, err := child.CombinedOutput()
	bundle, readErr := os.ReadFile(note)
	if readErr != nil {
		t.Fatalf("the child that was to leave a bed: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(string(bundle), "rootfs", "bin", "busybox")); err != nil || !runs(t, orphan) {
		t.Fatalf("the container of the killed process does not run: %v", err)
	}
	bed.ForTest(t, bed.Options{})
	if _, err := os.Stat(string(bundle)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bundle of the killed process: %v, expected none", err)
	}
	if runs(t, orphan) {
		t.Error("the container of the killed process still runs")
	}
}

// runs tells whether some process has that command line.
func runs(t *testing.T, command []string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		line, err := os.ReadFile(file)
		return err == nil && string(line) == strings.Join(command, "\x00")+"\x00"
	})
}

func TestStartSaysHowToGetMissingTools(t *testing.T) {
	_, err := bed.Start(bed.Options{Tools: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "run make tools") {
		t.Errorf("start without tools: %v, expected it to say: run make tools", err)
	}
}
