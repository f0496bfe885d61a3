package devconf

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// family is a copy of a family of the table with ring pairs of the test's own.
func family(t *testing.T, name string, rings qat.RingPairs) *qat.Family {
	t.Helper()
	f := qat.FamilyByName(name)
	if f == nil {
		t.Fatalf("no family %s", name)
	}
	c := *f
	c.RingPairs = rings
	return &c
}

func gen2(t *testing.T) *qat.Family {
	return family(t, "c62x", qat.RingPairs{Bundle: true, Count: 2})
}
func gen4(t *testing.T) *qat.Family { return family(t, "4xxx", qat.RingPairs{Count: 4}) }
func gen6(t *testing.T) *qat.Family { return family(t, "6xxx", qat.RingPairs{Count: 4}) }

func options(change ...func(*Options)) Options {
	o := DefaultOptions()
	for _, c := range change {
		c(&o)
	}
	return o
}

// refused checks that there is an error of one line that has all the parts.
func refused(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("nothing was refused, want an error with %q", parts)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has more than one line: %v", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestDefaultsFitEveryFamilyAndItsServices(t *testing.T) {
	services := map[bool][]qat.Services{
		false: {""},
		true:  {"sym", "asym", "dc", "dcc", "sym;asym", "asym;sym", "sym;dc", "asym;dc", "dc;asym"},
	}
	for i := range qat.Families {
		fam := &qat.Families[i]
		list := services[fam.Generation >= 4]
		if fam.Generation >= 6 {
			list = append(list, "sym;asym;dc", "sym;dc;decomp", "asym;dc;decomp")
		}
		for _, s := range list {
			f, err := ForVF(fam, s, DefaultOptions())
			if err != nil {
				t.Errorf("%s with %q: %v", fam.Name, s, err)
				continue
			}
			if err := f.Check(fam, s); err != nil {
				t.Errorf("%s with %q: what ForVF made does not pass Check: %v", fam.Name, s, err)
			}
		}
	}
}

func TestAllRingPairsAreSharedOut(t *testing.T) {
	for _, c := range []struct {
		family    *qat.Family
		services  qat.Services
		processes int
		cy, dc    int
		enabled   string
	}{
		{gen2(t), "", 1, 2, 2, "cy;dc"},
		{gen2(t), "", 2, 1, 1, "cy;dc"},
		{gen4(t), "sym", 1, 4, 0, "sym"},
		{gen4(t), "asym", 2, 2, 0, "asym"},
		{gen4(t), "dc", 1, 0, 4, "dc"},
		{gen4(t), "dcc", 1, 0, 4, "dcc"},
		{gen4(t), "dc", 3, 0, 1, "dc"},
		{gen4(t), "sym;asym", 1, 2, 0, "sym;asym"},
		{gen4(t), "asym;dc", 1, 2, 2, "asym;dc"},
		{gen4(t), "dc;sym", 2, 1, 1, "dc;sym"},
		{gen6(t), "sym;asym;dc", 1, 1, 1, "sym;asym;dc"},
		{gen6(t), "asym;dc;decomp", 1, 2, 1, "asym;dc;decomp"},
		{gen6(t), "sym;dc;decomp", 1, 1, 1, "sym;dc;decomp"},
	} {
		f, err := ForVF(c.family, c.services, options(func(o *Options) { o.Processes = c.processes }))
		if err != nil {
			t.Errorf("%s with %q for %d processes: %v", c.family.Name, c.services, c.processes, err)
			continue
		}
		user := f.Sections[1]
		if len(user.Cy) != c.cy || len(user.Dc) != c.dc {
			t.Errorf("%s with %q for %d processes has %d cy and %d dc instances, want %d and %d",
				c.family.Name, c.services, c.processes, len(user.Cy), len(user.Dc), c.cy, c.dc)
		}
		if got := strings.Join(f.General.ServicesEnabled, ";"); got != c.enabled {
			t.Errorf("%s with %q enables %q, want %q", c.family.Name, c.services, got, c.enabled)
		}
	}
}

func TestMoreInstancesThanRingPairsAreRefused(t *testing.T) {
	for _, c := range []struct {
		family   *qat.Family
		services qat.Services
		options  Options
		want     string
	}{
		{gen4(t), "sym;asym", options(func(o *Options) { o.CyInstances, o.Processes = 3, 2 }),
			"4xxxvf: 3 cy instances x 2 processes need 12 ring pairs, a VF with sym;asym has 4 for cy: lower processes or cy_instances in [conf]"},
		{gen4(t), "asym;dc", options(func(o *Options) { o.DcInstances = 3 }),
			"4xxxvf: 3 dc instances x 1 process need 3 ring pairs, a VF with asym;dc has 2 for dc: lower processes or dc_instances in [conf]"},
		{gen4(t), "dc", options(func(o *Options) { o.Processes = 5 }),
			"4xxxvf: 1 dc instance x 5 processes need 5 ring pairs, a VF with dc has 4 for dc: lower processes or dc_instances in [conf]"},
		{gen6(t), "sym;asym;dc", options(func(o *Options) { o.CyInstances = 2 }),
			"6xxxvf: 2 cy instances x 1 process need 4 ring pairs, a VF with sym;asym;dc has 2 for cy: lower processes or cy_instances in [conf]"},
		{gen2(t), "", options(func(o *Options) { o.CyInstances, o.Processes = 3, 2 }),
			"c6xxvf: 3 cy instances x 2 processes make 6, a VF with cy;dc has room for 2: lower processes or cy_instances in [conf]"},
	} {
		_, err := ForVF(c.family, c.services, c.options)
		if err == nil || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}

func TestInstancesOfAServiceThatAVFHasNotAreLeftOut(t *testing.T) {
	f, err := ForVF(gen4(t), "dc", options(func(o *Options) { o.CyInstances = 2 }))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.Sections[1].Cy); n != 0 {
		t.Errorf("a VF with dc got %d crypto instances", n)
	}
}

func TestServicesMustBeKnownFromGen4On(t *testing.T) {
	_, err := ForVF(gen4(t), "", DefaultOptions())
	refused(t, err, "4xxxvf: ", "services of the PF are unknown", "cfg_services")
}

func TestOptionsOutOfRangeAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"reserved section":      {func(o *Options) { o.Section = "KERNEL" }, `section = "KERNEL"`},
		"numbered accelerator":  {func(o *Options) { o.Section = "Accelerator0" }, "section"},
		"section with a line":   {func(o *Options) { o.Section = "A]\n[B" }, "section"},
		"empty section":         {func(o *Options) { o.Section = "" }, "section"},
		"long section":          {func(o *Options) { o.Section = strings.Repeat("A", 41) }, "section"},
		"no process":            {func(o *Options) { o.Processes = 0 }, "processes = 0: expected 1 to 128"},
		"negative processes":    {func(o *Options) { o.Processes = -1 }, "processes = -1"},
		"huge processes":        {func(o *Options) { o.Processes = 1 << 40 }, "processes = "},
		"negative instances":    {func(o *Options) { o.CyInstances = -1 }, "cy_instances = -1"},
		"huge instances":        {func(o *Options) { o.DcInstances = 129 }, "dc_instances = 129"},
		"odd requests":          {func(o *Options) { o.SymRequests = 100 }, "sym_requests = 100: expected a power of two"},
		"few requests":          {func(o *Options) { o.AsymRequests = 32 }, "asym_requests = 32"},
		"no requests":           {func(o *Options) { o.DcRequests = 0 }, "dc_requests = 0"},
		"no core":               {func(o *Options) { o.CoreAffinity = nil }, "core_affinity"},
		"negative core":         {func(o *Options) { o.CoreAffinity = []int{-1} }, "core_affinity has -1"},
		"more cores than known": {func(o *Options) { o.CoreAffinity = make([]int, 257) }, "core_affinity has 257 entries"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ForVF(gen4(t), "sym", options(c.change))
			refused(t, err, "configure 4xxxvf: [conf] ", c.want)
		})
	}
}

func TestCoresAreGivenOutInTurn(t *testing.T) {
	f, err := ForVF(gen4(t), "asym;dc", options(func(o *Options) {
		o.Processes, o.CoreAffinity = 2, []int{4, 5, 6, 7}
	}))
	if err != nil {
		t.Fatal(err)
	}
	user := f.Sections[1]
	if diff := cmp.Diff([][]int{{4, 6}, {5, 7}}, [][]int{user.Cy[0].Cores, user.Dc[0].Cores}); diff != "" {
		t.Errorf("cores (-want +got):\n%s", diff)
	}
}

func TestOneProcessCanWaitForEventsOnABundle(t *testing.T) {
	wait := func(o *Options) { o.Polled = false }
	if _, err := ForVF(gen2(t), "", options(wait)); err != nil {
		t.Error(err)
	}
	_, err := ForVF(gen2(t), "", options(wait, func(o *Options) { o.Processes = 2 }))
	refused(t, err, "c6xxvf: 2 processes wait for events", "lower processes to 1 or set polled")
	_, err = ForVF(gen2(t), "", options(wait, func(o *Options) { o.CoreAffinity = []int{0, 1} }))
	refused(t, err, "one interrupt", "core_affinity")
	if _, err := ForVF(gen4(t), "dc", options(wait, func(o *Options) { o.Processes = 4 })); err != nil {
		t.Errorf("every ring pair of a Gen4 VF has its interrupt: %v", err)
	}
}

func TestTextOfTheDefaultFile(t *testing.T) {
	f, err := ForVF(gen4(t), "sym;asym", options(func(o *Options) { o.CyInstances = 1 }))
	if err != nil {
		t.Fatal(err)
	}
	want := `# Made by kata-qat for one virtual function. Changes here are lost.
[GENERAL]
ServicesEnabled             = sym;asym
ConfigVersion               = 2
CyNumConcurrentSymRequests  = 512
CyNumConcurrentAsymRequests = 64
DcNumConcurrentRequests     = 512
statsGeneral                = 1
statsDh                     = 1
statsDrbg                   = 1
statsDsa                    = 1
statsEcc                    = 1
statsKeyGen                 = 1
statsDc                     = 1
statsLn                     = 1
statsPrime                  = 1
statsRsa                    = 1
statsSym                    = 1

[KERNEL]
NumberCyInstances = 0
NumberDcInstances = 0

[SHIM]
NumberCyInstances = 1
NumberDcInstances = 0
NumProcesses      = 1
LimitDevAccess    = 0
Cy0Name           = "SHIM0"
Cy0IsPolled       = 1
Cy0CoreAffinity   = 0
`
	if diff := cmp.Diff(want, string(f.Render())); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

func TestNamesCountTheDevicesOfTheGuest(t *testing.T) {
	f := qat.FamilyByName("c62x")
	if got := Name(f, 0); got != "c6xxvf_dev0.conf" {
		t.Errorf("Name = %s", got)
	}
	if got := GuestPath(f, 11); got != "/etc/c6xxvf_dev11.conf" {
		t.Errorf("GuestPath = %s", got)
	}
}

func readSample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
