package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// Forever is a shell script that runs until it is told to end. A shell alone, as
// process 1, would not hear that.
const Forever = "trap exit TERM; sleep 2147483647 & wait"

// NewNamespace makes a namespace in which pods can be made at once.
func (b *Bed) NewNamespace(ctx context.Context, name string) error {
	if _, err := b.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	return wait(ctx, "namespace "+name, func(ctx context.Context) error {
		_, err := b.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// CreatePod creates a pod and does not wait for anything.
func (b *Bed) CreatePod(ctx context.Context, pod *corev1.Pod) error {
	_, err := b.Client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// WaitPod waits until a pod is as is asked for and returns it; done says what is
// missing.
func (b *Bed) WaitPod(ctx context.Context, namespace, name string, done func(*corev1.Pod) error) (*corev1.Pod, error) {
	pods := b.Client.CoreV1().Pods(namespace)
	var last error
	for ctx.Err() == nil {
		pod, err := pods.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if last = done(pod); last == nil {
			return pod, nil
		}
		w, err := pods.Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: pod.ResourceVersion,
		})
		if err != nil {
			continue // the deadline, or an API server that comes back
		}
		for event := range w.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && event.Type == watch.Modified {
				if last = done(pod); last == nil {
					w.Stop()
					return pod, nil
				}
			}
			if event.Type == watch.Deleted {
				w.Stop()
				return nil, fmt.Errorf("wait for pod %s/%s: it was deleted", namespace, name)
			}
		}
	}
	return nil, fmt.Errorf("wait for pod %s/%s: %w: %w", namespace, name, context.Cause(ctx), last)
}

// Running is for WaitPod: all containers run.
func Running(pod *corev1.Pod) error {
	if pod.Status.Phase != corev1.PodRunning {
		return fmt.Errorf("it is %s: %s", pod.Status.Phase, waiting(pod))
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running == nil {
			return fmt.Errorf("container %s does not run: %s", c.Name, waiting(pod))
		}
	}
	return nil
}

// Unschedulable tells whether the scheduler has said that it finds no node.
func Unschedulable(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable
	})
}

// waiting is what a pod says that it waits for.
func waiting(pod *corev1.Pod) string {
	parts := []string{pod.Status.Reason, pod.Status.Message}
	for _, c := range pod.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			parts = append(parts, c.Message)
		}
	}
	for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if w := c.State.Waiting; w != nil {
			parts = append(parts, w.Reason, w.Message)
		}
		if t := c.State.Terminated; t != nil {
			parts = append(parts, fmt.Sprintf("ended with %d", t.ExitCode), t.Reason, t.Message)
		}
	}
	return strings.Join(strings.Fields(strings.Join(parts, " ")), " ")
}

// RunPod creates a pod and waits until it runs.
func (b *Bed) RunPod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	if err := b.CreatePod(ctx, pod); err != nil {
		return nil, err
	}
	return b.WaitPod(ctx, pod.Namespace, pod.Name, Running)
}

// RemovePods deletes the pods of a namespace without grace, and returns when
// they are gone.
func (b *Bed) RemovePods(ctx context.Context, namespace string) error {
	pods := b.Client.CoreV1().Pods(namespace)
	// 1 s and not 0: with 0 the API server forgets pods that still run.
	grace := int64(1)
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &grace}, metav1.ListOptions{}); err != nil {
		return err
	}
	return wait(ctx, "the pods of "+namespace+" to go", func(ctx context.Context) error {
		list, err := pods.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("%d are left, for example %s", len(list.Items), list.Items[0].Name)
		}
		return nil
	})
}

// Events are what the cluster has said of a pod, one a line.
func (b *Bed) Events(ctx context.Context, namespace, pod string) (string, error) {
	list, err := b.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, e := range list.Items {
		fmt.Fprintf(&out, "%s %s: %s\n", e.Type, e.Reason, e.Message)
	}
	return out.String(), nil
}

// Exec runs a shell script in a container and returns its output.
func (b *Bed) Exec(ctx context.Context, namespace, pod, container, script string) (string, error) {
	out, err := b.Kubectl(ctx, "exec", "-n", namespace, pod, "-c", container, "--", "/bin/sh", "-c", script)
	return strings.TrimSpace(out), err
}

// ContainerID is the id of a container that was created, "" before that.
func ContainerID(pod *corev1.Pod, container string) string {
	for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if c.Name == container {
			return strings.TrimPrefix(c.ContainerID, "containerd://")
		}
	}
	return ""
}

// Bundles is where the node's containerd has its bundles, by id.
const Bundles = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"

// OCISpec reads the spec of a container or sandbox that lives.
func OCISpec(id string) (*specs.Spec, error) {
	if id == "" {
		return nil, errors.New("read the spec of a container: it was not created")
	}
	content, err := os.ReadFile(filepath.Join(Bundles, id, "config.json"))
	if err != nil {
		return nil, err
	}
	spec := new(specs.Spec)
	return spec, json.Unmarshal(content, spec)
}

// SandboxOf is the id of the sandbox that a container's spec names.
func SandboxOf(spec *specs.Spec) string { return spec.Annotations["io.kubernetes.cri.sandbox-id"] }

// Living are the specs of all containers and sandboxes of which runc knows on the
// node, by id. A bundle alone may outlive its container: containerd keeps that of
// a sandbox that it was killed beside until kubelet removes the sandbox.
func Living() (map[string]*specs.Spec, error) {
	entries, err := os.ReadDir(filepath.Join(runcRoot, "k8s.io"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	all := map[string]*specs.Spec{}
	for _, e := range entries {
		spec, err := OCISpec(e.Name())
		if os.IsNotExist(err) {
			continue // it is just going
		}
		if err != nil {
			return nil, err
		}
		all[e.Name()] = spec
	}
	return all, nil
}

// Gone tells whether an error says that an object is not there.
func Gone(err error) bool { return apierrors.IsNotFound(err) }
