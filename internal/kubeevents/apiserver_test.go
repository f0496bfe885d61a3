//go:build kube

package kubeevents

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	eventsv1 "k8s.io/api/events/v1"

	"github.com/kata-qat/kata-qat/internal/refusal"
	"github.com/kata-qat/kata-qat/test/bed/apiserver"
	"github.com/kata-qat/kata-qat/test/docs"
)

// rights are all that the daemon needs to write events.
const rights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: events}
rules: [{apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: events}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: events}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: nobody}]
`

// What the API server takes and refuses only the real one knows.
func TestTheRealServerTakesEventsAndTheirSeries(t *testing.T) {
	doc := docs.For(t)
	s := apiserver.ForTest(t)
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	r, err := New(s.Config(apiserver.Nobody), "node-1", logrus.NewEntry(logger))
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{now: time.Now()}
	r.now = c.Now
	run(t, r)
	f := shortage
	f.Message = strings.Repeat("é", 2*noteLength)
	refuse := func(want func(Outcomes) bool) {
		t.Helper()
		r.Refused(f)
		for deadline := time.Now().Add(30 * time.Second); !want(r.Outcomes()); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("outcomes %+v", r.Outcomes())
			}
		}
	}
	refuse(func(o Outcomes) bool { return o.Failed == 1 })
	if out, err := s.Kubectl(t, apiserver.Admin, rights, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The server learns of a role a moment after it was made.
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, _ := s.Kubectl(t, apiserver.Nobody, "", "auth", "can-i", "patch", "events.events.k8s.io", "-n", "default")
		if strings.HasPrefix(out, "yes") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the role does not work: %s", out)
		}
	}
	refuse(func(o Outcomes) bool { return o.Sent == 1 })
	c.pass(rewrite)
	refuse(func(o Outcomes) bool { return o.Sent == 2 })

	out, err := s.Kubectl(t, apiserver.Admin, "", "get", "events.events.k8s.io", "-o", "json", "--field-selector", "reason=QATShortage")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var list eventsv1.EventList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Series == nil || list.Items[0].Series.Count != 3 {
		t.Fatalf("events %s, expected one that counts 3", out)
	}
	// kubectl describe pod looks for them so.
	if out, err := s.Kubectl(t, apiserver.Admin, "", "get", "events", "--field-selector", "involvedObject.name=ingress,involvedObject.uid=0b0c"); err != nil || !strings.Contains(out, "QATShortage") {
		t.Errorf("%v: %s", err, out)
	}
	f.Reason = refusal.DeviceHeld
	refuse(func(o Outcomes) bool { return o.Sent == 3 })
	if out, err := s.Kubectl(t, apiserver.Admin, "", strings.Fields(doc.Line("kubectl get events"))[1:]...); err != nil || !strings.Contains(out, "QATDeviceHeld") || strings.Contains(out, "QATShortage") {
		t.Errorf("%v: %s", err, out)
	}
}
