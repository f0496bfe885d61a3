package simcluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAttemptsAreReadFromContainerdsLog(t *testing.T) {
	const log = `time="2026-11-27T15:00:00.000000001Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:cy-1,Uid:u,Namespace:killed,Attempt:0,}"
time="2026-11-27T15:00:01Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:other,Uid:u,Namespace:default,Attempt:0,}"
time="2026-11-27T15:00:02Z" level=error msg="RunPodSandbox for &PodSandboxMetadata{Name:cy-1,Uid:u,Namespace:killed,Attempt:0,} failed, error" error="rpc error: code = Unknown desc = the \"daemon\" is away"
time="2026-11-27T15:00:03Z" level=info msg="RunPodSandbox for name:\"cy-1\"  uid:\"u\"  namespace:\"killed\" attempt:1"
a line of something else
time="2026-11-27T15:00:04Z" level=info msg="RunPodSandbox for name:\"cy-1\"  uid:\"u\"  namespace:\"killed\"  attempt:1 returns sandbox id \"abc1\""
time="2026-11-27T15:00:05Z" level=info msg="CreateContainer within sandbox \"abc1\" for container name:\"main\""
time="2026-11-27T15:00:06Z" level=error msg="CreateContainer within sandbox \"abc1\" for name:\"main\" failed" error="it is not there"
time="2026-11-27T15:00:07Z" level=info msg="CreateContainer within sandbox \"abc1\" for container name:\"main\""
time="2026-11-27T15:00:08Z" level=info msg="CreateContainer within sandbox \"abc1\" for name:\"main\" returns container id \"def2\""
time="2026-11-27T15:00:09Z" level=info msg="CreateContainer within sandbox \"abc1\" for container name:\"unanswered\""
`
	at := func(s int, ns int) time.Time { return time.Date(2026, 11, 27, 15, 0, s, ns, time.UTC) }
	want := []Attempt{
		{Pod: "killed/cy-1", Asked: at(0, 1), Answered: at(2, 0), Refused: `rpc error: code = Unknown desc = the "daemon" is away`},
		{Pod: "killed/cy-1", Asked: at(3, 0), Answered: at(4, 0)},
		{Pod: "killed/cy-1", Container: "main", Asked: at(5, 0), Answered: at(6, 0), Refused: "it is not there"},
		{Pod: "killed/cy-1", Container: "main", Asked: at(7, 0), Answered: at(8, 0)},
	}
	got, err := Attempts(log, "killed")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n(-want +got)\n%s", err, diff)
	}
}
