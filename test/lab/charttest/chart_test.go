//go:build lab

// Package charttest installs the Helm chart, as it is, in a cluster whose node has
// QAT devices for a kernel that is not simulated: the init containers load modules,
// enable VFs and bind them, make a guest, and restart the node's own containerd,
// with the rights that the chart gives them and no other. Only Kata is a stand-in.
// The node is a guest of the lab, with a real systemd, kubelet and containerd, and
// cgroups of version 2; the control plane is real, and runs on this machine.
package charttest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/kata-qat/kata-qat/test/bed/apiserver"
)

const namespace = "kata-qat"

// values are what the chart is told: labels are looked at each minute otherwise.
var values = []string{"--set", "nodeLabels.interval=3s"}

// The steps depend on one another.
func TestTheChartMakesANode(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	start := time.Now()
	server := apiserver.ForNode(t, apiserver.Node{Name: nodeName, Host: thisMachine})
	c := connect(t, ctx, server, startMachine(t, server, freePort(t)))
	defer c.explain()

	c.until("the node joins", c.nodeReady)
	c.until("an administrator's pod", func() error {
		_, err := c.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	c.kubectl(adminPod, "apply", "-f", "-")
	c.until("the administrator's pod runs", func() error { return c.podReady("default", admin) })
	c.expectOnNode("before", vfs, "0 VFs, 0 bound")
	c.withoutOneOfItsRights()
	c.expectOnNode("after provisioning without a right that it needs", vfs, "0 VFs, 0 bound")

	c.helm(append([]string{"install", "kata-qat", root + "deploy/helm/kata-qat", "--namespace", namespace, "--create-namespace"}, values...)...)
	first := c.provisioned("")
	c.labelled()
	c.provisionedAgain(first)
	c.labelsFollowDoctor()
	c.aPodUsesItsVF()

	t.Logf("all of it: %.1f s", time.Since(start).Seconds())
	c.onNode("touch " + finished)
	<-c.node.end
	if c.node.err != nil {
		t.Error(c.node.err)
	} else if c.node.res.ExitCode != 0 {
		t.Errorf("the node's script ended with %d", c.node.res.ExitCode)
	}
}

func (c *cluster) nodeReady() error {
	node, err := c.client.CoreV1().Nodes().Get(c.ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("the node is not ready: %v", node.Status.Conditions)
}

func (c *cluster) podReady(namespace, name string) error {
	p, err := c.pod(namespace, name)
	if err != nil {
		return err
	}
	return ready(p)
}

// vfs says how many VFs the node's kernel has, and how many vfio-pci has.
const vfs = `echo "$(cat /sys/bus/pci/devices/*/sriov_numvfs) VFs, $(ls /sys/bus/pci/drivers/vfio-pci 2>/dev/null | grep -c : || true) bound"`

func (c *cluster) expectOnNode(when, script, want string) {
	c.Helper()
	if got := c.onNode(script); got != want {
		c.Errorf("%s: the node has %q, expected %q", when, got, want)
	}
}

// rendered are the chart's DaemonSet and ConfigMap.
func (c *cluster) rendered() (*appsv1.DaemonSet, *corev1.ConfigMap) {
	c.Helper()
	ds, config := new(appsv1.DaemonSet), new(corev1.ConfigMap)
	for doc := range strings.SplitSeq(c.helm(append([]string{"template", "kata-qat", root + "deploy/helm/kata-qat"}, values...)...), "\n---\n") {
		var object metav1.PartialObjectMetadata
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			c.Fatal(err)
		}
		if object.Name != "kata-qat" { // what uninstalls it is another DaemonSet
			continue
		}
		var into any
		switch object.Kind {
		case "DaemonSet":
			into = ds
		case "ConfigMap":
			into = config
		default:
			continue
		}
		if err := yaml.Unmarshal([]byte(doc), into); err != nil {
			c.Fatal(err)
		}
	}
	return ds, config
}

// lacks are rights of the init container host, each with what it says without.
var lacks = []struct {
	name, says string
	take       func(*corev1.Container)
}{
	{"sys-chroot", "CAP_SYS_CHROOT", dropping("SYS_CHROOT")},
	// update-grub would end well and write what does not boot.
	{"d-bus", "this process may not open the disk", func(c *corev1.Container) {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: empty, MountPath: "/host/run/dbus"})
	}},
	{"sys-module", "CAP_SYS_MODULE", dropping("SYS_MODULE")},
	{"root-writable", "read-only file system", func(c *corev1.Container) {
		for i := range c.VolumeMounts {
			c.VolumeMounts[i].ReadOnly = true
		}
	}},
}

// empty is the volume for a lack that is an empty directory.
const empty = "empty"

func dropping(capability corev1.Capability) func(*corev1.Container) {
	return func(c *corev1.Container) {
		add := &c.SecurityContext.Capabilities.Add
		*add = slices.DeleteFunc(*add, func(has corev1.Capability) bool { return has == capability })
	}
}

// withoutOneOfItsRights runs the init container host as it is but for one right
// at a time: each is needed, and what it says names it.
func (c *cluster) withoutOneOfItsRights() {
	c.Helper()
	ds, config := c.rendered()
	config.Namespace = "default"
	if _, err := c.client.CoreV1().ConfigMaps("default").Create(c.ctx, config, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	for _, lack := range lacks {
		container := ds.Spec.Template.Spec.InitContainers[0].DeepCopy()
		if container.Name != "host" {
			c.Fatalf("the first init container is %s, expected host", container.Name)
		}
		lack.take(container)
		spec := ds.Spec.Template.Spec.DeepCopy()
		spec.Containers, spec.InitContainers = []corev1.Container{*container}, nil
		spec.NodeName, spec.RestartPolicy, spec.ServiceAccountName = nodeName, corev1.RestartPolicyNever, "default"
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: empty, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool {
			return !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		})
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "without-" + lack.name, Namespace: "default"}, Spec: *spec}
		if _, err := c.client.CoreV1().Pods("default").Create(c.ctx, pod, metav1.CreateOptions{}); err != nil {
			c.Fatal(err)
		}
		var ended *corev1.ContainerStateTerminated
		c.until("host "+pod.Name, func() error {
			p, err := c.pod("default", pod.Name)
			if err != nil {
				return err
			}
			if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Terminated == nil {
				return fmt.Errorf("it has not ended: %v", p.Status.ContainerStatuses)
			}
			ended = p.Status.ContainerStatuses[0].State.Terminated
			return nil
		})
		c.Logf("exit code %d: %s", ended.ExitCode, ended.Message)
		if ended.ExitCode == 0 || !strings.Contains(ended.Message, lack.says) {
			c.Errorf("host %s: exit code %d: %s\nexpected a failure that names %s", pod.Name, ended.ExitCode, ended.Message, lack.says)
		}
	}
}

// provisioned waits until a pod of the chart is ready, which is not the given one,
// and sees that its init containers ran once, to their end, in their order.
func (c *cluster) provisioned(not string) *corev1.Pod {
	c.Helper()
	var pod *corev1.Pod
	c.until("the chart's pod is ready", func() (err error) {
		if pod, err = c.daemonPod(not); err != nil {
			return err
		}
		return ready(pod)
	})
	var order []string
	var end metav1.Time
	for _, s := range pod.Status.InitContainerStatuses {
		t := s.State.Terminated
		if t == nil || t.ExitCode != 0 || s.RestartCount != 0 || t.StartedAt.Before(&end) {
			c.Errorf("init container %s: restarted %d times, %+v after %v", s.Name, s.RestartCount, t, end)
			continue
		}
		order, end = append(order, s.Name), t.FinishedAt
		c.Logf("%s: %v; it says:\n%s", s.Name, t.FinishedAt.Sub(t.StartedAt.Time), c.kubectl("", "-n", namespace, "logs", pod.Name, "-c", s.Name))
	}
	if want := []string{"host", "guest-vfio", "runtime"}; !slices.Equal(order, want) {
		c.Errorf("init containers %v, expected %v", order, want)
	}
	c.expectOnNode("after provisioning", vfs, "16 VFs, 16 bound")
	c.expectOnNode("after provisioning", `
		ls /var/lib/kata-qat/guest/vfio/current /etc/kata-qat/kata/kata-qat/config.d /etc/containerd/conf.d /usr/local/bin | xargs
		grep -q '^[[:space:]]*linux[[:space:]].* iommu=pt' /boot/grub/grub.cfg && echo the next boot has the parameters
		grep -q 'search --no-floppy --fs-uuid' /boot/grub/grub.cfg && echo GRUB finds its disk`, `
/etc/containerd/conf.d: 60-kata-qat.toml /etc/kata-qat/kata/kata-qat/config.d: 60-kata-qat.toml /usr/local/bin: containerd-shim-kata-qat-v2 kata-qat kata-qat-full /var/lib/kata-qat/guest/vfio/current: initrd manifest.json vmlinuz
the next boot has the parameters
GRUB finds its disk`[1:])
	return pod
}

// provisionedAgain deletes the pod: the init containers of its successor change
// nothing.
func (c *cluster) provisionedAgain(first *corev1.Pod) {
	c.Helper()
	c.onNode("touch /run/lab/before")
	c.kubectl("", "-n", namespace, "delete", "pod", first.Name)
	second := c.provisioned(first.Name)
	for _, s := range second.Status.InitContainerStatuses {
		if log := c.kubectl("", "-n", namespace, "logs", second.Name, "-c", s.Name); !strings.Contains(log, "Nothing to do: ") {
			c.Errorf("the second time %s says %q, expected nothing to do", s.Name, log)
		}
	}
	c.expectOnNode("the second time", "find /boot /etc /opt /usr /var/lib/kata-qat -type f -newer /run/lab/before ! -path /var/lib/kata-qat/lock", "")
}

// ours are the node's labels that are ours.
func (c *cluster) ours() (map[string]string, error) {
	node, err := c.client.CoreV1().Nodes().Get(c.ctx, nodeName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	labels := node.Labels
	maps.DeleteFunc(labels, func(k, _ string) bool { return !strings.HasPrefix(k, "kata-qat.io/") })
	return labels, nil
}

// fit are the labels of the node while doctor finds no fault.
var fit = map[string]string{"kata-qat.io/node": "true", "kata-qat.io/family.4xxx": "true", "kata-qat.io/service.cy": "true"}

func (c *cluster) waitLabels(what string, want map[string]string) {
	c.Helper()
	c.until(what, func() error {
		labels, err := c.ours()
		if err == nil && !maps.Equal(labels, want) {
			err = fmt.Errorf("the node has %v, expected %v", labels, want)
		}
		return err
	})
}

// doctor is what it says where an administrator asks it.
func (c *cluster) doctor() string {
	out, err := c.server.Kubectl(c, apiserver.Admin, "", "-n", namespace, "exec", "ds/kata-qat", "-c", "labels", "--", "kata-qat", "doctor", "--problems")
	return fmt.Sprintf("%s(%v)", out, err)
}

func (c *cluster) labelled() {
	c.Helper()
	c.waitLabels("the labels of a node that is fit", fit)
	// The parameters are in force after the next boot; nothing else is to be said.
	if says := c.doctor(); !strings.Contains(says, " 1 warnings, 0 failures") || !strings.Contains(says, "kernel-command-line") {
		c.Errorf("doctor says\n%s\nexpected one warning, of the kernel's command line", says)
	}
}

// labelsFollowDoctor has a VF lose its driver and get it back. Meanwhile no node is
// fit for a pod that asks for a VF.
func (c *cluster) labelsFollowDoctor() {
	c.Helper()
	vf := c.onNode("basename $(readlink /sys/bus/pci/devices/*/virtfn0)")
	c.onNode("echo " + vf + " >/sys/bus/pci/drivers/vfio-pci/unbind")
	c.waitLabels("no label while a VF has no driver", map[string]string{})
	if says := c.doctor(); !strings.Contains(says, "vf-driver") {
		c.Errorf("doctor says %s\nexpected a check that fails: vf-driver", says)
	}
	c.kubectl(vfPod, "apply", "-f", "-")
	c.until("the scheduler finds no node that is fit", func() error {
		p, err := c.pod("default", "tls")
		if err != nil {
			return err
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Reason == corev1.PodReasonUnschedulable {
				return nil
			}
		}
		return fmt.Errorf("the pod is %s: %v", p.Status.Phase, p.Status.Conditions)
	})
	c.onNode("echo " + vf + " >/sys/bus/pci/drivers/vfio-pci/bind")
	c.waitLabels("the labels are back", fit)
}

// vfPod asks for a VF as docs/kubernetes.md has it. It is on the node's network,
// for there is no other.
const vfPod = `apiVersion: v1
kind: Pod
metadata: {name: tls, namespace: default}
spec:
  runtimeClassName: kata-qat
  hostNetwork: true
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: localhost/kata-qat/busybox:bed
      args: [-c, "trap exit TERM; sleep 2147483647 & wait"]
      resources: {limits: {qat.intel.com/cy: 1}}
      volumeMounts: [{name: vfiotest, mountPath: /vfiotest, readOnly: true}]
  volumes: [{name: vfiotest, hostPath: {path: /opt/lab/vfiotest, type: File}}]
`

// aPodUsesItsVF sees that the pod runs now, and uses the VF that it got. It can make
// a node of another one, as root may there, and not open it: that is for the rules
// of its cgroup, which with version 2 are a program for the kernel.
func (c *cluster) aPodUsesItsVF() {
	c.Helper()
	c.until("a pod with a VF runs", func() error { return c.podReady("default", "tls") })
	own := c.inPod("echo $PCIDEVICE_QAT_INTEL_COM_CY")
	other := c.onNode("for vf in /sys/bus/pci/devices/*/virtfn*; do basename $(readlink $vf); done | grep -v " + own + " | head -1")
	if says := c.inPod("/vfiotest " + own); !strings.HasPrefix(says, "PASS "+own) {
		c.Errorf("in the pod its VF is not usable: %s", says)
	}
	numbers := func(vf string) string {
		return c.onNode("tr : ' ' </sys/class/vfio/$(basename $(readlink /sys/bus/pci/devices/" + vf + "/iommu_group))/dev")
	}
	const script = `cut -d: -f1,2 /proc/self/cgroup
		open() { mknod /tmp/$1 c $2 $3; if sh -c ": </tmp/$1" 2>/tmp/why; then echo $1: opened; else echo $1: $(sed 's/.*: //' /tmp/why); fi; }
		open own %s
		open other %s`
	const want = "0:\nown: opened\nother: Operation not permitted"
	if says := c.inPod(fmt.Sprintf(script, numbers(own), numbers(other))); says != want {
		c.Errorf("nodes that the container makes itself: it says %q, expected %q", says, want)
	}
}

func (c *cluster) inPod(script string) string {
	c.Helper()
	return c.kubectl("", "exec", "tls", "--", "/bin/sh", "-c", script)
}
