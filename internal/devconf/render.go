package devconf

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/ini.v1"
)

const header = "# Made by kata-qat for one virtual function. Changes here are lost."

// iniOptions are adf_ctl's rules: = alone separates, ; is part of a value, a
// line is a line. Repeated sections and keys are kept apart, to be refused:
// adf_ctl would take the first of them and say nothing.
var iniOptions = ini.LoadOptions{
	KeyValueDelimiters:         "=",
	IgnoreContinuation:         true,
	IgnoreInlineComment:        true,
	AllowNonUniqueSections:     true,
	AllowShadows:               true,
	AllowDuplicateShadowValues: true,
}

// plainSection is a section as it stands in the text.
type plainSection struct {
	name string
	keys []Key
}

// Render is the text of the file. Equal files have equal texts, and Parse makes
// the same file of it again if the file passes Check or came from Parse.
func (f *File) Render() []byte {
	cfg := ini.Empty(iniOptions)
	for i, s := range f.lines() {
		sec, err := cfg.NewSection(s.name)
		if err != nil {
			continue // a section without a name: Check refuses the file
		}
		if i == 0 {
			sec.Comment = header
		}
		for _, k := range s.keys {
			_, _ = sec.NewKey(k.Name, k.Value) // likewise
		}
	}
	var b bytes.Buffer
	_, _ = cfg.WriteTo(&b) // a bytes.Buffer takes everything
	return b.Bytes()
}

func (f *File) lines() []plainSection {
	g := &f.General
	var keys []Key
	if len(g.ServicesEnabled) > 0 {
		keys = append(keys, Key{"ServicesEnabled", strings.Join(g.ServicesEnabled, ";")})
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"ConfigVersion", g.ConfigVersion},
		{"CyNumConcurrentSymRequests", g.SymRequests},
		{"CyNumConcurrentAsymRequests", g.AsymRequests},
		{"DcNumConcurrentRequests", g.DcRequests},
	} {
		if n.value != 0 {
			keys = append(keys, Key{n.name, strconv.Itoa(n.value)})
		}
	}
	out := []plainSection{{generalSection, append(keys, g.Other...)}}
	for i := range f.Sections {
		out = append(out, plainSection{f.Sections[i].Name, f.Sections[i].lines()})
	}
	return out
}

func (s *Section) lines() []Key {
	if s.Foreign {
		return s.Other
	}
	keys := []Key{
		{"NumberCyInstances", strconv.Itoa(len(s.Cy))},
		{"NumberDcInstances", strconv.Itoa(len(s.Dc))},
	}
	if !kernelSections[s.Name] {
		limit := "0"
		if s.LimitDevAccess {
			limit = "1"
		}
		keys = append(keys, Key{"NumProcesses", strconv.Itoa(s.Processes)}, Key{"LimitDevAccess", limit})
	}
	keys = appendInstances(keys, "Cy", s.Cy)
	keys = appendInstances(keys, "Dc", s.Dc)
	return append(keys, s.Other...)
}

func appendInstances(keys []Key, prefix string, instances []Instance) []Key {
	for i, inst := range instances {
		p := prefix + strconv.Itoa(i)
		keys = append(keys,
			Key{p + "Name", `"` + inst.Name + `"`},
			Key{p + "IsPolled", strconv.Itoa(int(inst.Polling))},
			Key{p + "CoreAffinity", formatCores(inst.Cores)})
	}
	return keys
}

// formatCores writes cores as the driver's list, runs as ranges: "0-3,8".
func formatCores(cores []int) string {
	var parts []string
	for i := 0; i < len(cores); {
		j := i
		for j+1 < len(cores) && cores[j+1] == cores[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(cores[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", cores[i], cores[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
