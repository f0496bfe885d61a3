package tomledit

import (
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

var bareKey = lazyregexp.New(`^[A-Za-z0-9_-]+$`)

// Key writes a dotted key.
func Key(path ...string) string {
	parts := make([]string, len(path))
	for i, p := range path {
		if parts[i] = p; !bareKey.MatchString(p) {
			parts[i] = String(p)
		}
	}
	return strings.Join(parts, ".")
}

// String writes a string.
func String(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Strings writes an array of strings on one line.
func Strings(all []string) string {
	parts := make([]string, len(all))
	for i, s := range all {
		parts[i] = String(s)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}
