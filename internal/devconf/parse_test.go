package devconf

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
)

func TestSamplesAreReadAndFitTheirVFs(t *testing.T) {
	f, err := Parse(readSample(t, "c6xxvf_dev0.conf"))
	if err != nil {
		t.Fatal(err)
	}
	want := &File{
		General: General{
			ServicesEnabled: []string{"cy", "dc"}, ConfigVersion: 2, SymRequests: 512, AsymRequests: 64,
			Other: []Key{{"statsGeneral", "1"}, {"statsDh", "1"}, {"statsMisc", "0"}},
		},
		Sections: []Section{
			{Name: "KERNEL", Other: []Key{{"Cy0Name", "IPSec0"}, {"Cy0IsPolled", "0"}, {"Cy0CoreAffinity", "0"}}},
			{
				Name: "SSL", Processes: 1,
				Cy: []Instance{{"SSL0", PollingBusy, []int{0}}, {"SSL1", PollingBusy, []int{1}}},
				Dc: []Instance{{"Dc0", PollingBusy, []int{2}}, {"Dc1", PollingBusy, []int{3}}},
			},
		},
	}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	if err := f.Check(gen2(t), ""); err != nil {
		t.Error(err)
	}

	f, err = Parse(readSample(t, "4xxxvf_dev0.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Check(gen4(t), "dc;asym"); err != nil {
		t.Error(err)
	}
	refused(t, f.Check(gen4(t), "sym"), "4xxxvf: ", "ServicesEnabled is asym;dc, but the PF is configured for sym")
}

func TestUnknownSettingsSurviveInTheirOrder(t *testing.T) {
	f, err := Parse(readSample(t, "4xxxvf_dev0.conf"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(f.Render())
	last := -1
	for _, s := range []string{"AutoResetOnError", "StorageEnabled", "[SIOV]", "NumberAdis", "[KERNEL]", "[SHIM]", "0-3,8", "VendorExtra", "0x1F"} {
		i := strings.Index(text, s)
		if i <= last {
			t.Errorf("%s is missing or out of its order in\n%s", s, text)
		}
		last = i
	}
}

func TestMalformedFilesAreRefused(t *testing.T) {
	user := "NumberCyInstances = 1\nNumberDcInstances = 0\nNumProcesses = 1\nLimitDevAccess = 0\nCy0Name = \"S0\"\nCy0IsPolled = 1\nCy0CoreAffinity = 0\n"
	replaced := func(old, new string) string {
		if !strings.Contains(user, old) {
			t.Fatalf("no %q in the section", old)
		}
		return "[SHIM]\n" + strings.Replace(user, old, new, 1)
	}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"setting before a section": {"A = 1\n[SHIM]\n", []string{"line 1", "A stands before the first section"}},
		"no value":                 {"[SHIM]\nA =\n", []string{"line 2", "A = "}},
		"empty quotes":             {"[SHIM]\nA = \"\"\n", []string{"A = "}},
		"no equals sign":           {"[SHIM]\nA\n", []string{"line 2", "expected key = value"}},
		"no key":                   {"[SHIM]\n= 1\n", []string{"key \"\""}},
		"semicolon comment":        {"[SHIM]\n; A = 1\n", []string{"line 2", "key"}},
		"open section":             {"[SHIM\n", []string{"line 1", "section"}},
		"empty section name":       {"[]\n", []string{"section"}},
		"quote inside":             {"[SHIM]\nA = a\"b\n", []string{"A = "}},
		"backquote":                {"[SHIM]\nA = `b\n", []string{"A = "}},
		"line that goes on":        {"[SHIM]\nA = b\\\nB = 1\n", []string{"A = "}},
		"not ASCII":                {"[SHIM]\nA = ä\n", []string{"A = "}},
		"zero byte":                {"[SHIM]\nA = b\x00\n", []string{"A = "}},
		"long value":               {"[SHIM]\nA = " + strings.Repeat("a", 64) + "\n", []string{"A = ", "1 to 63"}},
		"long key":                 {"[SHIM]\n" + strings.Repeat("a", 64) + " = 1\n", []string{"key", "1 to 63"}},
		"section twice":            {"[SHIM]\nA = 1\n[SSL]\n[SHIM]\nB = 1\n", []string{"section [SHIM] is there twice"}},
		"key twice":                {"[SHIM]\nA = 1\nA = 2\n", []string{"[SHIM] A is there twice"}},
		"key twice, same value":    {"[SHIM]\nA = 1\nA = 1\n", []string{"[SHIM] A is there twice"}},
		"negative number":          {replaced("NumProcesses = 1", "NumProcesses = -1"), []string{"[SHIM] NumProcesses = -1: expected a decimal number from 0 to 128"}},
		"huge number":              {replaced("NumProcesses = 1", "NumProcesses = 99999999999999999999"), []string{"[SHIM] NumProcesses"}},
		"hexadecimal":              {replaced("NumProcesses = 1", "NumProcesses = 0x1"), []string{"[SHIM] NumProcesses = 0x1"}},
		"plus sign":                {replaced("NumProcesses = 1", "NumProcesses = +1"), []string{"[SHIM] NumProcesses = +1"}},
		"too many instances":       {replaced("NumberCyInstances = 1", "NumberCyInstances = 1000000"), []string{"[SHIM] NumberCyInstances"}},
		"instance not described":   {replaced("NumberCyInstances = 1", "NumberCyInstances = 2"), []string{"[SHIM] Cy1Name is missing, but NumberCyInstances is 2"}},
		"no polling mode":          {replaced("Cy0IsPolled = 1\n", ""), []string{"[SHIM] Cy0IsPolled is missing"}},
		"unknown polling mode":     {replaced("Cy0IsPolled = 1", "Cy0IsPolled = 3"), []string{"[SHIM] Cy0IsPolled = 3"}},
		"not a flag":               {replaced("LimitDevAccess = 0", "LimitDevAccess = 2"), []string{"[SHIM] LimitDevAccess = 2"}},
		"cores that fill memory":   {replaced("Cy0CoreAffinity = 0", "Cy0CoreAffinity = 0-8191"), []string{"[SHIM] Cy0CoreAffinity", "at most 256"}},
		"cores out of range":       {replaced("Cy0CoreAffinity = 0", "Cy0CoreAffinity = 4294967296"), []string{"[SHIM] Cy0CoreAffinity"}},
		"cores backwards":          {replaced("Cy0CoreAffinity = 0", "Cy0CoreAffinity = 3-1"), []string{"[SHIM] Cy0CoreAffinity = 3-1"}},
		"cores with a gap":         {replaced("Cy0CoreAffinity = 0", "Cy0CoreAffinity = 1,,2"), []string{"[SHIM] Cy0CoreAffinity = 1,,2"}},
		"version zero":             {"[GENERAL]\nConfigVersion = 0\n", []string{"[GENERAL] ConfigVersion = 0"}},
		"requests of no power":     {"[GENERAL]\nCyNumConcurrentSymRequests = 500\n", []string{"[GENERAL] CyNumConcurrentSymRequests = 500: expected a power of two"}},
		"service with no name":     {"[GENERAL]\nServicesEnabled = cy;;dc\n", []string{"[GENERAL] ServicesEnabled = cy;;dc"}},
		"too many sections":        {manySections(16), []string{"16 sections besides [GENERAL]: the driver has room for 15"}},
		"too many settings":        {"[SHIM]\n" + manyKeys(maxLines), []string{"more than 1024 settings"}},
		"too many once rendered":   {"[SHIM]\n" + manyKeys(maxLines-1), []string{"more than 1024 settings"}},
		"too many bytes":           {strings.Repeat("# comment\n", maxSize), []string{"more than 1024 settings or 262144 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			refused(t, err, append(c.want, "read QAT configuration: ")...)
		})
	}
}

func manySections(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[S%d]\n", i)
	}
	return b.String()
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "K%d=1\n", i)
	}
	return b.String()
}

func TestWhatAdfCtlWouldOverlookIsOverlooked(t *testing.T) {
	f, err := Parse([]byte("\r\n  # comment\n[ SHIM ] # comment\r\n\tNum Processes=\t\"2\" # two\r\nA = b;c = d\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Section{{Name: "SHIM", Processes: 2, Other: []Key{{"A", "b;c=d"}}}}
	if diff := cmp.Diff(want, f.Sections); diff != "" {
		t.Errorf("sections (-want +got):\n%s", diff)
	}
}

func TestCheckRefusesWhatTheDriverRefuses(t *testing.T) {
	fam := gen2(t)
	for name, c := range map[string]struct {
		change func(*File)
		want   string
	}{
		"other version":             {func(f *File) { f.General.ConfigVersion = 1 }, "ConfigVersion is 1"},
		"no version":                {func(f *File) { f.General.ConfigVersion = 0 }, "ConfigVersion is 0"},
		"no services":               {func(f *File) { f.General.ServicesEnabled = nil }, "ServicesEnabled is missing"},
		"unknown service":           {func(f *File) { f.General.ServicesEnabled = []string{"cy", "tls"} }, `ServicesEnabled has "tls"`},
		"service twice":             {func(f *File) { f.General.ServicesEnabled = []string{"dc", "dc"} }, "names dc twice"},
		"cy and sym":                {func(f *File) { f.General.ServicesEnabled = []string{"cy", "sym"} }, "expected only one of cy, sym and asym"},
		"dc without its service":    {func(f *File) { f.General.ServicesEnabled = []string{"cy"} }, "2 dc instances x 1 process make 2, a VF with cy has room for 0"},
		"kernel and user":           {func(f *File) { f.Sections[0].Cy = f.Sections[1].Cy[:1] }, "[KERNEL] and [SHIM] both have instances"},
		"no instance":               {func(f *File) { f.Sections = f.Sections[:1] }, "no section has an instance"},
		"no process":                {func(f *File) { f.Sections[1].Processes = 0 }, "[SHIM] NumProcesses is 0"},
		"user waits for interrupts": {func(f *File) { f.Sections[1].Cy[0].Polling = PollingInterrupt }, "[SHIM] SHIM0 has IsPolled = 0"},
		"mixed bundle":              {func(f *File) { f.Sections[1].Dc[1].Polling = PollingEvent }, "[SHIM] Dc1 has IsPolled = 2, SHIM0 has 1"},
		"two sections too many": {func(f *File) {
			f.Sections = append(f.Sections, Section{Name: "SSL", Processes: 1, Cy: f.Sections[1].Cy[:1]})
		},
			"2 cy instances x 1 process + 1 cy instance x 1 process make 3"},
		"smuggled line":     {func(f *File) { f.Sections[1].Cy[0].Name = "a\"\nNumProcesses = 9\nB = \"" }, "Cy0Name"},
		"smuggled section":  {func(f *File) { f.Sections[1].Name = "A]\n[B" }, "section"},
		"smuggled key":      {func(f *File) { f.Sections[1].Other = []Key{{"A = 1\nB", "2"}} }, "key"},
		"hidden repetition": {func(f *File) { f.Sections[1].Other = []Key{{"NumProcesses", "2"}} }, "[SHIM] NumProcesses is there twice"},
		"hidden section":    {func(f *File) { f.Sections[0].Name = "GENERAL" }, "[GENERAL] is there twice"},
		"hidden instances":  {func(f *File) { f.Sections[1].Foreign = true; f.Sections[1].Other = []Key{{"NumProcesses", "2"}} }, "does not read back"},
		"negative core":     {func(f *File) { f.Sections[1].Cy[0].Cores = []int{-1} }, "[SHIM] Cy0CoreAffinity"},
		"no core":           {func(f *File) { f.Sections[1].Cy[0].Cores = nil }, "[SHIM] Cy0CoreAffinity"},
		"nameless section":  {func(f *File) { f.Sections[1].Name = "" }, `section ""`},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := ForVF(fam, "", DefaultOptions())
			if err != nil {
				t.Fatal(err)
			}
			c.change(f)
			refused(t, f.Check(fam, ""), "c6xxvf: ", c.want)
		})
	}
}

// Whatever options and services are given, ForVF refuses them or makes a file
// that reads back as itself.
func TestEveryFileOfForVFReadsBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := []qat.Services{"", "sym", "asym", "dc", "sym;asym", "asym;dc", "dc;sym", "sym;asym;dc"}
	made := 0
	for range 600 {
		fam := []*qat.Family{gen2(t), gen4(t), gen6(t)}[rng.IntN(3)]
		s := all[rng.IntN(len(all))]
		o := options(func(o *Options) {
			o.Processes = 1 + rng.IntN(4)
			o.CyInstances, o.DcInstances = rng.IntN(3), rng.IntN(3)
			o.LimitDevAccess, o.Polled = rng.IntN(2) == 0, rng.IntN(2) == 0
			o.SymRequests = 64 << rng.IntN(11)
			o.CoreAffinity = rng.Perm(1 + rng.IntN(12))
		})
		f, err := ForVF(fam, s, o)
		if err != nil {
			continue
		}
		made++
		g, err := Parse(f.Render())
		if err != nil {
			t.Fatalf("%v\n%s", err, f.Render())
		}
		if diff := cmp.Diff(f, g); diff != "" {
			t.Fatalf("(-made +read):\n%s", diff)
		}
		if !bytes.Equal(f.Render(), g.Render()) {
			t.Fatal("equal files have different texts")
		}
	}
	if made < 60 {
		t.Errorf("only %d of 600 were made: the test tests little", made)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(readSample(f, "c6xxvf_dev0.conf"))
	f.Add(readSample(f, "4xxxvf_dev0.conf"))
	f.Add([]byte("[KERNEL]\nNumberCyInstances=1\nCy0Name=\"a\"\nCy0IsPolled=0\nCy0CoreAffinity=1,0,3-5\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := Parse(data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %q", err)
			}
			return
		}
		text := first.Render()
		if len(text) > maxSize {
			t.Errorf("%d bytes made %d", len(data), len(text))
		}
		second, err := Parse(text)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if diff := cmp.Diff(first, second); diff != "" {
			t.Errorf("rendering changed the file (-first +second):\n%s", diff)
		}
		if !bytes.Equal(second.Render(), text) {
			t.Error("rendering is no fixpoint")
		}
	})
}
