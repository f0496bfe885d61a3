//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
)

// childEnv has the program start a bed, say so, and wait to be killed.
const childEnv = "KATA_QAT_KUBE_TEST_CHILD"

func TestMain(m *testing.M) {
	os.Exit(kube.Main(func() int {
		if os.Getenv(childEnv) != "" {
			return child()
		}
		return m.Run()
	}))
}

var start = sync.OnceValues(func() (*kube.Bed, error) { return kube.Start(context.Background(), kube.Options{}) })

func started(t *testing.T) *kube.Bed {
	t.Helper()
	b, err := start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(b.Logs(20))
		}
	})
	return b
}

func TestAPodRuns(t *testing.T) {
	b := started(t)
	pod, err := b.RunPod(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "hello", Namespace: "default"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: bed.Busybox, Args: []string{"-c", "echo started; " + kube.Forever},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Status.PodIP == "" {
		t.Error("it has no address")
	}
	if out, err := b.Kubectl(t.Context(), "logs", "hello"); err != nil || out != "started\n" {
		t.Errorf("kubectl logs: %q, %v", out, err)
	}
	// The API server's Service is reached although nothing forwards it.
	if out, err := b.Exec(t.Context(), "default", "hello", "main", "nc -w 5 $KUBERNETES_SERVICE_HOST 443 </dev/null && echo reached"); err != nil || out != "reached" {
		t.Errorf("kubectl exec: %q, %v", out, err)
	}
	spec, err := kube.OCISpec(kube.ContainerID(pod, "main"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kube.OCISpec(kube.SandboxOf(spec)); err != nil {
		t.Error(err)
	}
	if err := b.RemovePods(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	if living, err := kube.Living(); err != nil || len(living) != 0 {
		t.Errorf("still there after the pod was removed: %v, %v", living, err)
	}
}

func TestManifestsAreAppliedAndDeleted(t *testing.T) {
	b := started(t)
	const manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: default}\ndata: {k: v}\n"
	if err := b.Apply(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	if out, err := b.Kubectl(t.Context(), "get", "configmap", "m", "-o", "jsonpath={.data.k}"); err != nil || out != "v" {
		t.Errorf("kubectl get: %q, %v", out, err)
	}
	if err := b.Delete(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Client.CoreV1().ConfigMaps("default").Get(t.Context(), "m", metav1.GetOptions{}); !kube.Gone(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestAKilledServiceComesBack(t *testing.T) {
	b := started(t)
	for _, s := range []*kube.Service{b.Kubelet, b.Containerd} {
		before := s.PID()
		if err := s.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := s.PID(); after == 0 || after == before {
			t.Errorf("%s had pid %d and has %d", s.Name, before, after)
		}
	}
}

func TestSystemctlKnowsTheServices(t *testing.T) {
	b := started(t)
	for _, tt := range []struct {
		args, want string
		fails      bool
	}{
		{"is-active containerd", "active", false},
		{"is-active crio", "inactive", true},
		{"restart crio", "Unit crio not loaded.", true},
		{"restart containerd.service", "", false},
		{"daemon-reload", "", false},
	} {
		before := b.Containerd.PID()
		out, err := exec.CommandContext(t.Context(), "systemctl", strings.Fields(tt.args)...).CombinedOutput()
		if got := strings.TrimSpace(string(out)); got != tt.want || (err != nil) != tt.fails {
			t.Errorf("systemctl %s: %q, %v", tt.args, got, err)
		}
		if restarted := b.Containerd.PID() != before; restarted != (tt.args == "restart containerd.service") {
			t.Errorf("systemctl %s: containerd was restarted: %v", tt.args, restarted)
		}
	}
}

// child starts a bed within the bed, writes where a node writes, and tells of it.
func child() int {
	_, err := kube.Start(context.Background(), kube.Options{})
	for _, file := range traces {
		if err == nil {
			err = os.WriteFile(file, nil, 0o644)
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("up")
	select {}
}

var traces = []string{"/etc/trace", "/opt/trace", "/usr/local/trace", "/var/trace", "/run/trace"}

// Whatever becomes of the program, nothing of its bed is left.
func TestABedDiesWithItsProgram(t *testing.T) {
	for _, tt := range []struct {
		how    string
		signal syscall.Signal
	}{{"terminated", syscall.SIGTERM}, {"killed", syscall.SIGKILL}} {
		t.Run(tt.how, func(t *testing.T) {
			before := everything(t)
			cmd := exec.Command("/proc/self/exe")
			cmd.Stderr = os.Stderr
			cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "KATA_QAT_KUBE_") }), childEnv+"=1")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line := make([]byte, 1000)
			if n, err := out.Read(line); string(line[:n]) != "up\n" {
				t.Errorf("it said %q, %v", line[:n], err)
			}
			// Cgroups outlive a bed that is killed, until the next one starts.
			if left, err := filepath.Glob("/sys/fs/cgroup/memory/kata-qat-kube-*"); err != nil || len(left) > 1 {
				t.Errorf("cgroups of beds: %v, %v, expected one at most", left, err)
			}
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			deadline := time.Now().Add(10 * time.Second)
			for {
				after := everything(t)
				after = slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) })
				if len(after) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("left behind: %v", after)
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
}

// everything are the processes, mounts and files by which the child would be seen.
func everything(t *testing.T) []string {
	t.Helper()
	var all []string
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if env, err := os.ReadFile(p); err == nil && strings.Contains(string(env), childEnv+"=") {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "comm"))
			all = append(all, filepath.Dir(p)+" "+string(name))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, strings.Split(string(mounts), "\n")...)
	for _, file := range traces {
		if _, err := os.Stat(file); err == nil {
			all = append(all, file)
		}
	}
	return all
}
