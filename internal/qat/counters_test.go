package qat_test

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

const kernelTable = "AE          Requests        Responses\n" +
	" 0:            18242            18241\n" +
	"10:                7                7\n"

const vendorList = `+------------------------------------------------+
| FW Statistics for Qat Device                   |
+------------------------------------------------+
| Firmware Requests [AE  0]:               18242 |
| Firmware Responses[AE  0]:               18241 |
| RAS Events        [AE  0]:                   3 |
+------------------------------------------------+
| Firmware Requests [AE 10]:                   7 |
| Firmware Responses[AE 10]:                   7 |
+------------------------------------------------+
`

func TestCountersOfBothDriversAreRead(t *testing.T) {
	want := qat.Counters{{0, 18242, 18241}, {10, 7, 7}}
	for name, text := range map[string]string{"the kernel's": kernelTable, "the vendor's": vendorList} {
		got, err := qat.ParseCounters(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, expected %v", name, got, err, want)
		}
		if got.Requests() != 18249 || got.Responses() != 18248 {
			t.Errorf("%s: the sums are %d and %d", name, got.Requests(), got.Responses())
		}
	}
}

func TestCountersThatCannotBeReadAreAnError(t *testing.T) {
	for _, text := range []string{
		"", "AE  Requests Responses\n", " 0: 1\n", " 0: 1 2 3\n", "x: 1 2\n", " 0: -1 2\n", " 0: 1 18446744073709551616\n",
		"| Firmware Requests [AE 0] 1 |\n", "| Firmware Requests [AE x]: 1 |\n", "| Firmware Responses[AE 0]: many |\n",
	} {
		if got, err := qat.ParseCounters(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

// Whatever the file says, what was read of it is in it, word for word.
func FuzzParseCounters(f *testing.F) {
	f.Add(kernelTable)
	f.Add(vendorList)
	f.Add(" 0: 18446744073709551615 0\x00")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := qat.ParseCounters(text)
		if err != nil {
			return
		}
		for _, e := range c {
			for _, n := range []uint64{uint64(e.Index), e.Requests, e.Responses} {
				if n != 0 && !strings.Contains(text, strconv.FormatUint(n, 10)) {
					t.Fatalf("%d of engine %d is not in %q", n, e.Index, text)
				}
			}
			if e.Index > math.MaxUint16 {
				t.Fatalf("engine %d", e.Index)
			}
		}
	})
}

func TestVitalsAreThoseOfTheMoment(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{sapphireRapids()}})
	pf := &discover(t, tree.Root).PFs[0]
	do(t, tree.SetCounters(pf.Address, qattest.Counter{Requests: 5, Responses: 4}, qattest.Counter{Requests: 1, Responses: 1}))
	v := qat.ReadVitals(tree.Root, pf)
	if v.Err != nil || v.Counters.Requests() != 6 || v.Counters.Responses() != 5 || v.Health != qat.HealthOK || v.State != qat.StateUp {
		t.Errorf("vitals %+v", v)
	}
	do(t, tree.Kill(pf.Address))
	do(t, tree.Set(pf.Address, "qat/state", qat.StateDown))
	if v := qat.ReadVitals(tree.Root, pf); v.Health != qat.HealthDead || v.State != qat.StateDown {
		t.Errorf("vitals of a dead device %+v", v)
	}
	if v := qat.ReadVitals(t.TempDir(), pf); !errors.Is(v.Err, qat.ErrNoCounters) || v.Health != qat.HealthUnknown {
		t.Errorf("vitals without debugfs %+v", v)
	}
}
