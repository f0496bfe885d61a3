package bed

import (
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make(Durations, 0, 100)
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for _, want := range []struct {
		of      Durations
		percent float64
		is      time.Duration
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
		{Durations{7}, 50, 7}, {Durations{1, 3}, 50, 1}, {nil, 50, 0},
	} {
		if got := want.of.Percentile(want.percent); got != want.is {
			t.Errorf("percentile %v of %d measurements is %d, expected %d", want.percent, len(want.of), got, want.is)
		}
	}
	if hundred[0] != 100 {
		t.Error("the measurements were put in another order")
	}
}
