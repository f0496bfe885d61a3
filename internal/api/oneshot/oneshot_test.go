package oneshot

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/version"
)

// What is written by hand is what the generated code reads.
func TestTheRequestIsTheGeneratedOne(t *testing.T) {
	s := Sandbox{ID: "1", Namespace: "default", Name: "tls", UID: "u", RuntimeHandler: "kata-qat", Annotations: map[string]string{"kata-qat.io/a": "b", "": "c", "d": ""}}
	var got nodev1.PrepareSandboxRequest
	if err := proto.Unmarshal(s.encode(), &got); err != nil {
		t.Fatal(err)
	}
	want := &nodev1.PrepareSandboxRequest{
		Client:    &nodev1.Client{Revision: Revision, Version: version.Version},
		SandboxId: "1", Namespace: "default", Name: "tls", Uid: "u", RuntimeHandler: "kata-qat", Annotations: s.Annotations,
	}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// And the other way round, with fields of a newer daemon.
func TestTheGeneratedAnswerIsRead(t *testing.T) {
	answer := &nodev1.PrepareSandboxResponse{
		Daemon: &nodev1.Daemon{Revision: 7, Version: "9"},
		Devices: []*nodev1.DeviceNode{
			{Path: "/dev/vfio/1", Major: 511, Minor: 1 << 40, Mode: 0o660, Uid: 1000, Gid: 4294967295},
			{Path: "/dev/vfio/2"},
		},
		Annotations: map[string]string{"a": "b", "c": ""},
	}
	b, err := proto.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, 0x78, 5, 0x81, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0x8d, 1, 1, 2, 3, 4) // fields 15, 16 and 17
	got, err := decodeEdits(b)
	if err != nil {
		t.Fatal(err)
	}
	want := &Edits{
		Devices:     []Device{{Path: "/dev/vfio/1", Major: 511, Minor: 1 << 40, Mode: 0o660, UID: 1000, GID: 4294967295}, {Path: "/dev/vfio/2"}},
		Annotations: map[string]string{"a": "b", "c": ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnEnvelopeHasTtrpcsHeader(t *testing.T) {
	e := envelope([]byte("payload"), time.Second)
	if want := []byte{0, 0, 0, byte(len(e) - headerSize), 0, 0, 0, 1, 1, 0}; !bytes.Equal(e[:headerSize], want) {
		t.Errorf("header %v, expected %v", e[:headerSize], want)
	}
}

// A daemon that is not ours must not take the shim down. That the whole chain
// works with a real ttrpc server is tested with the shim's program.
func FuzzDecode(f *testing.F) {
	answer, err := proto.Marshal(&nodev1.PrepareSandboxResponse{Daemon: api(), Devices: []*nodev1.DeviceNode{{Path: "/dev/x", Major: 1}}, Annotations: map[string]string{"a": "b"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(answer)
	f.Add([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, payload, err := decodeAnswer(b); err == nil && len(payload) > len(b) {
			t.Errorf("a payload of %d bytes out of %d", len(payload), len(b))
		}
		got, err := decodeEdits(b)
		var want nodev1.PrepareSandboxResponse
		if err != nil || proto.Unmarshal(b, &want) != nil {
			return
		}
		if len(got.Devices) != len(want.GetDevices()) {
			t.Errorf("%d devices, the generated code reads %d", len(got.Devices), len(want.GetDevices()))
		}
	})
}

func api() *nodev1.Daemon { return &nodev1.Daemon{Revision: Revision, Version: "1"} }
