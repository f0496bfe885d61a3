package dump

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

func generic(t *testing.T, v any) map[string]any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	o, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func ptr[T any](v T) *T { return &v }

var vfs = []edits.VF{
	{Address: qat.Address("0000:6b:00.1"), Resource: "qat.intel.com/cy", Group: vfio.Node{Path: "/dev/vfio/100", Major: 511, Minor: 200}, ConfSource: "/run/kata-qat/conf/a", ConfPath: "/etc/4xxxvf_dev0.conf"},
	{Address: qat.Address("0000:6b:00.2"), Resource: "qat.intel.com/dc", Group: vfio.Node{Path: "/dev/vfio/101", Major: 511, Minor: 201}, ConfSource: "/run/kata-qat/conf/b", ConfPath: "/etc/4xxxvf_dev1.conf"},
	{Address: qat.Address("0000:6b:00.3"), Resource: "qat.intel.com/cy", Group: vfio.Node{Path: "/dev/vfio/101", Major: 511, Minor: 201}},
}

// randomSpec is a spec in which any part of what an injection adds may be there
// already.
func randomSpec(r *rand.Rand) *specs.Spec {
	coin := func() bool { return r.IntN(2) == 0 }
	s := &specs.Spec{Version: "1.2.1", Process: &specs.Process{Cwd: "/"}, Linux: &specs.Linux{CgroupsPath: "/x"}}
	if coin() {
		s.Annotations = map[string]string{"a": "b"}
	}
	if coin() {
		s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}
	}
	for _, n := range []vfio.Node{{Path: "/dev/fuse", Major: 10, Minor: 229}, {Path: vfio.ControlNode, Major: 10, Minor: 196}, vfs[0].Group, vfs[1].Group} {
		if coin() {
			continue
		}
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: n.Path, Type: "c", Major: int64(n.Major), Minor: int64(n.Minor),
			FileMode: ptr(os.FileMode(0o600 | 0o060*r.IntN(2))), UID: ptr(uint32(1000 * r.IntN(2))), GID: ptr(uint32(0))})
		if s.Linux.Resources != nil {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(n.Major)), Minor: ptr(int64(n.Minor)), Access: "rw"})
		}
	}
	if coin() {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc", Type: "proc"})
	}
	if coin() {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: vfs[0].ConfPath, Source: "/own"})
	}
	if coin() {
		s.Process.Env = append(s.Process.Env, "PATH=/bin", "PCIDEVICE_QAT_INTEL_COM_DC=mine")
	}
	if coin() {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: 1, Soft: 1})
	}
	if coin() {
		l := []uint64{65536, 1<<64 - 1}[r.IntN(2)]
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_MEMLOCK", Hard: l, Soft: 65536})
	}
	return s
}

func TestRevertOfAnAppliedInjectionIsTheOriginal(t *testing.T) {
	changed := 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := randomSpec(r)
		before := generic(t, s)
		e := edits.Container(vfs[:1+r.IntN(3)], edits.Options{
			Profile: edits.ProfileVFIO, Control: vfio.Node{Path: vfio.ControlNode, Major: 10, Minor: 196}, UID: uint32(1000 * r.IntN(2)),
		})
		if err := e.Apply(s); err != nil {
			t.Fatal(err)
		}
		record, err := edits.ParseRecord(s.Annotations[edits.RecordAnnotation])
		if err != nil {
			t.Fatal(err)
		}
		after := generic(t, s)
		untouched := generic(t, s)
		got, missing, err := Revert(after, record)
		if err != nil || missing != nil {
			t.Fatalf("seed %d: %v, missing %v", seed, err, missing)
		}
		if !reflect.DeepEqual(got, before) {
			t.Fatalf("seed %d: reverted\n%s\nexpected\n%s\nrecord %s", seed, compact(got), compact(before), record)
		}
		if !reflect.DeepEqual(after, untouched) {
			t.Fatalf("seed %d: Revert changed the spec that it was given", seed)
		}
		if len(record.Owned) > 0 && len(record.Devices) > 0 {
			changed++
		}
	}
	if changed < 100 {
		t.Errorf("only %d of the specs had nodes both added and changed: the test proves too little", changed)
	}
}

func TestRevertOfWhatNRIMade(t *testing.T) {
	// NRI moves a node that it changes to the end, gives it a second rule, and
	// adds a second limit.
	after, err := Decode([]byte(`{
		"process": {"rlimits": [{"type": "RLIMIT_MEMLOCK", "soft": 1, "hard": 2}, {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}, {"type": "RLIMIT_MEMLOCK", "soft": 9, "hard": 9}]},
		"annotations": {"kata-qat.io/injected": "y", "other": "kept"},
		"linux": {
			"resources": {"devices": [{"allow": true, "type": "c", "major": 511, "minor": 7, "access": "rwm"}, {"allow": true, "type": "c", "major": 511, "minor": 7, "access": "rw"}]},
			"devices": [{"path": "/dev/vfio/7", "type": "c", "major": 511, "minor": 7, "fileMode": 432, "uid": 5, "gid": 5}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	got, missing, err := Revert(after, &edits.Record{Owned: map[string]string{"/dev/vfio/7": "0640:0:44"}, Memlock: &edits.Limit{Soft: 1, Hard: 2}})
	if err != nil || missing != nil {
		t.Fatal(err, missing)
	}
	want := `{"annotations":{"other":"kept"},` +
		`"linux":{"devices":[{"fileMode":416,"gid":44,"major":511,"minor":7,"path":"/dev/vfio/7","type":"c","uid":0}],` +
		`"resources":{"devices":[{"access":"rwm","allow":true,"major":511,"minor":7,"type":"c"}]}},` +
		`"process":{"rlimits":[{"hard":2,"soft":1,"type":"RLIMIT_MEMLOCK"},{"hard":1,"soft":1,"type":"RLIMIT_NOFILE"}]}}`
	if compact(got) != want {
		t.Errorf("%s\nexpected\n%s", compact(got), want)
	}
}

func TestRevertNamesWhatSomebodyElseRemoved(t *testing.T) {
	record := &edits.Record{
		Devices: []string{"/dev/vfio/7"}, Owned: map[string]string{"/dev/vfio/8": "0600:0:0"}, Mounts: []string{"/etc/m"}, Env: []string{"E"}, Memlock: &edits.Limit{Soft: 1, Hard: 1},
	}
	// The odd one has something else where a list should be.
	for _, spec := range []string{`{}`, `{"mounts": [], "process": {"env": ["EE=1", "E"]}}`, `{"mounts": {"a": 1}, "linux": 3, "process": {"env": [{}], "rlimits": "x"}, "annotations": []}`} {
		after, err := Decode([]byte(spec))
		if err != nil {
			t.Fatal(err)
		}
		got, missing, err := Revert(after, record)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.Join(missing, ","); s != "device /dev/vfio/7,device /dev/vfio/8,mount /etc/m,variable E,RLIMIT_MEMLOCK" {
			t.Errorf("%s: missing %s", spec, s)
		}
		if !reflect.DeepEqual(got, after) {
			t.Errorf("%s became %s", spec, compact(got))
		}
	}
}

func TestDecodeTakesOneObject(t *testing.T) {
	for _, bad := range []string{``, `null`, `[]`, `{`, `{} {}`, `"x"`} {
		if o, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%q gave %v", bad, o)
		}
	}
	if o, err := Decode([]byte(` {"n": 18446744073709551615} ` + "\n")); err != nil || fmt.Sprint(o["n"]) != "18446744073709551615" {
		t.Errorf("%v, %v", o, err)
	}
}
