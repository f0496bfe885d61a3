package qat_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// The names as users meet them, written down once more and on their own: a
// change of the table that was not meant to change them fails here.
func TestFamilies(t *testing.T) {
	type names struct {
		pf, vf             uint16
		pfDriver, pfModule string
		vfDriver, vfModule string
		conf               string
		since              string
		denyListed         bool
	}
	want := map[string]names{
		"dh895xcc": {0x0435, 0x0443, "dh895xcc", "qat_dh895xcc", "dh895xccvf", "qat_dh895xccvf", "dh895xccvf", "3.17", true},
		"c62x":     {0x37c8, 0x37c9, "c6xx", "qat_c62x", "c6xxvf", "qat_c62xvf", "c6xxvf", "4.5", true},
		"c3xxx":    {0x19e2, 0x19e3, "c3xxx", "qat_c3xxx", "c3xxxvf", "qat_c3xxxvf", "c3xxxvf", "4.5", true},
		"d15xx":    {0x6f54, 0x6f55, "d15xx", "qat_d15xx", "d15xxvf", "qat_d15xxvf", "d15xxvf", "", false},
		"c4xxx":    {0x18a0, 0x18a1, "c4xxx", "qat_c4xxx", "c4xxxvf", "qat_c4xxxvf", "c4xxxvf", "", false},
		"200xx":    {0x18ee, 0x18ef, "200xx", "qat_200xx", "200xxvf", "qat_200xxvf", "200xxvf", "", false},
		"4xxx":     {0x4940, 0x4941, "4xxx", "qat_4xxx", "4xxxvf", "qat_4xxxvf", "4xxxvf", "5.11", false},
		"401xx":    {0x4942, 0x4943, "4xxx", "qat_4xxx", "4xxxvf", "qat_4xxxvf", "4xxxvf", "5.19", false},
		"402xx":    {0x4944, 0x4945, "4xxx", "qat_4xxx", "4xxxvf", "qat_4xxxvf", "4xxxvf", "6.4", false},
		"420xx":    {0x4946, 0x4947, "420xx", "qat_420xx", "420xxvf", "qat_420xxvf", "420xxvf", "6.8", false},
		"6xxx":     {0x4948, 0x4949, "6xxx", "qat_6xxx", "6xxxvf", "qat_6xxxvf", "6xxxvf", "6.16", false},
	}
	got := make(map[string]names)
	for _, f := range qat.Families {
		got[f.Name] = names{f.PFDevice, f.VFDevice, f.PFDriver, f.PFModule, f.VFDriver, f.VFModule, f.Conf, f.PFInTree, f.DenyListed}
		if qat.FamilyByName(f.Name).PFDevice != f.PFDevice {
			t.Errorf("%s is not found by its name", f.Name)
		}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(names{})); diff != "" {
		t.Errorf("families (-want +got):\n%s", diff)
	}
}

func TestFirmwareComesWithLinuxExactlyWhenTheDriverDoes(t *testing.T) {
	for _, f := range qat.Families {
		if (f.PFInTree != "") != (len(f.Firmware) == 2) {
			t.Errorf("%s: in Linux since %q, firmware %v", f.Name, f.PFInTree, f.Firmware)
		}
	}
}

func TestAFamilyIsItsNameInJSON(t *testing.T) {
	text, err := json.Marshal(qat.PF{Address: "0000:3d:00.0", Family: qat.FamilyByName("c62x")})
	if err != nil {
		t.Fatal(err)
	}
	var form map[string]any
	if err := json.Unmarshal(text, &form); err != nil {
		t.Fatal(err)
	}
	if form["family"] != "c62x" {
		t.Errorf("family in %s, want c62x", text)
	}
	var back qat.PF
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(qat.FamilyByName("c62x"), back.Family); diff != "" {
		t.Errorf("family read back (-want +got):\n%s", diff)
	}
	if err := json.Unmarshal([]byte(`{"family":"c63x"}`), &back); err == nil {
		t.Error("an unknown family was read without an error")
	}
}

func TestAddressesAreOrderedAsTheBusIs(t *testing.T) {
	ordered := []qat.Address{"0000:6b:00.0", "0000:6b:00.7", "0000:6b:01.0", "0000:e8:00.0", "0001:00:00.0", "ffff:00:00.0", "10000:00:00.0"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got, want := a.Compare(b), min(1, max(-1, i-j)); got != want {
				t.Errorf("compare %s with %s: %d, want %d", a, b, got, want)
			}
		}
	}
}
