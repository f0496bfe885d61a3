//go:build bed

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kata-qat/kata-qat/test/bed"
)

// buildImage writes the image of the programs in bin and returns the archive and
// what the builder said of it.
func buildImage(t *testing.T, ref string) (archive []byte, said string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.Command("go", "run", "./deploy/image", "-o", file, "-ref", ref, "-version", "1.2.3", "-commit", "abc")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build the image: %v: %s", err, stderr.String())
	}
	if archive, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	return archive, strings.TrimSpace(string(out))
}

func TestImageIsTheSameTwiceAndRuns(t *testing.T) {
	const ref = "localhost/kata-qat/kata-qat:test"
	first, said := buildImage(t, ref)
	second, saidAgain := buildImage(t, ref)
	if said != saidAgain || !bytes.Equal(first, second) {
		t.Fatalf("two builds of the same: %s and %s", said, saidAgain)
	}
	if !strings.HasPrefix(said, ref+"@sha256:") {
		t.Errorf("the builder said %q, expected the name with its digest", said)
	}
	b := bed.ForTest(t, bed.Options{})
	if err := b.ImportImages(t.Context(), bytes.NewReader(first)); err != nil {
		t.Fatal(err)
	}
	p, err := b.RunPod(t.Context(), bed.PodSpec{HostNetwork: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.RunContainer(t.Context(), bed.ContainerSpec{Image: ref, Command: []string{"kata-qat", "version"}})
	if err != nil {
		t.Fatal(err)
	}
	status := waitExited(t, c)
	log, err := os.ReadFile(c.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if status.ExitCode != 0 || !strings.Contains(string(log), "kata-qat") {
		t.Errorf("kata-qat version in a container ended with %d and said %s", status.ExitCode, log)
	}
	t.Logf("%s, %d KiB: %s", said, len(first)>>10, bytes.TrimSpace(log))
}

// waitExited returns when a container has ended.
func waitExited(t *testing.T, c *bed.Container) *cri.ContainerStatus {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if status.State == cri.ContainerState_CONTAINER_EXITED {
			return status
		}
		<-tick.C
	}
}
