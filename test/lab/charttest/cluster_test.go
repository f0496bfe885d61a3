//go:build lab

package charttest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kata-qat/kata-qat/test/bed/apiserver"
)

const root = "../../../"

// cluster is what an administrator has of it: kubectl, helm, and a pod on the
// node with every right, in which a command of the node's can be run.
type cluster struct {
	*testing.T
	ctx    context.Context
	server *apiserver.Server
	client kubernetes.Interface
	node   *machine
}

const admin = "admin"

func connect(t *testing.T, ctx context.Context, server *apiserver.Server, node *machine) *cluster {
	t.Helper()
	config := server.Config(apiserver.Admin)
	config.QPS = -1 // the server has its own flow control
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{t, ctx, server, client, node}
}

// until asks again and again until there is no error.
func (c *cluster) until(what string, ask func() error) {
	c.Helper()
	start := time.Now()
	for {
		err := ask()
		if err == nil {
			c.Logf("%s: after %.1f s", what, time.Since(start).Seconds())
			return
		}
		select {
		case <-c.node.end:
			c.Fatalf("%s: %v; the node has gone: %v", what, err, c.node.err)
		case <-c.ctx.Done():
			c.Fatalf("%s: %v: %v", what, context.Cause(c.ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *cluster) kubectl(stdin string, args ...string) string {
	c.Helper()
	out, err := c.server.Kubectl(c, apiserver.Admin, stdin, args...)
	if err != nil {
		c.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(out)
}

func (c *cluster) helm(args ...string) string {
	c.Helper()
	cmd := exec.CommandContext(c.ctx, root+"build/tools/helm/helm", append(args, "--kubeconfig", c.server.Kubeconfig(c, apiserver.Admin))...)
	cmd.Env = append(os.Environ(), "HOME="+c.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.Fatalf("helm %q: %v: %s", args, err, out)
	}
	return string(out)
}

// adminPod has the node's root at /host, and may do everything.
const adminPod = `apiVersion: v1
kind: Pod
metadata:
  name: ` + admin + `
  namespace: default
  annotations: {tolerate-missing-plugins.kata-qat.io/pod: "true"}
spec:
  nodeName: ` + nodeName + `
  hostNetwork: true
  hostPID: true
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: localhost/kata-qat/busybox:bed
      args: [-c, "trap exit TERM; sleep 2147483647 & wait"]
      securityContext: {privileged: true}
      volumeMounts: [{name: root, mountPath: /host, mountPropagation: HostToContainer}]
  volumes: [{name: root, hostPath: {path: /}}]
`

// onNode runs a script on the node, as root there.
func (c *cluster) onNode(script string) string {
	c.Helper()
	return c.kubectl("", "exec", admin, "--", "chroot", "/host", "/bin/sh", "-euc", "PATH=/usr/sbin:/usr/bin\n"+script)
}

// pod returns the pod of a name, or the only one of ours that is not going.
func (c *cluster) pod(namespace, name string) (*corev1.Pod, error) {
	return c.client.CoreV1().Pods(namespace).Get(c.ctx, name, metav1.GetOptions{})
}

func (c *cluster) daemonPod(not string) (*corev1.Pod, error) {
	list, err := c.client.CoreV1().Pods(namespace).List(c.ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=kata-qat"})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		if p := &list.Items[i]; p.Name != not && p.DeletionTimestamp == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no pod of ours but %q", not)
}

// ready is an error that says what a pod waits for.
func ready(p *corev1.Pod) error {
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		t := s.State.Terminated
		switch {
		case s.Ready:
		case t != nil:
			return fmt.Errorf("container %s ended with %d: %s", s.Name, t.ExitCode, t.Message)
		case s.State.Waiting != nil:
			return fmt.Errorf("container %s waits: %s %s, after %v", s.Name, s.State.Waiting.Reason, s.State.Waiting.Message, s.LastTerminationState.Terminated)
		default:
			return fmt.Errorf("container %s runs, and is not ready", s.Name)
		}
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return fmt.Errorf("pod %s is %s", p.Name, p.Status.Phase)
	}
	return nil
}

// explain says how things stand after a failure.
func (c *cluster) explain() {
	if !c.Failed() {
		return
	}
	for _, args := range [][]string{
		{"get", "pods,daemonsets", "-A", "-o", "wide"}, {"-n", namespace, "describe", "pods"}, {"get", "events", "-A"},
		{"-n", namespace, "logs", "ds/kata-qat", "--all-containers", "--tail", "20", "--request-timeout", "10s"},
	} {
		out, err := c.server.Kubectl(c, apiserver.Admin, "", args...)
		c.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// freePort is one of loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
