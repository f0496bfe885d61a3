package host_test

import (
	"context"
	"testing"
)

func BenchmarkNothingToDo(b *testing.B) {
	m := newBench(b, four())
	m.apply()
	b.ReportAllocs()
	for b.Loop() {
		if out, err := m.engine().Apply(context.Background()); err != nil || out.Changed {
			b.Fatal(err)
		}
	}
}
