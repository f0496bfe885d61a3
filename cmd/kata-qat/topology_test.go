//go:build !entry

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestATopologyGoesToAFile(t *testing.T) {
	root, file := host(t), filepath.Join(t.TempDir(), "node.svg")
	code, stdout, stderr := kataQAT(t, "topology", "--host-root", root, "-f", file)
	b, err := os.ReadFile(file)
	if code != 0 || stdout != "" || err != nil || !strings.HasPrefix(string(b), "<svg ") || !strings.Contains(string(b), "0000:6b:00.0") {
		t.Errorf("exit %d, stdout %q, stderr %q, %v", code, stdout, stderr, err)
	}
	code, _, stderr = kataQAT(t, "topology", "--host-root", root, "-f", "/nonexistent/x.svg")
	if code != 1 || !strings.Contains(stderr, "kata-qat: write the topology: open /nonexistent/x.svg: no such file or directory") {
		t.Errorf("exit %d, %q", code, stderr)
	}
}
