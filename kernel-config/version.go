package kernelconfig

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// Version is a release of Linux as far as its options go: 6.12. The zero Version
// is one that is not known.
type Version struct{ Major, Minor int }

var versionPattern = lazyregexp.New(`^([0-9]{1,3})\.([0-9]{1,3})(?:$|[.+~_-])`)

// ParseVersion reads "6.12" and what a kernel calls itself, "6.12.9-amd64".
func ParseVersion(s string) (Version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("kernel version %q: expected one such as 6.12", s)
	}
	major, _ := strconv.Atoi(m[1]) // the pattern has digits only
	minor, _ := strconv.Atoi(m[2])
	return Version{major, minor}, nil
}

// IsZero tells whether the version is not known.
func (v Version) IsZero() bool { return v == Version{} }

// Compare returns -1, 0 or 1 when v is before, at or after w.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor))
}

func (v Version) String() string {
	if v.IsZero() {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// MarshalText makes the version appear in JSON and YAML as "6.12".
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }
