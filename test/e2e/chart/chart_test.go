//go:build kube

// Package chart tests the Helm chart with its real image on a real cluster of one
// node: installed, used, updated, uninstalled.
package chart

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

func TestMain(m *testing.M) { os.Exit(simcluster.Main(m.Run)) }

const (
	root      = "../../../"
	namespace = "kata-qat"
)

type cluster struct {
	*simcluster.Cluster
	t   *testing.T
	ctx context.Context
}

// The steps depend on one another: what is installed is updated.
func TestChart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	started, err := simcluster.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{started, t, ctx}
	defer c.explain()
	image, err := os.ReadFile(root + "build/image/kata-qat.tar")
	if err != nil {
		t.Fatalf("%v: run make image", err)
	}
	if err := c.ImportImages(ctx, image); err != nil {
		t.Fatal(err)
	}
	before := c.files()
	start := time.Now()
	c.helm("install", "kata-qat", root+"deploy/helm/kata-qat", "--namespace", namespace, "--create-namespace",
		// The machine is simulated: it has no kernel modules, and Kata no initrd.
		// Doctor says so, and the node gets no label.
		"--set", "provision.host.enabled=false,provision.guest.enabled=false,provision.runtime.args={--guest,kata}",
		"--set", `runtimeClass.nodeSelector.kata-qat\.io/node=null`)
	c.rolledOut()
	t.Logf("ready %v after the installation began", time.Since(start).Round(100*time.Millisecond))

	if is := c.kubectl("get", "node", kube.NodeName, "-o", `jsonpath={.status.allocatable.qat\.intel\.com/cy}`); is != "16" {
		t.Errorf("the node offers %q of qat.intel.com/cy, expected 16", is)
	}
	if is := c.kubectl("get", "node", kube.NodeName, "-o", "jsonpath={.metadata.labels}"); strings.Contains(is, "kata-qat.io/") {
		t.Errorf("a node that doctor finds fault with has the labels %s", is)
	}
	c.runPod("first")

	// During an update the new daemon stands by until the old one ends, and what
	// runs is not touched.
	c.kubectl("-n", namespace, "rollout", "restart", "ds/kata-qat")
	c.rolledOut()
	if log := c.kubectl("-n", namespace, "logs", "ds/kata-qat", "-c", "daemon"); !strings.Contains(log, "standing by") {
		t.Errorf("the new daemon did not stand by:\n%s", log)
	}
	c.runPod("second")
	if is := c.kubectl("get", "pod", "first", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}"); is != "Running 0" {
		t.Errorf("after the update the first pod is %s", is)
	}

	if err := c.RemovePods(ctx, "default"); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	c.helm("uninstall", "kata-qat", "--namespace", namespace)
	t.Logf("uninstalled in %v", time.Since(start).Round(100*time.Millisecond))
	left := c.kubectl("get", "all,configmap,serviceaccount,runtimeclass,clusterrole,clusterrolebinding,role,rolebinding,validatingadmissionpolicy", "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=kata-qat")
	if left != "" {
		t.Errorf("the cluster still has %s", left)
	}
	if after := c.files(); !slices.Equal(before, after) {
		t.Errorf("the node had\n%s\nand has\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	// The node goes on without us.
	if _, err := c.RunPod(ctx, pod("plain", "")); err != nil {
		t.Errorf("a pod after the uninstallation: %v", err)
	}
}

// runPod runs a pod with two VFs and looks at them from inside.
func (c *cluster) runPod(name string) {
	c.t.Helper()
	p := pod(name, simcluster.Handler)
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"qat.intel.com/cy": resource.MustParse("2")}
	if _, err := c.RunPod(c.ctx, p); err != nil {
		c.t.Fatal(err)
	}
	out, err := c.Exec(c.ctx, "default", name, "main", "echo $PCIDEVICE_QAT_INTEL_COM_CY; ls /dev/vfio /etc/4xxxvf_dev*.conf")
	if err != nil {
		c.t.Fatal(err)
	}
	if strings.Count(out, "0000:6b:") != 2 || !strings.Contains(out, "/etc/4xxxvf_dev1.conf") {
		c.t.Errorf("pod %s has\n%s", name, out)
	}
}

func pod(name, class string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: bed.Busybox, Args: []string{"-c", kube.Forever}}}},
	}
	if class != "" {
		p.Spec.RuntimeClassName = &class
	}
	return p
}

// files are those of the node that the chart has to do with, with their sizes.
func (c *cluster) files() []string {
	c.t.Helper()
	out, err := exec.CommandContext(c.ctx, "find", "/etc/containerd", "/usr/local/bin", "/etc/kata-qat", "/var/lib/kata-qat", "-type", "f", "-printf", "%p %s\n").Output()
	if err != nil && len(out) == 0 { // directories that are not there are an error, too
		c.t.Fatal(err)
	}
	files := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(files)
	return files
}

func (c *cluster) rolledOut() {
	c.t.Helper()
	c.kubectl("-n", namespace, "rollout", "status", "ds/kata-qat", "--timeout", "3m")
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.Kubectl(c.ctx, args...)
	if err != nil {
		c.t.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(out)
}

func (c *cluster) helm(args ...string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.ctx, root+"build/tools/helm/helm", append(args, "--kubeconfig", kube.Kubeconfig)...)
	cmd.Env = append(os.Environ(), "HOME="+c.t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("helm %q: %v: %s", args, err, out)
	}
}

// explain says how things stand after a failure.
func (c *cluster) explain() {
	if !c.t.Failed() {
		return
	}
	ctx := context.WithoutCancel(c.ctx)
	for _, args := range [][]string{
		{"get", "pods,daemonsets,jobs", "-A", "-o", "wide"}, {"-n", namespace, "describe", "pods"}, {"-n", namespace, "logs", "ds/kata-qat", "--all-containers", "--tail", "20"},
	} {
		out, err := c.Kubectl(ctx, args...)
		c.t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	c.t.Log(c.Logs(10))
}
