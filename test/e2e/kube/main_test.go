//go:build kube

// Package kube tests kata-qat as a cluster sees it: pods are applied, scheduled
// and started by a real Kubernetes. Only the devices and the VM are simulated.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

func TestMain(m *testing.M) { os.Exit(simcluster.Main(m.Run)) }

// Resources of the node's three PFs.
const (
	cy  = "qat.intel.com/cy"
	dc  = "qat.intel.com/dc"
	sym = "qat.intel.com/sym"
)

// without is the spec of a plain pod's container from the time before kata-qat
// was installed.
var without map[string]any

// start starts the cluster that the tests share, and installs kata-qat.
var start = sync.OnceValues(func() (*simcluster.Cluster, error) {
	ctx := context.Background()
	c, err := simcluster.Start(ctx, simcluster.Machine())
	if err != nil {
		return nil, err
	}
	if without, err = plainSpec(ctx, c); err != nil {
		return nil, err
	}
	return c, c.Install(ctx, nil)
})

// suite is a test's part of the cluster: a namespace of its own.
type suite struct {
	*simcluster.Cluster
	t         *testing.T
	namespace string
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// join gives a test its part of the cluster. When the test ends its pods are
// removed, and nothing of them may be left on the node.
func join(t *testing.T) *suite {
	t.Helper()
	c, err := start()
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{Cluster: c, t: t, namespace: strings.Trim(notInNames.ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")}
	ctx := context.WithoutCancel(t.Context())
	t.Cleanup(func() {
		if err := c.RemovePods(ctx, s.namespace); err != nil {
			t.Error(err)
		}
		if err := s.nothingIsHeld(ctx); err != nil {
			t.Errorf("after the pods were removed: %v", err)
		}
		if t.Failed() {
			t.Log(c.Logs(8))
		}
	})
	if err := c.NewNamespace(ctx, s.namespace); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *suite) pod(name string, asks map[corev1.ResourceName]int) *corev1.Pod {
	return simcluster.Pod(s.namespace, name, asks)
}

// within is a context for something that takes a second or two on a quiet
// machine.
func (s *suite) within() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *suite) run(p *corev1.Pod) *corev1.Pod {
	s.t.Helper()
	running, err := s.RunPod(s.within(), p)
	if err != nil {
		events, _ := s.Events(context.WithoutCancel(s.t.Context()), p.Namespace, p.Name)
		s.t.Fatalf("%v\nevents:\n%s", err, events)
	}
	return running
}

func (s *suite) inside(p *corev1.Pod, container, script string) string {
	s.t.Helper()
	out, err := s.Exec(s.within(), p.Namespace, p.Name, container, script)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *suite) spec(p *corev1.Pod, container string) *specs.Spec {
	s.t.Helper()
	spec, err := kube.OCISpec(kube.ContainerID(p, container))
	if err != nil {
		s.t.Fatal(err)
	}
	return spec
}

func (s *suite) created() map[string][]string {
	s.t.Helper()
	all, err := simcluster.Created(s.namespace)
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// nothingIsHeld waits until the node has let go of everything.
func (s *suite) nothingIsHeld(ctx context.Context) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := errors.Join(simcluster.NoneLiving(s.namespace), s.noneAssigned(ctx))
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *suite) noneAssigned(ctx context.Context) error {
	client, err := api.Dial(ctx, config.Default().RunDir+"/"+api.SocketName)
	if err != nil {
		return err
	}
	defer client.Close()
	r, err := client.Assignments(ctx, &nodev1.AssignmentsRequest{Client: api.Self()})
	if err != nil {
		return err
	}
	if n := len(r.GetAssignments()); n > 0 {
		return fmt.Errorf("the daemon has %d assignments, for example %v", n, r.GetAssignments()[0])
	}
	return nil
}

// plainSpec runs a pod that asks for nothing and returns its container's spec,
// with a word in the place of what differs between any two pods.
func plainSpec(ctx context.Context, c *simcluster.Cluster) (map[string]any, error) {
	no := false
	pod, err := c.RunPod(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "plain", Namespace: "default"},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			Containers:                   []corev1.Container{{Name: "main", Image: bed.Busybox, Args: []string{"-c", kube.Forever}}},
		},
	})
	if err != nil {
		return nil, err
	}
	id := kube.ContainerID(pod, "main")
	spec, err := kube.OCISpec(id)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer(kube.SandboxOf(spec), "SANDBOX", id, "CONTAINER", string(pod.UID), "UID").Replace(string(b))
	text = regexp.MustCompile(`/proc/[0-9]+/|/containers/main/[0-9a-f]{8}`).ReplaceAllString(text, "DIFFERENT")
	var out map[string]any
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, err
	}
	// kubelet's order of the services' variables is that of a map.
	env := out["process"].(map[string]any)["env"].([]any)
	slices.SortFunc(env, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	return out, c.RemovePods(ctx, "default")
}
