package node

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestLaterKeepsTheOrderAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l later
		var done []int // written with l's lock held
		for i := range 3 {
			l.do(func() { done = append(done, i) })
		}
		time.Sleep(afterStart / 2)
		l.mu.Lock()
		early := len(done)
		l.mu.Unlock()
		if early > 0 {
			t.Fatalf("%d done before their time", early)
		}
		time.Sleep(afterStart)
		synctest.Wait()
		l.do(func() { done = append(done, 3) })
		l.end()
		l.do(func() { done = append(done, 4) })
		if want := []int{0, 1, 2, 3, 4}; !slices.Equal(done, want) {
			t.Errorf("done %v, expected %v", done, want)
		}
		time.Sleep(afterStart) // the last timer finds nothing
	})
}
