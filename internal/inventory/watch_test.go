package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// watched is a machine that is watched; what is done to it is shown when event
// has returned.
type watched struct {
	qattest.Tree
	t       *testing.T
	holders Holders
	events  chan error
	shown   chan struct{}
	view    View
	ended   chan error
	cancel  context.CancelFunc
}

// Show tells the test that something was shown.
func (w *watched) Show(before, after *Report) error {
	err := w.view.Show(before, after)
	w.shown <- struct{}{}
	return err
}

func watch(t *testing.T, view View) *watched {
	t.Helper()
	w := &watched{Tree: tree(t, machine), t: t, holders: Holders{}, events: make(chan error), shown: make(chan struct{}), view: view, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	t.Cleanup(cancel)
	read := func(context.Context) (*Report, error) {
		inv, table := load(t, w.Root)
		return New(inv, table, w.holders), nil
	}
	go func() { w.ended <- Watch(ctx, read, w.events, w) }()
	<-w.shown
	return w
}

// event announces what was done before, and waits until it is shown.
func (w *watched) event(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	w.events <- nil
	<-w.shown
}

func TestEachChangeIsALine(t *testing.T) {
	var out bytes.Buffer
	w := watch(t, Lines{&out})
	const vf = "0000:6b:00.1"
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, ""},
		{func() error { return w.Rebind(vf, "4xxxvf") }, "VF 0000:6b:00.1 changed: driver vfio-pci -> 4xxxvf, ready yes -> no, 0000:6b:00.1 is bound to 4xxxvf, expected vfio-pci: run kata-qat provision host\n"},
		{func() error { return w.Rebind(vf, "vfio-pci") }, "VF 0000:6b:00.1 changed: driver 4xxxvf -> vfio-pci, ready no -> yes\n"},
		{func() error {
			w.holders = Holders{vf: {{ID: "a", Namespace: "default", Pod: "qat", Container: "app"}}}
			return nil
		}, "VF 0000:6b:00.1 changed: held by none -> default/qat/app\n"},
		{func() error {
			return errors.Join(w.EnableVFs(qattest.PF{Address: "0000:3d:00.0", Family: "c62x", VFs: 1, VFDriver: "vfio-pci", FirstGroup: 50}))
		}, "PF 0000:3d:00.0 changed: VFs 0 -> 1\nVF 0000:3d:01.0 added: family c62x, PF 0000:3d:00.0, driver vfio-pci, group 50, ready yes\n"},
		{func() error { return w.Remove("0000:3d:01.0") }, "VF 0000:3d:01.0 removed\n"},
		{func() error { return w.Set("0000:6b:00.0", "sriov_numvfs", "3") }, "PF 0000:6b:00.0 changed: VFs 4 -> 3\n"},
	} {
		out.Reset()
		w.event(step.do())
		if out.String() != step.want {
			t.Errorf("shown\n%s\nexpected\n%s", out.String(), step.want)
		}
	}
}

func TestJSONLinesBeginWithWhatIsThere(t *testing.T) {
	var out bytes.Buffer
	w := watch(t, JSONLines{&out})
	if n := strings.Count(out.String(), `"event":"present"`); n != 3+4+3+1 || n != strings.Count(out.String(), "\n") {
		t.Errorf("%d functions are present, expected 11, each on a line:\n%s", n, out.String())
	}
	out.Reset()
	w.event(w.Rebind("0000:6b:00.1", ""))
	var c struct {
		Event, Address string
		Before, After  struct {
			VF struct {
				Driver string
				Ready  bool
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &c); err != nil {
		t.Fatal(err)
	}
	if c.Event != "changed" || c.Address != "0000:6b:00.1" || c.Before.VF.Driver != "vfio-pci" || !c.Before.VF.Ready || c.After.VF.Driver != "" || c.After.VF.Ready {
		t.Errorf("got %+v", c)
	}
}

func TestWhatAPodIsCalledReachesNoTerminal(t *testing.T) {
	for name, view := range map[string]func(io.Writer) View{
		"lines": func(w io.Writer) View { return Lines{w} },
		"JSON":  func(w io.Writer) View { return JSONLines{w} },
	} {
		var out bytes.Buffer
		w := watch(t, view(&out))
		w.holders = Holders{"0000:6b:00.1": {{ID: "a", Namespace: "default", Pod: "\u009b31m\x1b[2J"}}}
		w.event(nil)
		if out.Len() == 0 || strings.ContainsAny(out.String(), "\u009b\x1b") {
			t.Errorf("%s: %q", name, out.String())
		}
	}
}

func TestTheScreenShowsTheNewestAndFitsTheTerminal(t *testing.T) {
	var out bytes.Buffer
	clock := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	height := 8
	w := watch(t, Screen{Screen: output.Screen{W: &out, Height: func() int { return height }}, Now: func() time.Time { return clock }})
	if !strings.HasPrefix(out.String(), "\x1b[2J") || strings.Count(out.String(), "\n") != 7 || !strings.Contains(out.String(), "more lines") || !strings.Contains(out.String(), "as of 03:04:05") {
		t.Errorf("first screen %q", out.String())
	}
	out.Reset()
	height = 0 // nobody knows
	w.event(w.Rebind("0000:6b:00.1", "4xxxvf"))
	if strings.Contains(out.String(), "\x1b[2J") || !strings.Contains(out.String(), "\x1b[HPF 0000:3d:00.0") || strings.Contains(out.String(), "more lines") || !strings.Contains(out.String(), "0000:6b:00.1   4xxxvf") || !strings.HasSuffix(out.String(), "\x1b[J\x1b[?7h") {
		t.Errorf("second screen %q", out.String())
	}
}

func TestWatchingEndsWellWhenItIsInterrupted(t *testing.T) {
	w := watch(t, Lines{io.Discard})
	w.cancel()
	if err := <-w.ended; err != nil {
		t.Errorf("error %v, expected none", err)
	}
}

func TestThatThereAreNoMoreEventsIsAnError(t *testing.T) {
	w := watch(t, Lines{io.Discard})
	close(w.events)
	if err := <-w.ended; err == nil || !strings.Contains(err.Error(), "events have ended") {
		t.Errorf("error %v", err)
	}
}

func TestAReportThatCannotBeReadIsAnError(t *testing.T) {
	broken := errors.New("no PCI bus")
	read := func(context.Context) (*Report, error) { return nil, broken }
	if err := Watch(t.Context(), read, nil, Lines{io.Discard}); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
