//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

// allocatable waits until the node offers as many VFs.
func (s *suite) allocatable(resource corev1.ResourceName, want int64) {
	s.t.Helper()
	if err := s.WaitAllocatable(s.within(), resource, want); err != nil {
		s.t.Fatal(err)
	}
}

func TestTheNodeOffersItsVFs(t *testing.T) {
	s := join(t)
	s.allocatable(cy, 16)
	s.allocatable(dc, 16)
	s.allocatable(sym, 2)
}

// A pod asks for VFs and says nothing else. Everything is there: devices, files,
// limits and environment in its containers, the devices of all of them in the
// sandbox that Kata's shim gets.
func TestAPodRunsWithItsVFs(t *testing.T) {
	s := join(t)
	s.allocatable(cy, 16)
	p := s.pod("tls", map[corev1.ResourceName]int{cy: 2})
	zip := s.pod("zip", map[corev1.ResourceName]int{dc: 1}).Spec.Containers[0]
	zip.Name = "zip"
	idle := s.pod("idle", nil).Spec.Containers[0]
	idle.Name = "idle"
	p.Spec.Containers = append(p.Spec.Containers, zip, idle)
	user := int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &user}
	p = s.run(p)

	main := s.spec(p, "main")
	got := simcluster.Groups(main.Linux.Devices)
	if len(got) != 2 {
		t.Fatalf("it has the groups %v, expected two", got)
	}
	for _, l := range main.Process.Rlimits {
		if want := uint64(2*16+64) << 20; l.Type == "RLIMIT_MEMLOCK" && (l.Soft != want || l.Hard != want) {
			t.Errorf("memlock %d/%d, expected %d", l.Soft, l.Hard, want)
		}
	}
	if out := s.inside(p, "main", "cd /dev/vfio; ls; stat -c '%u %F' *; [ -r "+got[0]+" -a -w "+got[0]+" ] && echo usable"); out !=
		strings.Join(got, "\n")+"\nvfio\n"+strings.Repeat("1000 character special file\n", 3)+"usable" {
		t.Errorf("/dev/vfio: %q", out)
	}
	if out := s.inside(p, "main", "cat /etc/4xxxvf_dev1.conf; ls /etc/*.conf"); !strings.Contains(out, "sym;asym") || strings.Contains(out, "dev2") {
		t.Errorf("configuration files: %s", out)
	}
	if out := s.inside(p, "main", "echo $PCIDEVICE_QAT_INTEL_COM_CY"); len(strings.Split(out, ",")) != 2 {
		t.Errorf("PCIDEVICE_QAT_INTEL_COM_CY=%q, expected two addresses", out)
	}
	if bed.RaisesLimits() {
		if out := s.inside(p, "main", "ulimit -l"); out != "98304" {
			t.Errorf("ulimit -l says %s KiB, expected 98304", out)
		}
	}
	compression := simcluster.Groups(s.spec(p, "zip").Linux.Devices)
	if len(compression) != 1 || compression[0] < "200" {
		t.Errorf("container zip has the groups %v, expected one of the second PF", compression)
	}
	if left := simcluster.Groups(s.spec(p, "idle").Linux.Devices); left != nil {
		t.Errorf("the container that asks for nothing has %v", left)
	}
	sandbox := kube.SandboxOf(main)
	all := append(slices.Clone(got), compression...)
	if diff := cmp.Diff(all, s.created()["tls/sandbox "+sandbox]); diff != "" {
		t.Errorf("groups of the sandbox that Kata's shim was given (-want +got):\n%s", diff)
	}
	if out, err := s.CLI(s.within(), "devices"); err != nil || strings.Count(out, s.namespace+"/tls") != 3 {
		t.Errorf("kata-qat devices: %v\n%s", err, out)
	}
}

// Init containers run before kubelet tells anyone what the pod has.
func TestAnInitContainerHasItsVF(t *testing.T) {
	s := join(t)
	s.allocatable(cy, 16)
	p := s.pod("warm", map[corev1.ResourceName]int{cy: 1})
	first := p.Spec.Containers[0]
	first.Name, first.Args = "first", []string{"-c", "ls /dev/vfio /etc/4xxxvf_dev0.conf"}
	p.Spec.InitContainers = []corev1.Container{first}
	p = s.run(p)
	group := simcluster.Groups(s.spec(p, "main").Linux.Devices)
	out, err := s.Kubectl(s.within(), "logs", "-n", s.namespace, "warm", "-c", "first")
	if err != nil || !strings.Contains(out, "4xxxvf_dev0.conf") || !strings.Contains(out, group[0]) {
		t.Errorf("the init container saw %q, %v, expected the group %v", out, err, group)
	}
}

// unschedulable is for WaitPod: the scheduler has said why it finds no node.
func unschedulable(p *corev1.Pod) error {
	if !kube.Unschedulable(p) {
		return errors.New("the scheduler has not said that it finds no node")
	}
	return nil
}

func TestAPodThatAsksForTooManyStaysPending(t *testing.T) {
	s := join(t)
	s.allocatable(sym, 2)
	if err := s.CreatePod(t.Context(), s.pod("greedy", map[corev1.ResourceName]int{sym: 3})); err != nil {
		t.Fatal(err)
	}
	p, err := s.WaitPod(s.within(), s.namespace, "greedy", unschedulable)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && !strings.Contains(c.Message, "Insufficient "+sym) {
			t.Errorf("the scheduler says %q", c.Message)
		}
	}
	if p.Status.Phase != corev1.PodPending {
		t.Errorf("it is %s", p.Status.Phase)
	}
}

// Of pods that want the same VFs as many run as there are VFs, each with one of
// its own; the others wait, and get theirs when they are free.
func TestTwoPodsNeverShareAVF(t *testing.T) {
	s := join(t)
	s.allocatable(sym, 2)
	for i := range 4 {
		if err := s.CreatePod(t.Context(), s.pod(fmt.Sprintf("p%d", i), map[corev1.ResourceName]int{sym: 1})); err != nil {
			t.Fatal(err)
		}
	}
	first := s.holders(2)
	for name := range first {
		if err := s.Client.CoreV1().Pods(s.namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	second := s.holders(2)
	for name := range second {
		if first[name] != "" {
			t.Errorf("%s was deleted and runs", name)
		}
	}
}

// holders waits until n pods of the namespace run that are not being deleted,
// and returns the group that each has.
func (s *suite) holders(n int) map[string]string {
	s.t.Helper()
	ctx := s.within()
	for {
		pods, err := s.Client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
		by, holder := map[string]string{}, map[string]string{}
		for _, p := range pods.Items {
			if p.DeletionTimestamp != nil || kube.Running(&p) != nil {
				continue
			}
			for _, g := range simcluster.Groups(s.spec(&p, "main").Linux.Devices) {
				if other := holder[g]; other != "" {
					s.t.Fatalf("group %s is in %s and in %s", g, other, p.Name)
				}
				holder[g], by[p.Name] = p.Name, g
			}
		}
		if len(by) == n {
			return by
		}
		if ctx.Err() != nil || len(by) > n {
			s.t.Fatalf("pods with a VF: %v, expected %d", by, n)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestAPodWithoutQATIsUntouched(t *testing.T) {
	s := join(t)
	with, err := plainSpec(context.WithoutCancel(t.Context()), s.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(without, with); diff != "" {
		t.Errorf("spec (-without +with kata-qat on the node):\n%s", diff)
	}
}
