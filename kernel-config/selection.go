package kernelconfig

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Selection says what a kernel is to be used for.
type Selection struct {
	Side     Side
	Profiles []edits.Profile // of the guest; nil: all, none of them required
	Families []string        // nil: all, none of them required
	// Vendor takes the vendor's drivers instead of Linux's also for families that
	// Linux has drivers for.
	Vendor bool
}

// Selected is a fragment that belongs to a Selection.
type Selected struct {
	Fragment
	// Required is set unless the fragment is only there because the Selection
	// names no profile or no family.
	Required bool
}

// Select returns the fragments for a use. It refuses names that it does not know
// and a family in a profile that no fragment serves.
func Select(s Selection) ([]Selected, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	var all []Selected
	for _, f := range fragments() {
		if f.Side != s.Side {
			continue
		}
		use := Selected{Fragment: f, Required: true}
		if f.Profile != "" {
			if len(s.Profiles) > 0 && !slices.Contains(s.Profiles, f.Profile) {
				continue
			}
			use.Required = len(s.Profiles) > 0
		}
		named := slices.ContainsFunc(f.Families, func(name string) bool { return slices.Contains(s.Families, name) })
		switch {
		case f.Vendor:
			if !named && !s.Vendor {
				continue
			}
			use.Required = true
		case len(f.Families) > 0:
			if s.Vendor || len(s.Families) > 0 && !named {
				continue
			}
			use.Required = use.Required && named
		}
		all = append(all, use)
	}
	return all, nil
}

func (s Selection) validate() error {
	if s.Side != Host && s.Side != Guest {
		return fmt.Errorf("side %q: expected host or guest", s.Side)
	}
	if s.Side == Host && len(s.Profiles) > 0 {
		return errors.New("a profile says who in the guest takes a VF: the host's kernel is the same for all: leave it out")
	}
	for _, p := range s.Profiles {
		if _, err := edits.ParseProfile(string(p)); err != nil {
			return err
		}
	}
	for _, name := range s.Families {
		if qat.FamilyByName(name) == nil {
			return unknownFamily(name)
		}
	}
	if s.Side == Guest && s.Vendor && len(s.Profiles) > 0 && !slices.Contains(s.Profiles, edits.ProfileGuestKernel) {
		return fmt.Errorf("the vendor's drivers take a VF in profile %s only: the guest's kernel has no QAT driver in profile %s", edits.ProfileGuestKernel, edits.ProfileVFIO)
	}
	return nil
}

func unknownFamily(name string) error {
	known := make([]string, len(qat.Families))
	for i, f := range qat.Families {
		known[i] = f.Name
	}
	return fmt.Errorf("QAT family %q: expected one of %s", name, strings.Join(known, ", "))
}
