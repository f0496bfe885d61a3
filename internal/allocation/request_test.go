package allocation

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
)

func TestARequestIsReadStrictly(t *testing.T) {
	good := map[string][]Request{
		"cy=2":                            {{"qat.intel.com/cy", 2}},
		"cy=1,dc=1":                       {{"qat.intel.com/cy", 1}, {"qat.intel.com/dc", 1}},
		"qat.intel.com/sym-dc=16":         {{"qat.intel.com/sym-dc", 16}},
		"dc=1,qat.intel.com/asym=15":      {{"qat.intel.com/dc", 1}, {"qat.intel.com/asym", 15}},
		"generic=9,cy=1,dc=1,sym=1,asy=1": {{"qat.intel.com/generic", 9}, {"qat.intel.com/cy", 1}, {"qat.intel.com/dc", 1}, {"qat.intel.com/sym", 1}, {"qat.intel.com/asy", 1}},
	}
	for value, want := range good {
		if got, err := ParseRequest(value, qat.ResourceDomain, 16); err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseRequest(%q) = %v, %v; expected %v", value, got, err, want)
		}
	}

	for value, word := range map[string]string{
		"":                            `expected <resource>=<number>`,
		"cy":                          `"cy"`,
		"cy=":                         `"" is no number`,
		"cy=two":                      `"two" is no number`,
		"cy=0":                        `"0" is no number of VFs from 1 to 16`,
		"cy=-1":                       `"-1"`,
		"cy=+1":                       `"+1"`,
		"cy=01":                       `"01"`,
		"cy=1_0":                      `"1_0"`,
		"cy=99999999999999999999":     `is no number`,
		" cy=1":                       `" cy=1"`,
		"cy=1 ":                       `"1 "`,
		"cy=1, dc=1":                  `" dc=1"`,
		"cy=1,":                       `""`,
		"=1":                          `"=1"`,
		"cy=1=2":                      `"1=2"`,
		"-cy=1":                       `"-cy=1"`,
		"CY=1":                        `"CY=1"`,
		"gpu.intel.com/i915=1":        `"gpu.intel.com/i915=1"`,
		"../cy=1":                     `"../cy=1"`,
		"cy=1,qat.intel.com/cy=1":     `qat.intel.com/cy is asked for twice`,
		"cy=17":                       `pcie_root_port`,
		"cy=9,dc=8":                   `17 VFs: a pod can have at most 16`,
		"cy=9223372036854775807,dc=1": `pcie_root_port`,
		"cy\n=1":                      `"cy\n=1"`,
	} {
		_, err := ParseRequest(value, qat.ResourceDomain, 16)
		refused(t, err, word)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, seed := range []string{"cy=2", "cy=1,dc=1", "qat.intel.com/cy=3", "cy=0", "cy=-1", "cy=17", "cy=1,cy=1", "", ",", "=", "a=1\n", "sym-dc=16"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		requests, err := ParseRequest(value, "qat.intel.com", 16)
		if err != nil {
			if msg := err.Error(); strings.ContainsAny(msg, "\n\r\x00") || len(msg) > 1000 || requests != nil {
				t.Fatalf("ParseRequest(%q) = %v, %q: expected nothing and one short line", value, requests, msg)
			}
			return
		}
		// What was taken says the same when it is written down again.
		var parts []string
		total := 0
		for _, r := range requests {
			parts = append(parts, fmt.Sprintf("%s=%d", r.Resource, r.Count))
			total += r.Count
			if r.Count < 1 {
				t.Errorf("ParseRequest(%q): %v", value, r)
			}
		}
		again, err := ParseRequest(strings.Join(parts, ","), "qat.intel.com", 16)
		if err != nil || !slices.Equal(again, requests) {
			t.Errorf("ParseRequest(%q) = %v, and again %v, %v", value, requests, again, err)
		}
		if bare := strings.ReplaceAll(strings.Join(parts, ","), "qat.intel.com/", ""); bare != strings.ReplaceAll(value, "qat.intel.com/", "") {
			t.Errorf("ParseRequest(%q) took it for %q", value, bare)
		}
		if total < 1 || total > 16 {
			t.Errorf("ParseRequest(%q) asks for %d VFs", value, total)
		}
	})
}

func TestNamesOfAllocatorsAreUnderstood(t *testing.T) {
	for name, want := range map[string]named{
		"qat.intel.com/cy=0000:6b:00.1":    {"0000:6b:00.1", "qat.intel.com/cy"},
		"qat.intel.com/dc=10000:6B:00.7":   {"10000:6b:00.7", "qat.intel.com/dc"},
		"intel.com/qat=qatvf-0000-6b-00-1": {"0000:6b:00.1", ""},
		"intel.com/qat=qatvf-0000-aa-1f-7": {"0000:aa:1f.7", ""},
	} {
		if got, ok, err := fromCDI("qat.intel.com", name); got != want || !ok || err != nil {
			t.Errorf("%s: %v, %v, %v; expected %v", name, got, ok, err, want)
		}
	}
	for _, name := range []string{"intel.com/qat=qatvf-vfio", "nvidia.com/gpu=0", "qat.intel.com", "qat.intel.com.evil/cy=0000:6b:00.1", ""} {
		if got, ok, err := fromCDI("qat.intel.com", name); ok || err != nil {
			t.Errorf("%s: taken for VF %v (%v)", name, got, err)
		}
	}
	for _, name := range []string{"intel.com/qat=0", "intel.com/qat=qatvf-0000-6b-00", "intel.com/qat=qatvf-0000-6b-00-1-2", "intel.com/qat=", "qat.intel.com/cy=6b:00.1", "qat.intel.com/cy=../../x"} {
		_, ok, err := fromCDI("qat.intel.com", name)
		refused(t, err, "names no QAT VF")
		if ok {
			t.Errorf("%s is taken for a VF", name)
		}
	}
}
