package bed

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// Durations are measurements of one thing.
type Durations []time.Duration

// Percentile is the smallest measurement that p percent of all do not exceed;
// 0 when there is none.
func (d Durations) Percentile(p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	rank := int(math.Ceil(p / 100 * float64(len(d))))
	return sorted[min(max(rank, 1), len(d))-1]
}

func (d Durations) String() string {
	return fmt.Sprintf("n=%d p50=%v p90=%v p99=%v max=%v", len(d),
		round(d.Percentile(50)), round(d.Percentile(90)), round(d.Percentile(99)), round(d.Percentile(100)))
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// MeasureCreate creates n containers, one after the other, and returns how long
// CreateContainer took for each. Every container is removed before the next.
func (p *Pod) MeasureCreate(ctx context.Context, n int, spec ContainerSpec) (Durations, error) {
	took := make(Durations, 0, n)
	for range n {
		start := time.Now()
		c, err := p.CreateContainer(ctx, spec)
		if err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
		if err := c.Remove(ctx); err != nil {
			return took, err
		}
	}
	return took, nil
}

// MeasureRunPod runs n pods, one after the other, and returns how long
// RunPodSandbox took for each. Every pod is removed before the next.
func (b *Bed) MeasureRunPod(ctx context.Context, n int, spec PodSpec) (Durations, error) {
	took := make(Durations, 0, n)
	for range n {
		start := time.Now()
		p, err := b.RunPod(ctx, spec)
		if err != nil {
			return took, err
		}
		took = append(took, time.Since(start))
		if err := p.Remove(ctx); err != nil {
			return took, err
		}
	}
	return took, nil
}
