//go:build kube

// Package chart tests the Helm chart with its real image on a real cluster of one
// node: installed, used, updated, uninstalled.
package chart

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/docs"
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
	started, err := simcluster.Start(ctx, simcluster.Machine())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{started, t, ctx}
	defer c.explain()
	doc := docs.For(t)
	c.sh(doc.Line("ctr"))
	before := c.files()
	start := time.Now()
	// The machine is simulated: it has no kernel modules, and Kata no initrd. Doctor
	// says so, and the node gets no label. Twenty pods are to fit on two processors.
	const values = " --set 'provision.host.enabled=false,provision.guest.enabled=false,provision.runtime.args={--guest,kata}'" +
		` --set 'runtimeClass.nodeSelector.kata-qat\.io/node=null,runtimeClass.overhead.cpu=10m,runtimeClass.overhead.memory=16Mi'`
	c.sh(doc.Line("helm install") + values)
	c.rolledOut()
	t.Logf("ready %v after the installation began", time.Since(start).Round(100*time.Millisecond))

	c.offers()
	if is := c.kubectl("get", "node", kube.NodeName, "-o", "jsonpath={.metadata.labels}"); strings.Contains(is, "kata-qat.io/") {
		t.Errorf("a node that doctor finds fault with has the labels %s", is)
	}
	c.says(strings.ReplaceAll(doc.Line("kubectl describe node"), "NODE", kube.NodeName), "qat.intel.com/cy: 16")
	c.runPod("first")
	c.says(strings.ReplaceAll(doc.Line("kubectl describe pod"), "POD", "first"), "PodScheduled", "Started")
	const exec = "kubectl -n kata-qat exec ds/kata-qat -c labels -- kata-qat "
	c.says(doc.Line(exec+"devices"), "default/first")
	c.says(doc.Line(exec+"doctor")+" || test $? = 1", "vfio-kernel")

	// During an update the new daemon stands by until the old one ends, what runs
	// is not touched, and what starts has its devices.
	c.twenty("update")
	c.sh(doc.Line("kubectl -n kata-qat rollout restart"))
	c.rolledOut()
	c.allRun("update")
	c.offers()
	if log := c.kubectl("-n", namespace, "logs", "ds/kata-qat", "-c", "daemon"); !strings.Contains(log, "standing by") {
		t.Errorf("the new daemon did not stand by:\n%s", log)
	}
	c.runPod("second")
	if is := c.kubectl("get", "pod", "first", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}"); is != "Running 0" {
		t.Errorf("after the update the first pod is %s", is)
	}

	c.remove("default", "update")

	c.twenty("killed")
	c.waitCreated("killed", 4)
	start = time.Now()
	c.killDaemon()
	c.wellAgain("killed", start)
	c.remove("killed")

	// What a release says of its own end can be changed.
	c.sh(doc.Line("helm upgrade kata-qat deploy/helm/kata-qat --namespace kata-qat") + values)
	c.sh(doc.Line("helm upgrade kata-qat deploy/helm/kata-qat --namespace kata-qat --reset-then-reuse-values"))
	start = time.Now()
	c.sh(doc.Line("helm uninstall"))
	t.Logf("uninstalled in %v", time.Since(start).Round(100*time.Millisecond))
	left := c.kubectl("get", "all,configmap,serviceaccount,runtimeclass,clusterrole,clusterrolebinding,role,rolebinding,validatingadmissionpolicy", "-A", "-o", "name", "-l", "app.kubernetes.io/part-of=kata-qat")
	if left != "" {
		t.Errorf("the cluster still has %s", left)
	}
	if diff := cmp.Diff(before, c.files()); diff != "" {
		t.Errorf("files of the node (-before the installation +after the uninstallation):\n%s", diff)
	}
	if err := c.WaitAllocatable(ctx, "qat.intel.com/cy", 0); err != nil {
		t.Error(err)
	}
	// The node goes on without us.
	if _, err := c.RunPod(ctx, simcluster.Pod("default", "plain", nil)); err != nil {
		t.Errorf("a pod after the uninstallation: %v", err)
	}
}

// runPod runs a pod with two VFs and looks at them from inside.
func (c *cluster) runPod(name string) {
	c.t.Helper()
	if _, err := c.RunPod(c.ctx, simcluster.Pod("default", name, map[corev1.ResourceName]int{"qat.intel.com/cy": 2})); err != nil {
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

// files are those of the node where the chart has some, with their sizes.
func (c *cluster) files() []string {
	c.t.Helper()
	var all []string
	for _, dir := range []string{"/etc", "/opt", "/usr/local", "/var/lib/kata-qat", "/run/kata-qat", "/run/cdi", "/var/lib/kubelet/device-plugins"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case os.IsNotExist(err):
				return nil
			case err != nil:
				return err
			case d.IsDir(), d.Name() == "kubelet_internal_checkpoint": // kubelet's own
				return nil
			}
			info, err := d.Info()
			if err == nil {
				all = append(all, fmt.Sprintf("%s %d", path, info.Size()))
			}
			return err
		})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return all
}

func (c *cluster) offers() {
	c.t.Helper()
	for resource, n := range map[corev1.ResourceName]int64{"qat.intel.com/cy": 16, "qat.intel.com/dc": 16, "qat.intel.com/sym": 2} {
		if err := c.WaitAllocatable(c.ctx, resource, n); err != nil {
			c.t.Error(err)
		}
	}
}

// remove removes the pods of namespaces, and looks whether anything of them lives.
func (c *cluster) remove(namespaces ...string) {
	c.t.Helper()
	for _, n := range namespaces {
		err := c.Client.AppsV1().ReplicaSets(n).DeleteCollection(c.ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		if err := errors.Join(err, c.RemovePods(c.ctx, n), simcluster.NoneLiving(n)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// twenty has twenty pods started in a namespace of their own.
func (c *cluster) twenty(namespace string) {
	c.t.Helper()
	if err := c.NewNamespace(c.ctx, namespace); err != nil {
		c.t.Fatal(err)
	}
	for name, resource := range map[string]corev1.ResourceName{"cy": "qat.intel.com/cy", "dc": "qat.intel.com/dc"} {
		if _, err := c.Client.AppsV1().ReplicaSets(namespace).Create(c.ctx, simcluster.ReplicaSet(namespace, name, resource, 10), metav1.CreateOptions{}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// waitCreated waits until Kata's shim was asked for n sandboxes and containers.
func (c *cluster) waitCreated(namespace string, n int) {
	c.t.Helper()
	for ; ; time.Sleep(10 * time.Millisecond) {
		created, err := simcluster.Created(namespace)
		if err = errors.Join(err, c.ctx.Err()); err != nil {
			c.t.Fatal(err)
		}
		if len(created) >= n {
			return
		}
	}
}

// allRun waits until the twenty run. Every one has a VF of its own, and nothing
// of them was ever created without.
func (c *cluster) allRun(namespace string) {
	c.t.Helper()
	for ready := int32(0); ready < 20; time.Sleep(50 * time.Millisecond) {
		sets, err := c.Client.AppsV1().ReplicaSets(namespace).List(c.ctx, metav1.ListOptions{})
		if err != nil {
			c.t.Fatal(err)
		}
		ready = 0
		for _, set := range sets.Items {
			ready += set.Status.ReadyReplicas
		}
	}
	created, err := simcluster.Created(namespace)
	if err != nil {
		c.t.Fatal(err)
	}
	for what, groups := range created {
		if len(groups) != 1 {
			c.t.Errorf("%s was created with the groups %v, expected one", what, groups)
		}
	}
	living, err := kube.Living()
	if err != nil {
		c.t.Fatal(err)
	}
	holder := map[string]string{}
	for _, spec := range living {
		pod := spec.Annotations["io.kubernetes.cri.sandbox-namespace"] + "/" + spec.Annotations["io.kubernetes.cri.sandbox-name"]
		for _, g := range simcluster.Groups(spec.Linux.Devices) {
			if other := holder[g]; other != "" && other != pod {
				c.t.Errorf("group %s is in %s and in %s", g, other, pod)
			}
			holder[g] = pod
		}
	}
}

// within is how long a node may be without its daemon after that was killed.
const within = 10 * time.Second

// wellAgain waits until the node is well after its daemon was killed, and until the
// twenty run. What kubelet tries once the node is well succeeds: that the pods are
// not there sooner is for how long kubelet waits before it tries a refused one again.
func (c *cluster) wellAgain(namespace string, killed time.Time) {
	c.t.Helper()
	if err := c.WaitConnected(c.ctx); err != nil {
		c.t.Fatal(err)
	}
	well := time.Now()
	c.allRun(namespace)
	ready := time.Now()
	attempts, err := simcluster.Attempts(c.Containerd.Log(), namespace)
	if err != nil {
		c.t.Fatal(err)
	}
	var refused, later int
	for _, a := range attempts {
		switch {
		case a.Refused != "" && a.Asked.Before(well):
			refused++
		case a.Refused != "":
			c.t.Errorf("%.1f s after the daemon was killed, when the node was well: %s", a.Asked.Sub(killed).Seconds(), a)
		case a.Asked.After(well):
			later++
		}
	}
	c.t.Logf("after the daemon was killed the node was well in %.1f s, and all 20 pods were ready in %.1f s: %d attempts were refused before, and %d later ones were not",
		well.Sub(killed).Seconds(), ready.Sub(killed).Seconds(), refused, later)
	if refused+later == 0 {
		c.t.Error("no pod was being started: there was nothing to see")
	}
	if took := well.Sub(killed); took > within {
		c.t.Errorf("the node was well %.1f s after the daemon was killed, expected at most %.0f s", took.Seconds(), within.Seconds())
	}
}

// killDaemon kills the daemon in its container. There is one.
func (c *cluster) killDaemon() {
	c.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		line, err := os.ReadFile(file)
		args := strings.Split(string(line), "\x00")
		if err != nil || filepath.Base(args[0]) != "kata-qat" || !slices.Contains(args, "nri-plugin") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			c.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 1 {
		c.t.Fatalf("processes of the daemon: %v, expected one", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
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

// sh runs a documented command line as an administrator in the module's root, and
// returns what it printed.
func (c *cluster) sh(line string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.ctx, "sh", "-c", line)
	cmd.Dir = root
	helm, err := filepath.Abs(root + "build/tools/helm")
	if err != nil {
		c.t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "HOME="+c.t.TempDir(), "KUBECONFIG="+kube.Kubeconfig, "PATH="+helm+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// says runs a command line, which is to print all this, whatever the space between.
func (c *cluster) says(line string, want ...string) {
	c.t.Helper()
	out := strings.Join(strings.Fields(c.sh(line)), " ")
	for _, w := range want {
		if !strings.Contains(out, w) {
			c.t.Errorf("%s: no %q in %s", line, w, out)
		}
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
