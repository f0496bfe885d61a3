package devconf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Options is what an administrator may set of the files, in the table [conf].
// The zero value is not valid: begin with DefaultOptions.
type Options struct {
	// Section is the name under which processes start: what they give to
	// icp_sal_userStart, QAT_SECTION_NAME of the OpenSSL engine.
	Section string `toml:"section"`
	// Processes is how many processes of a pod can use the VF at one time.
	Processes int `toml:"processes"`
	// LimitDevAccess gives a process the instances of one VF only, instead of
	// those of all VFs of the pod.
	LimitDevAccess bool `toml:"limit_dev_access"`
	// CyInstances and DcInstances are the crypto and compression instances of
	// each process; 0 is as many as the VF has ring pairs for. A VF without
	// the service has none of them.
	CyInstances int `toml:"cy_instances"`
	DcInstances int `toml:"dc_instances"`
	// SymRequests, AsymRequests and DcRequests are the requests that an
	// instance can have in flight: powers of two from 64 to 65536.
	SymRequests  int `toml:"sym_requests"`
	AsymRequests int `toml:"asym_requests"`
	DcRequests   int `toml:"dc_requests"`
	// Polled processes ask for responses; others wait for an event.
	Polled bool `toml:"polled"`
	// CoreAffinity are CPUs of the guest, given to the instances of all
	// processes in turn. Polled instances do not heed it.
	CoreAffinity []int `toml:"core_affinity"`
}

// DefaultOptions are the vendor's defaults for the OpenSSL engine's section,
// with all ring pairs of the VF in the hands of one process.
func DefaultOptions() Options {
	return Options{
		Section:      "SHIM",
		Processes:    1,
		SymRequests:  512,
		AsymRequests: 64,
		DcRequests:   512,
		Polled:       true,
		CoreAffinity: []int{0},
	}
}

// statistics must all be there: the user-space library does not start without
// one of them (lac_sal/sal_statistics.c, "Failed to get %s from configuration
// file").
var statistics = []string{
	"statsGeneral", "statsDh", "statsDrbg", "statsDsa", "statsEcc", "statsKeyGen",
	"statsDc", "statsLn", "statsPrime", "statsRsa", "statsSym",
}

// ForVF makes the configuration of one VF of the family whose PF has the
// services. What it returns has passed Check.
func ForVF(f *qat.Family, s qat.Services, o Options) (*File, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("configure %s: %w", f.Conf, err)
	}
	enabled := []string{"cy", "dc"} // what the in-tree PF drivers before Gen4 are fixed to: ADF_GEN2_DEFAULT_RING_TO_SRV_MAP
	if f.Generation >= 4 {
		if s == "" {
			return nil, fmt.Errorf("%s: %w", f.Conf, errNoServices)
		}
		enabled = strings.Split(string(s), ";")
	}
	file := &File{
		General: General{
			ServicesEnabled: enabled,
			ConfigVersion:   configVersion,
			SymRequests:     o.SymRequests,
			AsymRequests:    o.AsymRequests,
			DcRequests:      o.DcRequests,
		},
		// adf_ctl wants [KERNEL] even if it is empty; a VF cannot have instances
		// of both kernel and user space (Programmer's Guide).
		Sections: []Section{{Name: "KERNEL"}, o.section(roomOf(f, enabled))},
	}
	for _, name := range statistics {
		file.General.Other = append(file.General.Other, Key{name, "1"})
	}
	if err := file.Check(f, s); err != nil {
		return nil, err
	}
	return file, nil
}

func (o Options) section(r room) Section {
	s := Section{Name: o.Section, Processes: o.Processes, LimitDevAccess: o.LimitDevAccess}
	cy, dc := share(o.CyInstances, r.cy, o.Processes), share(o.DcInstances, r.dc, o.Processes)
	for i := range cy {
		s.Cy = append(s.Cy, o.instance(o.Section+strconv.Itoa(i), i, cy+dc))
	}
	for i := range dc {
		s.Dc = append(s.Dc, o.instance("Dc"+strconv.Itoa(i), cy+i, cy+dc))
	}
	return s
}

// share is the number of instances that each process gets: at least one, so
// that Check can say what is missing.
func share(want, have, processes int) int {
	switch {
	case have == 0:
		return 0
	case want > 0:
		return want
	}
	return max(1, have/processes)
}

// instance is the i-th of the n instances of a process.
func (o Options) instance(name string, i, n int) Instance {
	inst := Instance{Name: name, Polling: PollingEvent}
	if o.Polled {
		inst.Polling = PollingBusy
	}
	for p := range o.Processes {
		inst.Cores = append(inst.Cores, o.CoreAffinity[(p*n+i)%len(o.CoreAffinity)])
	}
	// The driver goes round the list, so one core stands for any number.
	if c := slices.Compact(slices.Clone(inst.Cores)); len(c) == 1 {
		inst.Cores = c
	}
	return inst
}

// reservedSections mean something else to the driver, or will not pass for a
// section of processes.
var reservedSections = lazyregexp.New(`^(GENERAL|KERNEL|KERNEL_QAT|INLINE|SIOV|DYN|DEFAULT|Accelerator.*)$`)

// sectionName leaves room for the "_DEV<N>_INT_<M>" that the driver appends.
var sectionName = lazyregexp.New(`^[A-Za-z][A-Za-z0-9_-]{0,39}$`)

// Validate checks what can be told without knowing the device. Its errors name
// the key in [conf].
func (o Options) Validate() error {
	if !sectionName.MatchString(o.Section) || reservedSections.MatchString(o.Section) {
		return fmt.Errorf("[conf] section = %q: expected at most 40 letters, digits, - and _ that begin with a letter, and no name of the driver's own", o.Section)
	}
	for _, n := range []struct {
		key             string
		value, min, max int
	}{
		{"processes", o.Processes, 1, maxProcesses},
		{"cy_instances", o.CyInstances, 0, maxInstances},
		{"dc_instances", o.DcInstances, 0, maxInstances},
	} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("[conf] %s = %d: expected %d to %d", n.key, n.value, n.min, n.max)
		}
	}
	for _, n := range []struct {
		key   string
		value int
	}{
		{"sym_requests", o.SymRequests}, {"asym_requests", o.AsymRequests}, {"dc_requests", o.DcRequests},
	} {
		if !validRequests(n.value) {
			return fmt.Errorf("[conf] %s = %d: expected a power of two from %d to %d", n.key, n.value, minRequests, maxRequests)
		}
	}
	if len(o.CoreAffinity) == 0 || len(o.CoreAffinity) > maxCores {
		return fmt.Errorf("[conf] core_affinity has %d entries: expected 1 to %d", len(o.CoreAffinity), maxCores)
	}
	for _, c := range o.CoreAffinity {
		if c < 0 || c > maxCore {
			return fmt.Errorf("[conf] core_affinity has %d: expected CPU numbers from 0 to %d", c, maxCore)
		}
	}
	return nil
}

func validRequests(n int) bool {
	return n >= minRequests && n <= maxRequests && n&(n-1) == 0
}
