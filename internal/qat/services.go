package qat

import (
	"fmt"
	"slices"
	"strings"
)

// Services is the set of services that a PF is configured for, in the form of
// its sysfs file cfg_services: "sym;asym", "dc", "dcc". It is empty for a
// family whose services are not in sysfs (before Gen4).
type Services string

// ResourceDomain is the domain of the extended resources, as Intel's device
// plugin has it.
const ResourceDomain = "qat.intel.com"

// ParseServices checks a set of services for a family and returns it in the
// order in which the services were named. Gen4 takes at most two services, Gen6
// three; dcc stands alone (Linux, Documentation/ABI/testing/sysfs-driver-qat).
func ParseServices(f *Family, s string) (Services, error) {
	if f.Generation < 4 {
		return "", fmt.Errorf("services %q: family %s has no configurable services in sysfs", s, f.Name)
	}
	known, most := []string{"sym", "asym", "dc", "dcc"}, 2
	if f.Generation >= 6 {
		known, most = append(known, "decomp"), 3
	}
	parts := strings.Split(strings.TrimSpace(s), ";")
	for i, p := range parts {
		if !slices.Contains(known, p) {
			return "", fmt.Errorf("services %q: %q is no service of family %s: expected some of %s, joined by \";\"", s, p, f.Name, strings.Join(known, ", "))
		}
		if slices.Contains(parts[:i], p) {
			return "", fmt.Errorf("services %q: %s is named twice", s, p)
		}
	}
	if len(parts) > most {
		return "", fmt.Errorf("services %q: family %s takes at most %d services at once", s, f.Name, most)
	}
	if len(parts) > 1 && slices.Contains(parts, "dcc") {
		return "", fmt.Errorf("services %q: dcc cannot be combined with another service", s)
	}
	return Services(strings.Join(parts, ";")), nil
}

// readableServices tells whether s has the form of a set of services. It is
// laxer than ParseServices, which checks what is to be set: a driver may report
// a service that did not exist when this was written, but what it reports ends
// in resource names and must not hold anything else.
func readableServices(s string) bool {
	for part := range strings.SplitSeq(s, ";") {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz") != "" {
			return false
		}
	}
	return true
}

// Has tells whether the service is in the set.
func (s Services) Has(service string) bool {
	return slices.Contains(strings.Split(string(s), ";"), service)
}

// ResourceName is the last part of the extended resource that a VF with these
// services is advertised as: "cy" for sym and asym in either order, "generic"
// where the services are unknown, otherwise the services joined by "-" in the
// order that the PF has them (intel-device-plugins, cmd/qat_plugin/dpdkdrv).
func (s Services) ResourceName() string {
	switch s {
	case "":
		return "generic"
	case "sym;asym", "asym;sym":
		return "cy"
	}
	return strings.ReplaceAll(string(s), ";", "-")
}

// Resource is the full name of the extended resource that the VF is a unit
// of: "qat.intel.com/cy".
func (v *VF) Resource() string { return ResourceDomain + "/" + v.Services.ResourceName() }
