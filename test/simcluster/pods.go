package simcluster

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
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
