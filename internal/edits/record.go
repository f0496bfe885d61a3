package edits

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Annotations that an edited spec carries.
const (
	// DevicesAnnotation says in a sandbox's spec which VFs its VM has:
	// "cy=0000:6b:00.1,cy=0000:6b:00.2".
	DevicesAnnotation = "kata-qat.io/devices"
	// RecordAnnotation holds the Record of a container's injection.
	RecordAnnotation = "kata-qat.io/injected"
)

// Record says exactly what an injection changed in a spec, so that it can be
// shown and taken back without having seen the spec before. What was there
// already is not in it.
type Record struct {
	Profile Profile
	Source  string   // who said that the container holds the VFs
	VFs     string   // "cy=0000:6b:00.1,cy=0000:6b:00.2"
	Devices []string // paths of the nodes that were added
	// Owned are nodes that were there and got another owner or mode; the
	// values are what they had: "0600:0:0".
	Owned  map[string]string
	Mounts []string // destinations
	Env    []string // names
	// Memlock is RLIMIT_MEMLOCK before the injection, nil when it was left
	// alone. An absent limit is recorded as Limit{}.
	Memlock *Limit
}

// Injected tells from the annotations of a spec which VFs were put into it,
// "cy=0000:6b:00.1,cy=0000:6b:00.2"; "" when none were, or when somebody changed
// what was written. A container's record counts, and never what its pod calls
// kata-qat.io/devices.
func Injected(annotations map[string]string) string {
	text, ok := annotations[RecordAnnotation]
	if !ok {
		return annotations[DevicesAnnotation] // of a sandbox
	}
	r, err := ParseRecord(text)
	if err != nil {
		return ""
	}
	return r.VFs
}

// Limit is a resource limit in bytes; both values are 0 where the spec had none.
type Limit struct {
	Soft uint64
	Hard uint64
}

// String renders the record as the annotation's value: fields with a name,
// between spaces. containerd decodes a container's spec three times while it
// creates it, so the record is short and has nothing that JSON would escape.
func (r *Record) String() string {
	b := make([]byte, 0, 256)
	add := func(name string, values ...string) {
		for i, v := range values {
			if i > 0 {
				b = append(b, ',')
			} else {
				if len(b) > 0 {
					b = append(b, ' ')
				}
				b = append(append(b, name...), '=')
			}
			b = append(b, escaped(v)...)
		}
	}
	for _, f := range [...][2]string{{"vfs=", r.VFs}, {" profile=", string(r.Profile)}, {" source=", r.Source}} {
		if f[1] != "" {
			b = append(append(b, f[0]...), f[1]...)
		}
	}
	add("nodes", r.Devices...)
	for _, path := range slices.Sorted(maps.Keys(r.Owned)) {
		add("owned", path, r.Owned[path])
	}
	add("mounts", r.Mounts...)
	add("env", r.Env...)
	if m := r.Memlock; m != nil {
		b = append(b, " memlock="...)
		b = append(strconv.AppendUint(b, m.Soft, 10), ',')
		b = strconv.AppendUint(b, m.Hard, 10)
	}
	return string(b)
}

// escaped makes a value fit into the record. Hardly any is not: a path may be
// whatever a device plugin chose.
func escaped(v string) string {
	for i := range len(v) {
		if c := v[i]; c <= ' ' || c > '~' || strings.IndexByte(`,%"\<>`, c) >= 0 {
			return url.PathEscape(v)
		}
	}
	return v
}

// ParseRecord reads the annotation's value.
func ParseRecord(s string) (*Record, error) {
	r := new(Record)
	for field := range strings.SplitSeq(s, " ") {
		name, list, ok := strings.Cut(field, "=")
		if !ok || list == "" {
			return nil, fmt.Errorf("%q: expected a name and values, as in env=A,B", field)
		}
		values := strings.Split(list, ",")
		for i := range values {
			var err error
			if values[i], err = url.PathUnescape(values[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := r.set(name, list, values); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// set takes in one field. An unknown one is a newer version's, and what it
// tells could not be taken back.
func (r *Record) set(name, list string, values []string) error {
	switch name {
	case "vfs":
		r.VFs = list
	case "profile":
		r.Profile = Profile(list)
	case "source":
		r.Source = list
	case "nodes":
		r.Devices = values
	case "mounts":
		r.Mounts = values
	case "env":
		r.Env = values
	case "owned":
		if len(values) != 2 {
			return fmt.Errorf("owned=%s: expected a node and what it had, as in /dev/vfio/1,0600:0:0", list)
		}
		if r.Owned == nil {
			r.Owned = make(map[string]string)
		}
		r.Owned[values[0]] = values[1]
	case "memlock":
		soft, err := strconv.ParseUint(values[0], 10, 64)
		var hard uint64
		if err == nil && len(values) == 2 {
			hard, err = strconv.ParseUint(values[1], 10, 64)
		}
		if err != nil || len(values) != 2 {
			return fmt.Errorf("memlock=%s: expected the soft and the hard limit in bytes, as in 65536,65536", list)
		}
		r.Memlock = &Limit{Soft: soft, Hard: hard}
	default:
		return fmt.Errorf("field %q is unknown: it may be of a newer version", name)
	}
	return nil
}
