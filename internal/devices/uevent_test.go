package devices

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestEventsOfOtherDevicesAreNoConcern(t *testing.T) {
	for event, want := range map[string]bool{
		"add@/devices/pci0000:00/0000:00:01.0\x00ACTION=add\x00SUBSYSTEM=pci\x00SEQNUM=1\x00":    true,
		"add@/devices/virtual/vfio/12\x00ACTION=add\x00SUBSYSTEM=vfio\x00SEQNUM=2\x00":           true,
		"add@/devices/x/vfio-dev/vfio0\x00ACTION=add\x00SUBSYSTEM=vfio-dev\x00SEQNUM=3\x00":      true,
		"change@/devices/virtual/block/dm-0\x00ACTION=change\x00SUBSYSTEM=block\x00SEQNUM=4\x00": false,
		"add@/bus/pci/slots/SUBSYSTEM=pci\x00ACTION=add\x00SUBSYSTEM=slots\x00":                  false,
	} {
		if got := concerns([]byte(event)); got != want {
			t.Errorf("%q concerns: %v, expected %v", event, got, want)
		}
	}
}

func TestABurstOfEventsIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan error)
		out := Settled(t.Context(), events)
		lost := errors.New("events were lost")
		start := time.Now()
		for i := range 10 {
			time.Sleep(settle / 2)
			var err error
			if i == 3 {
				err = lost
			}
			events <- err
		}
		if err := <-out; !errors.Is(err, lost) {
			t.Errorf("told %v, expected that events were lost", err)
		}
		if took := time.Since(start); took != 6*settle {
			t.Errorf("told after %s, expected %s", took, 6*settle)
		}
		events <- nil
		if err := <-out; err != nil {
			t.Errorf("told %v of a second burst", err)
		}
		close(events)
		if _, open := <-out; open {
			t.Error("told of something after the end")
		}
	})
}

func TestEventsEndWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	events, err := Events(ctx)
	if err != nil {
		t.Skipf("no events here: %v", err)
	}
	cancel()
	for range events {
	}
}
