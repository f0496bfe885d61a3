package qat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Counters are what the firmware of a PF has counted since the device was
// started, one entry for each acceleration engine. They are those of the whole
// device: no counter tells one VF from another.
type Counters []Engine

// Engine is one acceleration engine.
type Engine struct {
	Index     int    `json:"engine"`
	Requests  uint64 `json:"requests"`
	Responses uint64 `json:"responses"`
}

// Requests is the sum over the engines.
func (c Counters) Requests() (n uint64) {
	for _, e := range c {
		n += e.Requests
	}
	return n
}

// Responses is the sum over the engines.
func (c Counters) Responses() (n uint64) {
	for _, e := range c {
		n += e.Responses
	}
	return n
}

// Why there are no counters.
var (
	ErrNoCounters = errors.New("no fw_counters in debugfs that this process can read: expected root, debugfs on /sys/kernel/debug, and the driver of Linux 6.6 or later, or the vendor's")
	ErrDown       = errors.New("the device is down, expected up")
)

// ParseCounters reads the text of fw_counters: the table of the kernel's own
// driver (Linux 6.6, adf_fw_counters.c), a header and a line for each engine of
// index, requests and responses; or the boxed list of the vendor's driver, with
// a line for each number.
func ParseCounters(text string) (Counters, error) {
	c := Counters{}
	for line := range strings.Lines(text) {
		line = strings.Trim(line, " \t\r\n\x00")
		var err error
		switch {
		case line == "", strings.HasPrefix(line, "AE "), strings.HasPrefix(line, "+-"):
		case strings.HasPrefix(line, "|"):
			c, err = c.boxed(line)
		default:
			c, err = c.row(line)
		}
		if err != nil {
			return nil, fmt.Errorf("firmware counters: line %q: %w", line, err)
		}
	}
	if len(c) == 0 {
		return nil, errors.New("firmware counters: no engine: expected a line for each")
	}
	return c, nil
}

// row adds a line of the kernel's table: " 3:     18242     18242".
func (c Counters) row(line string) (Counters, error) {
	index, rest, ok := strings.Cut(line, ":")
	numbers := strings.Fields(rest)
	if !ok || len(numbers) != 2 {
		return nil, errors.New("expected an engine, its requests and its responses")
	}
	c, e, err := c.engine(index)
	if err != nil {
		return nil, err
	}
	var no, nr error
	e.Requests, no = strconv.ParseUint(numbers[0], 10, 64)
	e.Responses, nr = strconv.ParseUint(numbers[1], 10, 64)
	return c, errors.Join(no, nr)
}

// boxed adds a line of the vendor's list: "| Firmware Requests [AE  3]:  18242 |".
// Lines that tell something else, such as a title or RAS events, are left out.
func (c Counters) boxed(line string) (Counters, error) {
	name, rest, ok := strings.Cut(strings.Trim(line, "| "), "[AE")
	name = strings.TrimSpace(name)
	if !ok || name != "Firmware Requests" && name != "Firmware Responses" {
		return c, nil
	}
	index, value, ok := strings.Cut(rest, "]:")
	if !ok {
		return nil, errors.New("expected an engine and a number")
	}
	c, e, err := c.engine(index)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
	if err != nil {
		return nil, err
	}
	if name == "Firmware Requests" {
		e.Requests = n
	} else {
		e.Responses = n
	}
	return c, nil
}

// engine finds the last engine, or adds one: the lines of an engine stand
// together.
func (c Counters) engine(index string) (Counters, *Engine, error) {
	i, err := strconv.ParseUint(strings.TrimSpace(index), 10, 16)
	if err != nil {
		return nil, nil, fmt.Errorf("%q is no number of an engine", index)
	}
	if len(c) == 0 || c[len(c)-1].Index != int(i) {
		c = append(c, Engine{Index: int(i)})
	}
	return c, &c[len(c)-1], nil
}

// Vitals are what of a PF changes without the kernel announcing it.
type Vitals struct {
	State    string   `json:"state,omitempty"` // as PF.State
	Health   Health   `json:"health"`
	Counters Counters `json:"counters,omitempty"`
	// Err says why there are no counters: ErrNoCounters, ErrDown, or another.
	Err error `json:"-"`
}

// ReadVitals reads them anew. Each reading asks the firmware, which takes it
// some microseconds.
func ReadVitals(root string, pf *PF) Vitals {
	v := Vitals{Health: HealthUnknown}
	var r reader
	if d, err := openDir(filepath.Join(root, "/sys/bus/pci/devices", string(pf.Address))); err == nil {
		v.State, _ = readState(&r, d) // discovery tells what is wrong with it
		d.close()
	}
	debug, err := openDir(filepath.Join(root, "/sys/kernel/debug"))
	if err != nil {
		v.Err = ErrNoCounters
		return v
	}
	defer debug.close()
	v.Health, _ = readHealth(&r, debug, pf)
	v.Counters, v.Err = readCounters(filepath.Join(root, "/sys/kernel/debug", pf.debugDir(), "fw_counters"))
	return v
}

func readCounters(file string) (Counters, error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return nil, ErrNoCounters
	case errors.Is(err, unix.EFAULT): // Linux, adf_fw_counters_get: the device is not started
		return nil, ErrDown
	case err != nil:
		return nil, fmt.Errorf("firmware counters: %w", err)
	}
	return ParseCounters(string(b))
}
