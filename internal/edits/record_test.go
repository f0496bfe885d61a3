package edits

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	for name, tc := range map[string]struct {
		record Record
		text   string
	}{
		"of an ordinary injection": {
			record: Record{
				VFs: "cy=0000:6b:00.1,dc=0000:6b:00.2", Profile: ProfileVFIO, Source: "pool", Devices: []string{"/dev/vfio/vfio", "/dev/vfio/41"},
				Mounts: []string{"/etc/4xxxvf_dev0.conf"}, Env: []string{"PCIDEVICE_QAT_INTEL_COM_CY"}, Memlock: &Limit{},
			},
			text: "vfs=cy=0000:6b:00.1,dc=0000:6b:00.2 profile=vfio source=pool nodes=/dev/vfio/vfio,/dev/vfio/41 mounts=/etc/4xxxvf_dev0.conf env=PCIDEVICE_QAT_INTEL_COM_CY memlock=0,0",
		},
		"of a spec that had nodes and a limit": {
			record: Record{
				VFs: "cy=0000:6b:00.1", Profile: ProfileVFIO, Source: "spec", Memlock: &Limit{Soft: 1, Hard: 1<<64 - 1},
				Owned: map[string]string{"/dev/vfio/42": "0600:0:0", "/dev/vfio/41": "0640:0:44"},
			},
			text: "vfs=cy=0000:6b:00.1 profile=vfio source=spec owned=/dev/vfio/41,0640:0:44 owned=/dev/vfio/42,0600:0:0 memlock=1,18446744073709551615",
		},
		"with a path that somebody else chose": {
			record: Record{Owned: map[string]string{"/dev/a b,c=%\"\\<é+&\n": "0600:0:0"}, Devices: []string{"/dev/c+d=e&"}},
			text:   `nodes=/dev/c+d=e& owned=%2Fdev%2Fa%20b%2Cc=%25%22%5C%3C%C3%A9+&%0A,0600:0:0`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.record.String()
			if got != tc.text {
				t.Errorf("written as\n%s\nexpected\n%s", got, tc.text)
			}
			back, err := ParseRecord(got)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tc.record, back); diff != "" {
				t.Errorf("read back (-written +read):\n%s", diff)
			}
		})
	}
}

func TestWhatAPodCallsDevicesHidesNoRecord(t *testing.T) {
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        string
	}{
		"a container":                    {map[string]string{RecordAnnotation: "vfs=cy=0000:6b:00.1 profile=vfio"}, "cy=0000:6b:00.1"},
		"a container, and the pod's own": {map[string]string{RecordAnnotation: "vfs=cy=0000:6b:00.1", DevicesAnnotation: "cy=0000:ff:00.1"}, "cy=0000:6b:00.1"},
		"a record that was changed":      {map[string]string{RecordAnnotation: "nonsense", DevicesAnnotation: "cy=0000:ff:00.1"}, ""},
		"a sandbox":                      {map[string]string{DevicesAnnotation: "cy=0000:6b:00.1"}, "cy=0000:6b:00.1"},
		"neither":                        {nil, ""},
	} {
		if got := Injected(tc.annotations); got != tc.want {
			t.Errorf("%s: %q, expected %q", name, got, tc.want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("/dev/vfio/41", "0600:0:0", "X")
	f.Add(" ,", "%", "\x00=")
	f.Fuzz(func(t *testing.T, path, was, env string) {
		if path == "" || was == "" || env == "" {
			t.Skip("nothing of a record is empty")
		}
		r := &Record{Devices: []string{path, was}, Owned: map[string]string{path: was}, Env: []string{env}}
		text := r.String()
		if strings.ContainsAny(text, "\"\\\n") {
			t.Errorf("%q would be escaped in JSON", text)
		}
		back, err := ParseRecord(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if diff := cmp.Diff(r, back); diff != "" {
			t.Errorf("%q (-written +read):\n%s", text, diff)
		}
	})
}
