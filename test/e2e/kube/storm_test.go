//go:build kube

package kube

import (
	"context"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

func (s *suite) ready(ctx context.Context) (n int32) {
	s.t.Helper()
	sets, err := s.Client.AppsV1().ReplicaSets(s.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, set := range sets.Items {
		n += set.Status.ReadyReplicas
	}
	return n
}

func (s *suite) waitReady(n int32) {
	s.t.Helper()
	ctx := s.within()
	for s.ready(ctx) < n {
		time.Sleep(20 * time.Millisecond)
	}
}

// twenty has twenty pods started.
func (s *suite) twenty() {
	s.t.Helper()
	s.allocatable(cy, 16)
	s.allocatable(dc, 16)
	for _, set := range []*appsv1.ReplicaSet{simcluster.ReplicaSet(s.namespace, "cy", cy, 10), simcluster.ReplicaSet(s.namespace, "dc", dc, 10)} {
		if _, err := s.Client.AppsV1().ReplicaSets(s.namespace).Create(s.t.Context(), set, metav1.CreateOptions{}); err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Cleanup(s.removeReplicas)
}

// removeReplicas has nothing start again.
func (s *suite) removeReplicas() {
	s.t.Helper()
	err := s.Client.AppsV1().ReplicaSets(s.namespace).DeleteCollection(context.WithoutCancel(s.t.Context()), metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		s.t.Error(err)
	}
}

// storm kills the services one after the other, each when step more sandboxes or
// containers were created or removed.
func (s *suite) storm(steps []func() bool, victims ...*kube.Service) {
	s.t.Helper()
	for i, victim := range victims {
		for ctx := s.within(); !steps[i](); time.Sleep(5 * time.Millisecond) {
			if ctx.Err() != nil {
				s.t.Fatalf("the moment to kill %s never came", victim.Name)
			}
		}
		if err := victim.Kill(s.within()); err != nil {
			s.t.Fatal(err)
		}
	}
}

// noneRefusedAfter sees that what kubelet tries after a moment succeeds.
func (s *suite) noneRefusedAfter(well time.Time) {
	s.t.Helper()
	attempts, err := simcluster.Attempts(s.Containerd.Log(), s.namespace)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range attempts {
		if a.Refused != "" && a.Asked.After(well) {
			s.t.Errorf("%.1f s after all was well: %s", a.Asked.Sub(well).Seconds(), a)
		}
	}
	// Some of the 40 it made and did not live to say so.
	if len(attempts) < 20 {
		s.t.Errorf("containerd's log has %d sandboxes and containers of 20 pods, expected most of them", len(attempts))
	}
}

// While twenty pods start the daemon, containerd and kubelet are killed: nothing
// starts without its devices, no VF is in two pods, and in the end all run. Then
// all are killed again while the pods stop: nothing is left.
func TestKillsWhilePodsStartAndStop(t *testing.T) {
	s := join(t) // looks in the end whether anything is left
	s.twenty()
	created := func(n int) func() bool { return func() bool { return len(s.created()) >= n } }
	s.storm([]func() bool{created(4), created(10), created(20)}, s.Daemon, s.Containerd, s.Kubelet)
	killed := time.Now()
	if err := s.WaitConnected(s.within()); err != nil {
		t.Fatal(err)
	}
	well := time.Now()
	s.waitReady(20)
	t.Logf("after the last kill the daemon and containerd were connected in %s, and all 20 pods were ready in %s",
		well.Sub(killed).Round(10*time.Millisecond), time.Since(killed).Round(10*time.Millisecond))
	s.noneRefusedAfter(well)
	s.holders(20)
	for what, groups := range s.created() {
		if len(groups) != 1 {
			t.Errorf("%s was created with the groups %v, expected one", what, groups)
		}
	}

	s.removeReplicas()
	if err := s.Client.CoreV1().Pods(s.namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	living := func(n int) func() bool {
		return func() bool {
			all, err := kube.Living()
			if err != nil {
				t.Fatal(err)
			}
			return len(all) <= n
		}
	}
	// containerd last: the daemon that it knew hears nothing of the end of the
	// sandboxes that are left.
	s.storm([]func() bool{living(40), living(36), living(30)}, s.Daemon, s.Kubelet, s.Containerd)
}
