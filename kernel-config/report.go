package kernelconfig

import (
	"fmt"
	"io"
	"strings"

	"github.com/kata-qat/kata-qat/internal/output"
)

// Checked is what a check found.
type Checked struct {
	Config  string   `json:"config"`  // the file
	Version Version  `json:"version"` // of the kernel
	OK      bool     `json:"ok"`      // nothing that is required is missing
	Symbols []Result `json:"symbols"`
}

// NewChecked checks the configuration c, which was read from a file. A version
// that is not zero takes the place of the one that the configuration claims.
func NewChecked(file string, c *Config, v Version, fragments []Selected) Checked {
	if v.IsZero() {
		v = c.Version
	}
	all := Checked{Config: file, Version: v, Symbols: Check(c, v, fragments)}
	all.OK = all.Err() == nil
	return all
}

// Err names the options because of which the kernel will not do, or is nil.
func (c Checked) Err() error {
	var failed []string
	for _, r := range c.Symbols {
		if r.Failed() {
			failed = append(failed, "CONFIG_"+r.Symbol)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("check kernel config %s: not as it must be: %s", c.Config, strings.Join(failed, ", "))
}

// WriteChecked writes what a check found.
func WriteChecked(w io.Writer, f output.Format, c Checked) error {
	if f != output.Table {
		return output.Data(w, f, c)
	}
	fmt.Fprintf(w, "%s, Linux %s\n\n", output.Text(c.Config), c.Version)
	return writeResults(w, c.Symbols)
}

// WriteMerged writes what became of a merge.
func WriteMerged(w io.Writer, f output.Format, m Merged) error {
	if f != output.Table {
		return output.Data(w, f, m)
	}
	fmt.Fprintf(w, "%s, Linux %s\n\n", output.Text(m.Config), m.Version)
	return writeResults(w, m.Symbols)
}

func writeResults(w io.Writer, results []Result) error {
	rows := make([][]string, len(results))
	for i, r := range results {
		verdict := "ok"
		switch {
		case r.Failed():
			verdict = "FAIL"
		case !r.OK:
			verdict = "not required"
		}
		rows[i] = []string{r.Fragment, r.Symbol, string(r.State), strings.Join(r.Expected, " or "), verdict, r.Note}
	}
	return output.Rows(w, []string{"FRAGMENT", "SYMBOL", "STATE", "EXPECTED", "VERDICT", "NOTE"}, rows)
}

// WriteList writes what fragments there are.
func WriteList(w io.Writer, f output.Format, fragments []Fragment) error {
	if f != output.Table {
		return output.Data(w, f, fragments)
	}
	rows := make([][]string, len(fragments))
	for i, fr := range fragments {
		rows[i] = []string{fr.Name, string(fr.Profile), strings.Join(fr.Families, " "), fmt.Sprint(len(fr.Symbols)), fr.Title}
	}
	return output.Rows(w, []string{"FRAGMENT", "PROFILE", "FAMILIES", "OPTIONS", "FOR"}, rows)
}
