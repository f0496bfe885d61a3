package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simcluster"
)

const (
	cyResource = "qat.intel.com/cy"
	benchSpace = "bench"
)

// benchKube measures pods in a real cluster, for which this program is started
// again in namespaces of its own.
func benchKube(ctx context.Context, o options) error {
	code := simcluster.Main(func() int {
		if err := measureKube(ctx, o); err != nil {
			fmt.Fprintf(os.Stderr, "bench: kube: %v\n", err)
			return 1
		}
		return 0
	})
	if kube.Inside() || code != 0 {
		os.Exit(code)
	}
	return nil
}

func measureKube(ctx context.Context, o options) error {
	machine := qattest.Node{}
	for i, address := range []qat.Address{"0000:6b:00.0", "0000:70:00.0", "0000:e8:00.0", "0000:ed:00.0"} {
		machine.PFs = append(machine.PFs, qattest.PF{
			Address: address, Family: "4xxx", NUMA: i / 2, Services: "sym;asym", State: qat.StateUp,
			Group: i + 1, VFs: 16, VFDriver: "vfio-pci", FirstGroup: 100 * (i + 1),
		})
	}
	c, err := simcluster.Start(ctx, machine)
	if err != nil {
		return err
	}
	if err := c.Install(ctx, nil); err != nil {
		return err
	}
	if err := c.NewNamespace(ctx, benchSpace); err != nil {
		return err
	}
	if err := c.WaitAllocatable(ctx, cyResource, 64); err != nil {
		return err
	}
	b := &kubeBench{Cluster: c, started: make(map[string]time.Time)}
	if err := b.watchStarts(ctx); err != nil {
		return err
	}
	for _, f := range []func(context.Context, options) error{b.pairs, b.crowds, b.footprint} {
		if err := f(ctx, o); err != nil {
			return fmt.Errorf("%w%s", err, c.Logs(5))
		}
	}
	return nil
}

type kubeBench struct {
	*simcluster.Cluster
	mu      sync.Mutex
	started map[string]time.Time // by container id
}

var startEvent = regexp.MustCompile(`^(\S+ \S+ \S+) \S+ \S+ /tasks/start \{"container_id":"([0-9a-f]+)"`)

// watchStarts notes when containerd started each container, before kubelet has
// seen it and told the API server.
func (b *kubeBench) watchStarts(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "ctr", "--namespace", "k8s.io", "events")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			m := startEvent.FindStringSubmatch(lines.Text())
			if m == nil {
				continue
			}
			at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700", m[1])
			if err != nil {
				continue // told by whoever misses it
			}
			b.mu.Lock()
			b.started[m[2]] = at
			b.mu.Unlock()
		}
	}()
	return nil
}

func (b *kubeBench) startOf(pod *corev1.Pod) (time.Time, error) {
	for range 100 {
		b.mu.Lock()
		at, ok := b.started[kube.ContainerID(pod, "main")]
		b.mu.Unlock()
		if ok {
			return at, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Time{}, fmt.Errorf("containerd told nothing of the start of pod %s", pod.Name)
}

// podWith asks for VFs, or for none; both have the same RuntimeClass.
func podWith(name string, vfs int) *corev1.Pod {
	asks := map[corev1.ResourceName]int{}
	if vfs > 0 {
		asks[cyResource] = vfs
	}
	p := simcluster.Pod(benchSpace, name, asks)
	class := simcluster.Handler
	p.Spec.RuntimeClassName = &class
	return p
}

// pairs measures one pod after the other, with two VFs and without, in turn.
func (b *kubeBench) pairs(ctx context.Context, o options) error {
	if o.pods == 0 {
		return nil
	}
	names := []string{"the same pod without QAT", "pod with two VFs"}
	running, started := make([]variant, 2), make([]variant, 2)
	for i, name := range names {
		running[i].name, started[i].name = name, name
	}
	const inRound = 5
	for round := range o.pods/inRound + 1 {
		took := [2][2]bed.Durations{}
		for n := range inRound {
			for turn := range 2 {
				v := (turn + n + round) % 2
				begin := time.Now()
				pod, err := b.RunPod(ctx, podWith(fmt.Sprintf("p%d-%d-%d", round, n, v), 2*v))
				if err != nil {
					return err
				}
				took[v][0] = append(took[v][0], time.Since(begin))
				at, err := b.startOf(pod)
				if err != nil {
					return err
				}
				took[v][1] = append(took[v][1], at.Sub(begin))
				if err := b.RemovePods(ctx, benchSpace); err != nil {
					return err
				}
			}
		}
		if round == 0 {
			continue // does not count
		}
		for v := range 2 {
			running[v].rounds = append(running[v].rounds, took[v][0])
			started[v].rounds = append(started[v].rounds, took[v][1])
		}
	}
	title := fmt.Sprintf(", Kubernetes 1.37, in turn, %d each", len(running[0].rounds)*inRound)
	printPaired("From apply to Running"+title, running)
	printPaired("From apply to the start of the container"+title, started)
	return nil
}

// crowds measures many pods at once, and looks for VFs that are in two of them.
func (b *kubeBench) crowds(ctx context.Context, o options) error {
	fmt.Printf("\n### %d pods at once\n\n| | all running after | pending | VFs in two pods |\n|---|---|---|---|\n", o.crowd)
	for _, v := range []struct {
		name string
		vfs  int
	}{{"pods without QAT", 0}, {"pods with one VF each", 1}, {"pods without QAT, again", 0}, {"pods with one VF each, again", 1}} {
		took, pending, twice, err := b.atOnce(ctx, o.crowd, v.vfs)
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %.1f s | %d | %d |\n", v.name, took.Seconds(), pending, twice)
	}
	return nil
}

func (b *kubeBench) atOnce(ctx context.Context, crowd, vfs int) (took time.Duration, pending, twice int, err error) {
	pods := b.Client.CoreV1().Pods(benchSpace)
	w, err := pods.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, 0, 0, err
	}
	defer w.Stop()
	begin := time.Now()
	for i := range crowd {
		if err := b.CreatePod(ctx, podWith(fmt.Sprintf("c%d", i), vfs)); err != nil {
			return 0, 0, 0, err
		}
	}
	settled := make(map[string]*corev1.Pod)
	for limit := time.After(5 * time.Minute); len(settled) < crowd; {
		select {
		case event := <-w.ResultChan():
			pod, ok := event.Object.(*corev1.Pod)
			if !ok || event.Type == watch.Deleted {
				return 0, 0, 0, fmt.Errorf("watching the pods ended: %v", event.Object)
			}
			if kube.Running(pod) == nil || kube.Unschedulable(pod) {
				settled[pod.Name] = pod
			}
		case <-limit:
			return 0, 0, 0, fmt.Errorf("after 5 minutes %d of %d pods run or are unschedulable", len(settled), crowd)
		case <-ctx.Done():
			return 0, 0, 0, ctx.Err()
		}
	}
	took = time.Since(begin)
	holder := make(map[string]string)
	for name, pod := range settled {
		if kube.Running(pod) != nil {
			pending++
			continue
		}
		spec, err := kube.OCISpec(kube.ContainerID(pod, "main"))
		if err != nil {
			return 0, 0, 0, err
		}
		groups := simcluster.Groups(spec.Linux.Devices)
		if len(groups) != vfs {
			return 0, 0, 0, fmt.Errorf("pod %s has the groups %v, expected %d", name, groups, vfs)
		}
		for _, g := range groups {
			if holder[g] != "" {
				twice++
			}
			holder[g] = name
		}
	}
	return took, pending, twice, b.RemovePods(ctx, benchSpace)
}

// footprint watches the daemon while pods that hold VFs just run.
func (b *kubeBench) footprint(ctx context.Context, o options) (err error) {
	if _, _, _, err := b.atOnce(ctx, o.crowd, 1); err != nil {
		return err
	}
	pid := b.Daemon.PID()
	cpu, err := cpuTime(pid)
	if err != nil {
		return err
	}
	select {
	case <-time.After(o.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := status(pid)
	cpuAfter, err2 := cpuTime(pid)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	fmt.Printf("\n### The daemon beside a kubelet, after %d pods\n\n| | |\n|---|---|\n", 5*o.crowd)
	fmt.Printf("| resident memory | %.1f MiB |\n| highest resident memory | %.1f MiB |\n", mib(after["VmRSS"]), mib(after["VmHWM"]))
	fmt.Printf("| CPU in %s of idleness | %.2f %% of a core |\n", o.idle, 100*(cpuAfter-cpu).Seconds()/o.idle.Seconds())
	return nil
}
