package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// benchFootprint measures the daemon's memory with 1,024 VFs and 200 live
// containers, after some scrapes of its metrics, and how often it wakes up when
// nothing happens.
func benchFootprint(ctx context.Context, o options) (err error) {
	const pods, perPod = 20, 10
	machine := qattest.Many(64)
	metrics, err := freeAddress()
	if err != nil {
		return err
	}
	node, err := start(func(so *simnode.Options) {
		so.Machine, so.Config = &machine, map[string]any{"metrics": map[string]any{"listen": metrics}}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	d, err := node.StartDaemon(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	for range pods {
		spec := bed.PodSpec{HostNetwork: true, Annotations: map[string]string{}}
		for c := range perPod {
			spec.Annotations[fmt.Sprintf("kata-qat.io/request.c%d", c)] = "cy=1"
		}
		pod, err := node.RunPod(ctx, spec)
		if err != nil {
			return err
		}
		for c := range perPod {
			if _, err := pod.CreateContainer(ctx, bed.ContainerSpec{Name: fmt.Sprintf("c%d", c)}); err != nil {
				return err
			}
		}
	}
	took, err := scrape(ctx, "http://"+metrics+"/metrics")
	if err != nil {
		return err
	}
	before, err := status(d.PID())
	if err != nil {
		return err
	}
	cpu, err := cpuTime(d.PID())
	if err != nil {
		return err
	}
	select {
	case <-time.After(o.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := status(d.PID())
	if err != nil {
		return err
	}
	cpuAfter, err := cpuTime(d.PID())
	if err != nil {
		return err
	}
	fmt.Printf("\n### The daemon with 1,024 VFs and %d live containers\n\n| | |\n|---|---|\n", pods*perPod)
	fmt.Printf("| resident memory | %.1f MiB |\n| of it the program's own pages | %.1f MiB |\n", mib(after["VmRSS"]), mib(after["RssAnon"]))
	fmt.Printf("| highest resident memory | %.1f MiB |\n", mib(after["VmHWM"]))
	fmt.Printf("| a scrape of the metrics, median of %d | %.1f ms |\n", scrapes, float64(took.Microseconds())/1e3)
	fmt.Printf("| wake-ups of all threads in %s of idleness | %d |\n", o.idle, after["switches"]-before["switches"])
	fmt.Printf("| CPU time in %s of idleness | %s |\n", o.idle, cpuAfter-cpu)
	return nil
}

const scrapes = 20

// scrape reads the metrics some times, as Prometheus would, and returns the
// median time.
func scrape(ctx context.Context, url string) (time.Duration, error) {
	var took []time.Duration
	for range scrapes {
		start := time.Now()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// freeAddress is one of loopback that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func mib(kib int64) float64 { return float64(kib) / 1024 }

var statusLine = regexp.MustCompile(`(?m)^(\w+):\s+(\d+)`)

// status reads what /proc tells of a process: memory in KiB, and the voluntary
// context switches of all its threads.
func status(pid int) (map[string]int64, error) {
	read := func(file string) (map[string]int64, error) {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m := map[string]int64{}
		for _, f := range statusLine.FindAllStringSubmatch(string(b), -1) {
			m[f[1]], _ = strconv.ParseInt(f[2], 10, 64)
		}
		return m, nil
	}
	out, err := read(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		m, err := read(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()))
		if err != nil {
			return nil, err
		}
		out["switches"] += m["voluntary_ctxt_switches"]
	}
	return out, nil
}

// cpuTime reads utime and stime of a process, in ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, f := range regexp.MustCompile(`\) \S+(?: \S+){10} (\d+) (\d+)`).FindStringSubmatch(string(b))[1:] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
