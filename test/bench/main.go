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
// same daemon serving another handler, so that it does nothing.
func benchCreate(ctx context.Context, o options) (err error) {
	node, err := start(nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	variants := []variant{
		{name: "daemon does nothing", config: map[string]any{"handlers": []string{"another"}}},
		{name: "daemon injects two VFs"},
	}
	measure := func(ctx context.Context, v *variant, n int) error {
		if err := node.Configure(v.config); err != nil {
			return err
		}
		d, err := node.StartDaemon(ctx)
		if err != nil {
			return err
		}
		pod, err := node.RunPod(ctx, bed.PodSpec{HostNetwork: true, Annotations: map[string]string{"kata-qat.io/request.main": "cy=2"}})
		if err != nil {
			return errors.Join(err, d.Kill())
		}
		took, err := pod.MeasureCreate(ctx, n, bed.ContainerSpec{})
		v.rounds = append(v.rounds, took)
		return errors.Join(err, pod.Stop(ctx), pod.Remove(ctx), d.Stop())
	}
	if err := interleave(ctx, o, variants, measure); err != nil {
		return err
	}
	printPaired(fmt.Sprintf("CreateContainer over CRI, containerd 2.4, %d interleaved rounds of %d", o.rounds, o.n), variants)
	return nil
}
