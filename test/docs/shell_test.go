//go:build kube

package docs

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/bed/apiserver"
)

// shell is where an administrator types, in the root of the module.
type shell struct {
	t   *testing.T
	env []string
}

func (s shell) command(line string) *exec.Cmd {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	s.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir, cmd.Env = root, s.env
	return cmd
}

// says runs a line, which is to end with 0 and to print all this.
func (s shell) says(line string, want ...string) {
	s.t.Helper()
	s.ends(0, line, want...)
}

func (s shell) ends(code int, line string, want ...string) {
	s.t.Helper()
	cmd := s.command(line)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		s.t.Fatalf("%s: %v, expected exit code %d: %s", line, err, code, out)
	}
	for _, w := range want {
		if !strings.Contains(string(out), w) {
			s.t.Errorf("%s: no %q in\n%s", line, w, out)
		}
	}
}

func abs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// completed is what the Job's controller says in the end. There is none here.
const completed = `{"status": {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:01Z", "succeeded": 1, "uncountedTerminatedPods": {}, "conditions": [
	{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}]}}`

// A cluster of which there is only the API server is enough for what is written
// there. The node of the same name is not fit, and is told so.
func TestTheClusterIsToldAndForgets(t *testing.T) {
	doc := For(t)
	server := apiserver.ForTest(t)
	machine := qattest.New(t, qattest.Node{PFs: []qattest.PF{{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: "up", Group: 20, VFs: 2, VFDriver: "vfio-pci", FirstGroup: 100}}})
	s := shell{t, append(server.Env(t, apiserver.Admin), "KATA_QAT_HOST_ROOT="+machine.Root, "NODE_NAME=n1")}
	s.env = append(s.env, "PATH="+abs(t, root+"/bin")+":"+abs(t, root+"/build/tools/helm")+":"+abs(t, root+"/build/tools/kubernetes")+":"+os.Getenv("PATH"))

	s.says(`echo '{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}' | kubectl create -f -`)
	s.ends(2, doc.Line("kata-qat provision cluster --dry-run"), "RuntimeClass")
	s.says("kubectl get runtimeclass", "No resources found")
	s.says(doc.Line("kata-qat provision cluster"), "RuntimeClass")
	s.says("kubectl get runtimeclass", "kata-qat")
	s.says(doc.Line("kata-qat provision cluster --node-labels"), "no label while doctor finds fault with")
	every := s.command("exec " + doc.Line("kata-qat provision cluster --node-labels --every"))
	untilInterrupted(t, every)
	s.says(doc.Line("kata-qat provision cluster --undo"))
	s.says("kubectl get runtimeclass", "No resources found")

	s.says(doc.Line("kubectl apply --server-side -f deploy/manifests/kata-qat.yaml"), "daemonset.apps/kata-qat serverside-applied")
	s.says(doc.Line("kubectl apply --server-side -f deploy/manifests/uninstall.yaml"), "job.batch/kata-qat-uninstall serverside-applied")
	s.says("kubectl -n kata-qat patch job kata-qat-uninstall --subresource=status --patch '" + completed + "'")
	s.says(doc.Line("kubectl -n kata-qat wait"), "condition met")
	go empty(t.Context(), s)
	s.says(doc.Line("kubectl delete"), `namespace "kata-qat" deleted`, `job.batch "kata-qat-uninstall" deleted`)

	s.says("helm install kata-qat deploy/helm/kata-qat --namespace kata-qat --create-namespace", "STATUS: deployed")
	s.says(doc.Line("helm uninstall"), `release "kata-qat" uninstalled`)
	s.says("kubectl get runtimeclass,daemonsets,jobs --all-namespaces", "No resources found")
}

// untilInterrupted waits until a command has said something, and interrupts it.
func untilInterrupted(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.Contains(lines.Text(), "no label while doctor finds fault with") {
		t.Errorf("%s says %q", cmd.Args[2], lines.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v after ^C", cmd.Args[2], err)
	}
}

// empty lets a namespace go that is deleted, as the controller of namespaces does
// once it is empty.
func empty(ctx context.Context, s shell) {
	const finalize = `until kubectl get namespace kata-qat -o jsonpath={.status.phase} | grep -q Terminating; do sleep 0.1; done
kubectl get namespace kata-qat -o json | jq '.spec.finalizers = []' | kubectl replace --raw /api/v1/namespaces/kata-qat/finalize -f -`
	cmd := exec.CommandContext(ctx, "sh", "-c", finalize)
	cmd.Env = s.env
	_ = cmd.Run() // kubectl delete waits for its success
}

// A person's make is not one that make calls.
func withoutMake(environment []string) (env []string) {
	for _, e := range environment {
		if name, _, _ := strings.Cut(e, "="); name != "MAKEFLAGS" && name != "MAKELEVEL" && name != "MFLAGS" && name != "GOFLAGS" {
			env = append(env, e)
		}
	}
	return env
}

// onePackage is go, for which one package stands for all of a module.
const onePackage = `#!/bin/sh
for a; do
	shift
	[ "$a" != ./... ] || a=./nri-plugin
	set -- "$@" "$a"
done
exec go "$@"
`

func TestMakeMakes(t *testing.T) {
	doc := For(t)
	s := shell{t, withoutMake(os.Environ())}
	s.says(doc.Line("make"))
	s.says(doc.Line("make help"), "make demo", "make chain-test")
	s.says(doc.Line("make build tools kube-tools"))
	s.says(doc.Line("make image"))
	s.says(doc.Line("make demo"), "PCIDEVICE_QAT_INTEL_COM_CY")

	program := filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(program, []byte(onePackage), 0o755); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "GO="+program, "BENCH=OfNoInterest", "GOFLAGS=-benchtime=1x", "ARGS=-only create -rounds 1 -n 2")
	s.says(doc.Line("make bench"), "BenchmarkCreateContainerOfNoInterest", "daemon injects two VFs")
}

// Once each, and not for the figures.
func TestBenchmarksRun(t *testing.T) {
	s := shell{t, append(withoutMake(os.Environ()), "GOFLAGS=-benchtime=1x -run=^$ -vet=off")}
	for _, line := range For(t).All() {
		if strings.HasPrefix(line, "go run ") {
			s.says(line+" -rounds 1 -n 2 -idle 100ms -pods 0 -crowd 2", "|---|")
			continue
		}
		s.says(line, "\nBenchmark")
	}
}
