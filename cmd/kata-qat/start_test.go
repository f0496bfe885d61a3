//go:build !entry

package main

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// heavy are the packages that allocate more than 24 KiB before main, for every
// command, each with the reason why it is worth it.
var heavy = map[string]string{
	"github.com/containerd/containerd/api/services/containers/v1": "the list of containers",
	"github.com/containerd/containerd/api/types":                  "the list of containers",
	"github.com/containerd/nri/pkg/api":                           "the NRI plugin",
	"github.com/opencontainers/go-digest":                         "comes with containerd's API",
	"github.com/prometheus/client_golang/prometheus":              "the daemon's metrics",
	"github.com/prometheus/procfs":                                "comes with it, for the process's own",
	"github.com/russross/blackfriday/v2":                          "comes with cli and is not in what make builds (urfave_cli_no_docs)",
	"github.com/therootcompany/xz":                                "kernel modules and images that are compressed",
	"go.yaml.in/yaml/v2":                                          "-o yaml",
	"go.yaml.in/yaml/v3":                                          "comes with CDI",
	"google.golang.org/grpc":                                      "kubelet, containerd and CRI",
	"google.golang.org/grpc/internal/binarylog":                   "comes with grpc",
	"google.golang.org/protobuf/types/descriptorpb":               "comes with containerd's API",
	"k8s.io/apimachinery/pkg/api/meta":                            "comes with client-go",
	"k8s.io/apimachinery/pkg/api/validate/content":                "comes with client-go",
	"k8s.io/apimachinery/pkg/apis/meta/v1":                        "objects of the API server",
	"k8s.io/apimachinery/pkg/util/validation":                     "comes with client-go",
	"k8s.io/client-go/dynamic":                                    "provision cluster: a client for all kinds instead of one for each",
	"k8s.io/client-go/features":                                   "comes with client-go; little without the race detector",
	"k8s.io/client-go/plugin/pkg/client/auth/exec":                "kubeconfigs whose credentials a program gives",
	"k8s.io/cri-api/pkg/apis/runtime/v1":                          "whether containerd took a new runtime",
	"k8s.io/kubelet/pkg/apis/podresources/v1":                     "kubelet's word on who holds what",
}

var initialised = regexp.MustCompile(`(?m)^init (\S+) @.*, (\d+) bytes, \d+ allocs$`)

// A program pays for the package variables and init functions of all that is
// linked into it, whatever the command: on a small guest that is most of the time
// of a short one. The runtime says what each package allocates
// (GODEBUG=inittrace=1), which is the same on every machine.
func TestLittleIsDoneBeforeMain(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Not by the name of a test program, for which lazyregexp compiles at once.
	cmd := exec.Cmd{Path: program, Args: []string{"kata-qat", "version"}, Env: append(os.Environ(), "GODEBUG=inittrace=1", "KATA_QAT_TEST_MAIN=1")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const most, ours = 24 << 10, 64 << 10
	seen, own := 0, 0
	for _, m := range initialised.FindAllStringSubmatch(string(out), -1) {
		name := strings.ReplaceAll(m[1], "%2e", ".")
		bytes, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		seen++
		if name == "main" || strings.HasPrefix(name, "github.com/kata-qat/") {
			own += bytes
		}
		if _, known := heavy[name]; bytes > most && !known {
			t.Errorf("%s allocates %d bytes before main: have it do so when it is needed, import something smaller, or give a reason in the table heavy", name, bytes)
		}
	}
	if seen < 50 {
		t.Fatalf("the runtime told of %d packages: expected its trace in\n%s", seen, out)
	}
	if own > ours {
		t.Errorf("this module's own packages allocate %d bytes before main, expected at most %d: patterns belong into lazyregexp, tables that are made into sync.OnceValue", own, ours)
	}
}
