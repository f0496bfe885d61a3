package lab

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
)

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func hexID(t *testing.T, s string) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(s, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

func TestQEMUEmulatesTheFamiliesThatAreKnown(t *testing.T) {
	row := regexp.MustCompile(`\{ "qat-(\w+)", +"qat-(\w+)-vf", +0x(\w+), 0x(\w+), +(\d+), (\d+) \}`)
	var names []string
	for _, m := range row.FindAllStringSubmatch(read(t, "qemu/qatemu.c"), -1) {
		names = append(names, m[1])
		f := qat.FamilyByName(m[1])
		if f == nil || m[2] != m[1] {
			t.Errorf("qatemu.c has %s with VF %s: no such family", m[1], m[2])
			continue
		}
		if pf, vf := hexID(t, m[3]), hexID(t, m[4]); pf != f.PFDevice || vf != f.VFDevice {
			t.Errorf("%s: qatemu.c has ids %04x and %04x, expected %04x and %04x", f.Name, pf, vf, f.PFDevice, f.VFDevice)
		}
		if vfs := m[5]; f.MaxVFs != 0 && vfs != strconv.Itoa(f.MaxVFs) {
			t.Errorf("%s: qatemu.c has %s VFs, expected %d", f.Name, vfs, f.MaxVFs)
		}
		if offset := m[6]; offset != strconv.Itoa(f.VFOffset) {
			t.Errorf("%s: qatemu.c has a first VF at %s, expected %d", f.Name, offset, f.VFOffset)
		}
	}
	if !slices.Equal(names, Families()) {
		t.Errorf("qatemu.c has %v, Families says %v", names, Families())
	}
}

func TestTheStandInsHaveTheNamesAndIDsOfTheDrivers(t *testing.T) {
	type driver struct{ module, name string }
	expected := map[uint16]driver{}
	for _, f := range qat.Families {
		expected[f.PFDevice] = driver{f.PFModule, f.PFDriver}
		expected[f.VFDevice] = driver{f.VFModule, f.VFDriver}
	}
	stub := regexp.MustCompile(`STUB_(\w+)\)\n#define DRIVER "(\w+)"\n(?:#define GENERATION \d\n)?#define IDS (.*)`)
	id := regexp.MustCompile(`ID\(0x(\w+)\)`)
	var stubs []string
	for _, m := range stub.FindAllStringSubmatch(read(t, "guest/qat_stub.c"), -1) {
		stubs = append(stubs, m[1])
		for _, i := range id.FindAllStringSubmatch(m[3], -1) {
			device := hexID(t, i[1])
			if got := (driver{m[1], m[2]}); got != expected[device] {
				t.Errorf("device %04x: qat_stub.c has driver %v, expected %v", device, got, expected[device])
			}
		}
	}
	for _, s := range stubs {
		if !slices.Contains(provided, s) {
			t.Errorf("module %s is not in every guest", s)
		}
	}
	if n := len(stubs); n != 10 {
		t.Errorf("found %d stand-ins in qat_stub.c, expected 10", n)
	}
}

func TestGuestsGetTheProgramsThatAreShipped(t *testing.T) {
	if want := "\nLEAN    := -tags " + lean + "\n"; !strings.Contains(read(t, "../../Makefile"), want) {
		t.Errorf("the Makefile has no line %q", strings.TrimSpace(want))
	}
}
