package edits

import "encoding/json"

// Annotations that an edited spec carries.
const (
	// DevicesAnnotation says in a form for people what was injected:
	// "cy=0000:6b:00.1,cy=0000:6b:00.2".
	DevicesAnnotation = "kata-qat.io/devices"
	// RecordAnnotation holds the Record of the injection as JSON.
	RecordAnnotation = "kata-qat.io/injected"
)

// Record says exactly what an injection changed in a spec, so that it can be
// shown and taken back without having seen the spec before. What was there
// already is not in it.
type Record struct {
	Profile Profile  `json:"profile"`
	Source  string   `json:"source"`            // who said that the container holds the VFs
	VFs     []string `json:"vfs"`               // addresses
	Devices []string `json:"devices,omitempty"` // paths of the nodes that were added
	// Owned are nodes that were there and got another owner or mode; the
	// values are what they had: "0600 0:0".
	Owned  map[string]string `json:"owned,omitempty"`
	Mounts []string          `json:"mounts,omitempty"` // destinations
	Env    []string          `json:"env,omitempty"`    // names
	// Memlock is RLIMIT_MEMLOCK before the injection, nil when it was left
	// alone. An absent limit is recorded as Limit{}.
	Memlock *Limit `json:"memlock,omitempty"`
}

// Limit is a resource limit in bytes; both values are 0 where the spec had none.
type Limit struct {
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// String renders the record as the annotation's value.
func (r *Record) String() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic("a record is plain data: " + err.Error())
	}
	return string(b)
}

// ParseRecord reads the annotation's value.
func ParseRecord(s string) (*Record, error) {
	r := new(Record)
	if err := json.Unmarshal([]byte(s), r); err != nil {
		return nil, err
	}
	return r, nil
}
