package node

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLaterKeepsTheOrderAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l later
		var mu sync.Mutex
		var done []int
		count := func(i int) func() {
			return func() {
				mu.Lock()
				defer mu.Unlock()
				done = append(done, i)
			}
		}
		for i := range 3 {
			l.do(count(i))
		}
		time.Sleep(afterStart / 2)
		mu.Lock()
		early := len(done)
		mu.Unlock()
		if early > 0 {
			t.Fatalf("%d done before their time", early)
		}
		time.Sleep(afterStart)
		synctest.Wait()
		l.do(count(3))
		l.end()
		l.do(count(4))
		mu.Lock()
		defer mu.Unlock()
		if want := []int{0, 1, 2, 3, 4}; !slices.Equal(done, want) {
			t.Errorf("done %v, expected %v", done, want)
		}
	})
}
