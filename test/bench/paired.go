package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kata-qat/kata-qat/test/bed"
)

// variant is one side of a paired measurement.
type variant struct {
	name    string
	command string
	handler string
	rounds  []bed.Durations
}

// interleave measures all variants in every round, the order turned around from
// round to round, after a round that does not count.
func interleave(ctx context.Context, o options, vs []variant, measure func(context.Context, *variant, int) error) error {
	for round := range o.rounds + 1 {
		n := o.n
		if round == 0 {
			n = max(1, o.n/10)
		}
		order := make([]int, len(vs))
		for i := range order {
			order[i] = i
		}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			if err := measure(ctx, &vs[i], n); err != nil {
				return fmt.Errorf("%s: %w", vs[i].name, err)
			}
		}
		if round == 0 {
			for i := range vs {
				vs[i].rounds = nil
			}
		}
	}
	return nil
}

// printPaired prints the variants and how each compares with the first: the
// ratio of the medians round by round, of which the median is the figure to
// quote.
func printPaired(title string, vs []variant) {
	fmt.Printf("\n### %s\n\n| | p50 | p90 | p99 | p50 against the first, round by round: median (lowest to highest) |\n|---|---|---|---|---|\n", title)
	for i, v := range vs {
		var all bed.Durations
		ratios := make([]float64, len(v.rounds))
		for r, d := range v.rounds {
			all = append(all, d...)
			ratios[r] = float64(d.Percentile(50)) / float64(vs[0].rounds[r].Percentile(50))
		}
		compared := ""
		if i > 0 {
			slices.Sort(ratios)
			compared = fmt.Sprintf("%.3f (%.3f to %.3f)", median(ratios), ratios[0], ratios[len(ratios)-1])
		}
		fmt.Printf("| %s | %s | %s | %s | %s |\n", v.name, ms(all.Percentile(50)), ms(all.Percentile(90)), ms(all.Percentile(99)), compared)
	}
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }
