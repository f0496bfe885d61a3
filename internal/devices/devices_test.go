package devices

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

func TestAPollFindsWhatTheKernelDoesNotAnnounce(t *testing.T) {
	const pf = "0000:6b:00.0"
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{{Address: pf, Family: "4xxx", Services: "dc", State: "up", VFs: 2, VFDriver: "vfio-pci", FirstGroup: 40}}})
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		m, err := NewMonitor(Options{Root: tree.Root, Log: logrus.NewEntry(log)})
		if err != nil {
			t.Fatal(err)
		}
		var views atomic.Int32
		m.OnChange(func(*View) { views.Add(1) })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m.told.Store(true)
		go m.Poll(ctx)

		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		wait(6 * pollPFs)
		if n := views.Load(); n != 1 {
			t.Errorf("%d views, and nothing has changed", n)
		}
		if err := tree.Kill(pf); err != nil {
			t.Fatal(err)
		}
		wait(pollPFs)
		if h := m.Current().Inventory.PF(pf).Health; h != qat.HealthDead {
			t.Errorf("health %s after a poll", h)
		}
		views.Store(0)
		wait(pollAll + pollPFs)
		if n := views.Load(); n != 1 {
			t.Errorf("%d views of all devices in %s", n, pollAll)
		}
		m.told.Store(false)
		views.Store(0)
		wait(pollAll)
		if n, want := views.Load(), int32(pollAll/pollAllUntold); n != want {
			t.Errorf("%d views of all devices in %s without announcements, expected %d", n, pollAll, want)
		}
	})
}
