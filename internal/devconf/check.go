package devconf

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// Check tells whether the driver would take the file for a VF of the family
// whose PF has the services: what it refuses, "adf_ctl up" would fail on in
// the guest, or leave the pod without an instance.
func (f *File) Check(fam *qat.Family, s qat.Services) error {
	if err := f.check(fam, s); err != nil {
		return fmt.Errorf("%s: %w", fam.Conf, err)
	}
	return nil
}

func (f *File) check(fam *qat.Family, s qat.Services) error {
	if err := f.wellFormed(); err != nil {
		return err
	}
	if f.General.ConfigVersion != configVersion {
		return fmt.Errorf("[GENERAL] ConfigVersion is %d: the driver takes %d only", f.General.ConfigVersion, configVersion)
	}
	if err := checkServices(fam, s, f.General.ServicesEnabled); err != nil {
		return err
	}
	if err := f.checkSections(); err != nil {
		return err
	}
	r := roomOf(fam, f.General.ServicesEnabled)
	if err := r.check("cy", "cy_instances", r.cy, r.pairs, f.demand(func(s *Section) int { return len(s.Cy) })); err != nil {
		return err
	}
	if err := r.check("dc", "dc_instances", r.dc, 1, f.demand(func(s *Section) int { return len(s.Dc) })); err != nil {
		return err
	}
	if r.bundle {
		return f.checkBundle()
	}
	return nil
}

// wellFormed tells whether the text of the file says what the model says, so
// that no value can smuggle in a line.
func (f *File) wellFormed() error {
	for _, s := range f.lines() {
		if !validName(s.name) {
			return fmt.Errorf("section %q: %s", s.name, nameRule)
		}
		for _, k := range s.keys {
			if !validName(k.Name) {
				return fmt.Errorf("[%s] key %q: %s", s.name, k.Name, nameRule)
			}
			if !validValue(k.Value) {
				return fmt.Errorf("[%s] %s = %q: %s", s.name, k.Name, k.Value, valueRule)
			}
		}
	}
	text := f.Render()
	g, err := Parse(text)
	if err != nil {
		return err
	}
	if !bytes.Equal(g.Render(), text) {
		return errors.New("the file does not read back as it was written")
	}
	return nil
}

var errNoServices = errors.New("the services of the PF are unknown, and they say what the ring pairs of its VFs are for: set the PF's qat/cfg_services")

func checkServices(fam *qat.Family, s qat.Services, enabled []string) error {
	if fam.Generation >= 4 && s == "" {
		return errNoServices
	}
	if len(enabled) == 0 {
		return errors.New("[GENERAL] ServicesEnabled is missing")
	}
	for i, e := range enabled {
		if slices.Contains(enabled[:i], e) {
			return fmt.Errorf("[GENERAL] ServicesEnabled names %s twice", e)
		}
	}
	if fam.Generation >= 4 {
		have := slices.Sorted(strings.SplitSeq(string(s), ";"))
		if !slices.Equal(have, slices.Sorted(slices.Values(enabled))) {
			return fmt.Errorf("[GENERAL] ServicesEnabled is %s, but the PF is configured for %s", strings.Join(enabled, ";"), s)
		}
		return nil
	}
	crypto := 0
	for _, e := range enabled {
		switch e {
		case "cy", "sym", "asym":
			crypto++
		case "dc":
		default:
			return fmt.Errorf("[GENERAL] ServicesEnabled has %q: expected some of cy, sym, asym, dc", e)
		}
	}
	// adf_cfg_chk_serv_ena_tokens: "cannot co-exist".
	if crypto > 1 {
		return fmt.Errorf("[GENERAL] ServicesEnabled is %s: expected only one of cy, sym and asym", strings.Join(enabled, ";"))
	}
	return nil
}

func (f *File) checkSections() error {
	kernel, user := "", ""
	for i := range f.Sections {
		s := &f.Sections[i]
		if len(s.Cy)+len(s.Dc) == 0 {
			continue
		}
		if kernelSections[s.Name] {
			kernel = s.Name
			continue
		}
		user = s.Name
		if s.Processes == 0 {
			return fmt.Errorf("[%s] NumProcesses is 0: no process could use its instances", s.Name)
		}
		for _, inst := range slices.Concat(s.Cy, s.Dc) {
			if inst.Polling == PollingInterrupt {
				return fmt.Errorf("[%s] %s has IsPolled = 0: user space needs 1 (poll) or 2 (epoll)", s.Name, inst.Name)
			}
		}
	}
	if kernel != "" && user != "" {
		return fmt.Errorf("[%s] and [%s] both have instances: a VF is either the kernel's or user space's", kernel, user)
	}
	if kernel == "" && user == "" {
		return errors.New("no section has an instance: nothing could use the VF")
	}
	return nil
}

// checkBundle checks what the driver wants of instances that share the one
// bundle of a VF (adf_cfg_can_be_shared, adf_cfg_get_ring_pairs_from_bundle).
func (f *File) checkBundle() error {
	var first *Instance
	processes := 0
	for i := range f.Sections {
		s := &f.Sections[i]
		if kernelSections[s.Name] || len(s.Cy)+len(s.Dc) == 0 {
			continue
		}
		processes += s.Processes
		for _, inst := range slices.Concat(s.Cy, s.Dc) {
			if first == nil {
				first = &inst
			}
			switch {
			case inst.Polling != first.Polling:
				return fmt.Errorf("[%s] %s has IsPolled = %d, %s has %d: a VF has one bundle, whose instances must be alike", s.Name, inst.Name, inst.Polling, first.Name, first.Polling)
			case inst.Polling == PollingEvent && inst.Cores[0] != first.Cores[0]:
				return fmt.Errorf("[%s] %s has core %d, %s has %d: a VF has one interrupt, name one CPU in core_affinity", s.Name, inst.Name, inst.Cores[0], first.Name, first.Cores[0])
			}
		}
	}
	if first != nil && first.Polling == PollingEvent && processes > 1 {
		return fmt.Errorf("%d processes wait for events, but a VF has one interrupt: lower processes to 1 or set polled in [conf]", processes)
	}
	return nil
}

// room is what a VF has room for.
type room struct {
	services string
	bundle   bool
	cy, dc   int // instances
	pairs    int // ring pairs of one crypto instance
}

// roomOf shares the ring pairs of a VF out to the services as the PF does. A
// bundle has its places for each service whatever the others do. A Gen4 PF
// splits the four ring pairs of a VF evenly between its services, and one of
// Gen6 with three services gives the fourth pair to asym, if that is one of
// them (Linux 6.16, adf_gen4_hw_data.c and adf_6xxx_hw_data.c, ring_to_svc_map).
func roomOf(fam *qat.Family, enabled []string) room {
	r := room{services: strings.Join(enabled, ";"), bundle: fam.RingPairs.Bundle, pairs: 1}
	if r.bundle {
		for _, e := range enabled {
			if e == "dc" {
				r.dc = fam.RingPairs.Count
			} else {
				r.cy = fam.RingPairs.Count
			}
		}
		return r
	}
	if len(enabled) == 0 {
		return r
	}
	each, rest := fam.RingPairs.Count/len(enabled), fam.RingPairs.Count%len(enabled)
	crypto := make([]int, 0, 2)
	for _, e := range enabled {
		switch e {
		case "asym":
			crypto = append(crypto, each+rest)
		case "sym":
			crypto = append(crypto, each)
		case "dc", "dcc":
			r.dc = each
		}
	}
	if len(crypto) > 0 {
		r.cy, r.pairs = slices.Min(crypto), len(crypto)
	}
	return r
}

// demand is what one section asks for of a service.
type demand struct{ instances, processes int }

func (f *File) demand(of func(*Section) int) []demand {
	var d []demand
	for i := range f.Sections {
		s := &f.Sections[i]
		processes := s.Processes
		if kernelSections[s.Name] {
			processes = 1
		}
		if n := of(s); n > 0 {
			d = append(d, demand{n, processes})
		}
	}
	return d
}

func (r room) check(service, option string, have, pairs int, demands []demand) error {
	total, terms := 0, make([]string, len(demands))
	for i, d := range demands {
		total += d.instances * d.processes
		terms[i] = fmt.Sprintf("%s x %s", count(d.instances, service+" instance"), count(d.processes, "process"))
	}
	if total <= have {
		return nil
	}
	ask := strings.Join(terms, " + ")
	if r.bundle {
		return fmt.Errorf("%s make %d, a VF with %s has room for %d: lower processes or %s in [conf]", ask, total, r.services, have, option)
	}
	return fmt.Errorf("%s need %s, a VF with %s has %d for %s: lower processes or %s in [conf]",
		ask, count(total*pairs, "ring pair"), r.services, have*pairs, service, option)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "s") {
		noun += "e"
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
