package kubeevents

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/client-go/rest"

	"github.com/kata-qat/kata-qat/internal/refusal"
)

// server stands in for the API server: it keeps what it is told.
type server struct {
	*httptest.Server
	mu      sync.Mutex
	refuse  int                        // the code of every answer, when it is not 0
	events  map[string]*eventsv1.Event // by namespace/name
	patches int
	wrote   chan struct{} // after every request
}

func newServer(t *testing.T) *server {
	s := &server{events: make(map[string]*eventsv1.Event), wrote: make(chan struct{}, 1000)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/events.k8s.io/v1/namespaces/{namespace}/events", func(w http.ResponseWriter, r *http.Request) {
		e := new(eventsv1.Event)
		s.answer(w, r, e, func() { s.events[r.PathValue("namespace")+"/"+e.Name] = e })
	})
	mux.HandleFunc("PATCH /apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}", func(w http.ResponseWriter, r *http.Request) {
		var patch struct{ Series *eventsv1.EventSeries }
		s.answer(w, r, &patch, func() {
			e := s.events[r.PathValue("namespace")+"/"+r.PathValue("name")]
			if e == nil {
				http.Error(w, "{}", http.StatusNotFound)
				return
			}
			e.Series = patch.Series
			s.patches++
		})
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func (s *server) answer(w http.ResponseWriter, r *http.Request, into any, do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.wrote <- struct{}{} }()
	if s.refuse != 0 {
		w.WriteHeader(s.refuse)
		fmt.Fprint(w, `{"kind":"Status","message":"events.events.k8s.io is forbidden"}`)
		return
	}
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	do()
}

// all are the events, once n requests were answered.
func (s *server) all(t *testing.T, n int) []*eventsv1.Event {
	t.Helper()
	for range n {
		select {
		case <-s.wrote:
		case <-time.After(20 * time.Second):
			t.Fatal("no request came")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var events []*eventsv1.Event
	for _, e := range s.events {
		events = append(events, e.DeepCopy())
	}
	return events
}

// clock is the reporter's.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newReporter(t *testing.T, host string, log io.Writer) (*Reporter, *clock) {
	t.Helper()
	l := logrus.New()
	l.SetOutput(log)
	r, err := New(&rest.Config{Host: host}, "node-1", logrus.NewEntry(l))
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{now: time.Now()}
	r.now = c.Now
	return r, c
}

func run(t *testing.T, r *Reporter) {
	done := make(chan struct{})
	ctx := t.Context()
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { <-done })
}

var shortage = Refusal{
	Namespace: "default", Pod: "ingress", UID: "0b0c", Container: "tls", Reason: refusal.Shortage,
	Message: "kata-qat: pod default/ingress: container tls: 0 of 16 are free",
}

func TestARefusalIsAnEventOfThePod(t *testing.T) {
	s := newServer(t)
	r, _ := newReporter(t, s.URL, io.Discard)
	run(t, r)
	r.Refused(shortage)
	sandbox := shortage
	sandbox.Pod, sandbox.Container, sandbox.Message = "other", "", strings.Repeat("é", 1000)
	r.Refused(sandbox)
	for _, e := range s.all(t, 2) {
		if e.Type != "Warning" || e.Reason != "QATShortage" || e.ReportingController != Controller || e.ReportingInstance != "node-1" ||
			e.EventTime.IsZero() || e.Series != nil || e.Regarding.Kind != "Pod" || e.Regarding.UID != "0b0c" || e.Regarding.Namespace != "default" {
			t.Errorf("event %+v", e)
		}
		switch e.Regarding.Name {
		case "ingress":
			if e.Action != "CreateContainer" || e.Regarding.FieldPath != "spec.containers{tls}" || e.Note != shortage.Message {
				t.Errorf("event of a container %+v", e)
			}
		case "other":
			if e.Action != "PrepareSandbox" || e.Regarding.FieldPath != "" || len(e.Note) > noteLength || !strings.HasSuffix(e.Note, "é…") {
				t.Errorf("event of a sandbox %+v", e)
			}
		}
	}
}

func TestARepetitionCountsOnInTheSameEvent(t *testing.T) {
	s := newServer(t)
	r, clock := newReporter(t, s.URL, io.Discard)
	run(t, r)
	r.Refused(shortage)
	s.all(t, 1)
	for range 5 { // too soon to be written
		clock.pass(time.Second)
		r.Refused(shortage)
	}
	clock.pass(rewrite)
	r.Refused(shortage)
	events := s.all(t, 1)
	if len(events) != 1 || events[0].Series == nil || events[0].Series.Count != 7 || !events[0].Series.LastObservedTime.After(events[0].EventTime.Time) {
		t.Errorf("events %+v, expected one that counts 7", events)
	}
	if s.patches != 1 {
		t.Errorf("%d patches, expected 1", s.patches)
	}
	// The server forgets events after an hour.
	s.mu.Lock()
	clear(s.events)
	s.mu.Unlock()
	clock.pass(time.Hour)
	r.Refused(shortage)
	if events := s.all(t, 2); len(events) != 1 || events[0].Series != nil {
		t.Errorf("events %+v, expected a new one", events)
	}
}

func TestNobodyWaitsForAServerThatIsNotThere(t *testing.T) {
	r, _ := newReporter(t, "http://127.0.0.1:1", io.Discard)
	for i := range queued + 10 { // nothing takes them out of the queue
		f := shortage
		f.Pod = fmt.Sprint(i)
		r.Refused(f)
	}
	if got := r.Outcomes(); got.Dropped != 10 {
		t.Errorf("%+v, expected 10 dropped", got)
	}
}

func TestMissingRightsAreSaidOnce(t *testing.T) {
	s := newServer(t)
	s.refuse = http.StatusForbidden
	pipe, log := io.Pipe()
	r, _ := newReporter(t, s.URL, log)
	run(t, r)
	read := make(chan string, 10)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := pipe.Read(buf)
			if err != nil {
				return
			}
			read <- string(buf[:n])
		}
	}()
	t.Cleanup(func() { pipe.Close() })
	for i := range 3 {
		f := shortage
		f.Pod = fmt.Sprint(i)
		r.Refused(f)
	}
	s.all(t, 3)
	if line := <-read; !strings.Contains(line, "the API server answered 403: events.events.k8s.io is forbidden") {
		t.Errorf("log %q", line)
	}
	s.mu.Lock()
	s.refuse = 0
	s.mu.Unlock()
	r.Refused(shortage)
	s.all(t, 1)
	select {
	case line := <-read:
		t.Errorf("it was said again: %q", line)
	default:
	}
	if got := r.Outcomes(); got.Failed != 3 {
		t.Errorf("%+v, expected 3 failed", got)
	}
}

func TestOnlyTheLastRefusalsAreRemembered(t *testing.T) {
	h := newHistory(2)
	start := time.Now()
	for i, pod := range []string{"a", "b", "a", "c", "a", "b"} { // b is forgotten for c
		f := seen{Refusal{Pod: pod}, start.Add(time.Duration(i) * time.Second)}
		o := h.add(f)
		if want := map[int]int32{2: 2, 4: 3}[i]; want != 0 && o.count != want {
			t.Errorf("%s was seen %d times, expected %d", pod, o.count, want)
		}
		if i == 5 && o.count != 1 {
			t.Error("b was not forgotten")
		}
	}
	if len(h.seen) > 2 {
		t.Errorf("%d are remembered", len(h.seen))
	}
}

func TestEveryReasonHasAName(t *testing.T) {
	for _, r := range refusal.Reasons {
		if reasons[r] == "" {
			t.Errorf("%s has none", r)
		}
	}
}

func TestOutsideOfAClusterThatIsSaid(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := InCluster(nil); err == nil || !strings.HasPrefix(err.Error(), "events.kubernetes = true: ") {
		t.Errorf("error %v", err)
	}
}
