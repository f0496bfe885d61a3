package devices

import (
	"context"
	"io"
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
		views := 0
		m.OnChange(func(*View) { views++ })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m.told.Store(true)
		go m.Poll(ctx)

		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		wait(6 * pollPFs)
		if views != 1 {
			t.Errorf("%d views, and nothing has changed", views)
		}
		if err := tree.Kill(pf); err != nil {
			t.Fatal(err)
		}
		wait(pollPFs)
		if h := m.Current().Inventory.PF(pf).Health; h != qat.HealthDead {
			t.Errorf("health %s after a poll", h)
		}
		views = 0
		wait(pollAll + pollPFs)
		if views != 1 {
			t.Errorf("%d views of all devices in %s", views, pollAll)
		}
		m.told.Store(false)
		views = 0
		wait(pollAll)
		if want := int(pollAll / pollAllUntold); views != want {
			t.Errorf("%d views of all devices in %s without announcements, expected %d", views, pollAll, want)
		}
	})
}
