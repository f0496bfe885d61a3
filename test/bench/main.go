// Bench measures what kata-qat costs a node: pods on a real containerd, with the
// daemon working and with the same daemon doing nothing, in turn, because two
// runs at different times measure the machine and not the program. It needs
// root and prints one table a measurement, in Markdown.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/bed/kube"
	"github.com/kata-qat/kata-qat/test/simnode"
)

type options struct {
	rounds, n int
	pods      int
	crowd     int
	idle      time.Duration
}

// benchmarks by name, in the order in which they run.
var benchmarks = []struct {
	name string
	run  func(context.Context, options) error
}{
	{"create", benchCreate},
	{"shim", benchShim},
	{"pod", benchPod},
	{"footprint", benchFootprint},
	{"kube", benchKube},
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 8, "rounds of each paired measurement")
	flag.IntVar(&o.n, "n", 100, "runs in a round")
	flag.IntVar(&o.pods, "pods", 30, "pods of each kind in a cluster, a multiple of 5; 0 for the other figures only")
	flag.IntVar(&o.crowd, "crowd", 50, "pods that come at once in a cluster, each with one VF")
	flag.DurationVar(&o.idle, "idle", 60*time.Second, "how long the idle daemon is watched")
	only := flag.String("only", "", "run only this benchmark: create, shim, pod, footprint, kube")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	found := false
	for _, b := range benchmarks {
		if *only != "" && *only != b.name {
			continue
		}
		if kube.Entered() && b.name != "kube" { // the others are done
			continue
		}
		found = true
		if err := b.run(ctx, o); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", b.name, err)
			os.Exit(1)
		}
	}
	if !found {
		fmt.Fprintf(os.Stderr, "bench: no benchmark %q\n", *only)
		os.Exit(2)
	}
}

// runc is enough to measure CreateContainer, in which no runtime takes part.
func start(change func(*simnode.Options)) (*simnode.Node, error) {
	o := simnode.Options{Bed: bed.Options{Handlers: map[string]bed.Handler{"kata-qat": {RuntimeType: bed.RuncType}}}}
	if change != nil {
		change(&o)
	}
	return simnode.Start(o)
}

// benchCreate compares CreateContainer with injection of two VFs against the
// same daemon doing nothing, because the container is in a pod of a handler that
// is none of its own. Containers of the two pods take turns, for what a disk does
// in the meantime is more than what is measured.
func benchCreate(ctx context.Context, o options) (err error) {
	node, err := start(func(so *simnode.Options) { so.Bed.Handlers["plain"] = bed.Handler{RuntimeType: bed.RuncType} })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	d, err := node.StartDaemon(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	variants := []variant{{name: "daemon does nothing", handler: "plain"}, {name: "daemon injects two VFs", handler: "kata-qat"}}
	pods := make([]*bed.Pod, len(variants))
	for i, v := range variants {
		pods[i], err = node.RunPod(ctx, bed.PodSpec{Handler: v.handler, HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=2"}})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, pods[i].Stop(ctx), pods[i].Remove(ctx)) }()
	}
	for round := range o.rounds + 1 { // the first does not count
		took := make([]bed.Durations, len(variants))
		for n := range o.n {
			for turn := range variants {
				i := (n + turn) % len(variants)
				d, err := pods[i].MeasureCreate(ctx, 1, bed.ContainerSpec{})
				if err != nil {
					return fmt.Errorf("%s: %w", variants[i].name, err)
				}
				took[i] = append(took[i], d...)
			}
		}
		for i := range variants {
			if round > 0 {
				variants[i].rounds = append(variants[i].rounds, took[i])
			}
		}
	}
	printPaired(fmt.Sprintf("CreateContainer over CRI, containerd 2.4, %d rounds of %d pairs", o.rounds, o.n), variants)
	return nil
}
