package simcluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
)

// Pod is a pod whose container "main" asks for VFs and runs until it is removed,
// with our RuntimeClass if it asks for any.
func Pod(namespace, name string, asks map[corev1.ResourceName]int) *corev1.Pod {
	limits := corev1.ResourceList{}
	for asked, n := range asks {
		limits[asked] = *resource.NewQuantity(int64(n), resource.DecimalSI)
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: bed.Busybox, Args: []string{"-c", kube.Forever},
			Resources: corev1.ResourceRequirements{Limits: limits},
		}}},
	}
	if len(asks) > 0 {
		class := Handler
		p.Spec.RuntimeClassName = &class
	}
	return p
}

// Groups are the VFIO groups among devices.
func Groups(devices []specs.LinuxDevice) []string {
	var out []string
	for _, d := range devices {
		if group, ok := strings.CutPrefix(d.Path, "/dev/vfio/"); ok && group != "vfio" {
			out = append(out, group)
		}
	}
	slices.Sort(out)
	return out
}

// Created are the groups that Kata's shim was given with every sandbox and
// container of a namespace, whether it lives or not, by "pod/container id"; the
// sandbox is called "sandbox".
func Created(namespace string) (map[string][]string, error) {
	events, err := bed.ReadShimEvents(kube.StandinRecord)
	if err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, e := range events {
		a := e.Annotations
		if e.Event != "create" || a["io.kubernetes.cri.sandbox-namespace"] != namespace {
			continue
		}
		what := a["io.kubernetes.cri.container-name"]
		if e.ContainerType == "sandbox" {
			what = "sandbox"
		}
		all[fmt.Sprintf("%s/%s %s", a["io.kubernetes.cri.sandbox-name"], what, e.ID)] = Groups(e.Devices)
	}
	return all, nil
}

// NoneLiving returns an error that names what lives of a namespace's pods on the
// node.
func NoneLiving(namespace string) error {
	living, err := kube.Living()
	for id, spec := range living {
		if spec.Annotations["io.kubernetes.cri.sandbox-namespace"] == namespace {
			err = errors.Join(err, fmt.Errorf("%s of pod %s lives", id, spec.Annotations["io.kubernetes.cri.sandbox-name"]))
		}
	}
	return err
}

// ReplicaSet keeps n pods with one VF each running, however often one fails: a
// kubelet that starts anew fails those for good that it is given before the
// device plugin has registered.
func ReplicaSet(namespace, name string, resource corev1.ResourceName, n int32) *appsv1.ReplicaSet {
	pod := Pod(namespace, name, map[corev1.ResourceName]int{resource: 1})
	labels := map[string]string{"set": name}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &n,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
		},
	}
}
