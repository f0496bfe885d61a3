package activity

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"strconv"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Write writes a sample: a line for each PF, or all of it as data. With engines
// there is a line for each engine, too.
func Write(w io.Writer, f output.Format, s *Sample, engines bool, colours output.Colours) error {
	if f != output.Table {
		return output.Data(w, f, s)
	}
	out := bufio.NewWriter(w)
	if len(s.PFs) == 0 {
		fmt.Fprintln(out, "no QAT PF on this machine")
		return out.Flush()
	}
	header := []string{"PF", "FAMILY", "STATE", "HEALTH", "REQUESTS", "RESPONSES", "IN FLIGHT"}
	if s.rated() {
		header = append(header, "REQUESTS/S", "RESPONSES/S")
	}
	var rows [][]string
	for i := range s.PFs {
		rows = append(rows, s.PFs[i].row(len(header)))
		if engines {
			for _, e := range s.PFs[i].Engines {
				row := make([]string, len(header))
				row[0], row[4], row[5], row[6] = fmt.Sprintf("  engine %d", e.Index), Count(e.Requests), Count(e.Responses), inFlight(e.Requests, e.Responses)
				rows = append(rows, row)
			}
		}
	}
	if err := output.Rows(out, header, rows); err != nil {
		return err
	}
	for _, p := range s.PFs {
		if p.Health == qat.HealthDead && p.State != qat.StateDown { // what is down has no heartbeat
			fmt.Fprintln(out, colours.Red(output.Text(fmt.Sprintf("  ! %s does not answer its heartbeat: see dmesg, then write down and up to /sys/bus/pci/devices/%[1]s/qat/state, or reset it", p.Address))))
		}
		if p.Problem != "" {
			fmt.Fprintln(out, colours.Red(output.Text(fmt.Sprintf("  ! %s: %s", p.Address, p.Problem))))
		}
	}
	return out.Flush()
}

func (s *Sample) rated() bool {
	for _, p := range s.PFs {
		if p.Rate != nil {
			return true
		}
	}
	return false
}

func (p *PF) row(cells int) []string {
	row := []string{string(p.Address), p.Family.Name, cmp.Or(p.State, "-"), string(p.Health)}
	if p.Problem == "" {
		row = append(row, Count(p.Requests), Count(p.Responses), inFlight(p.Requests, p.Responses))
	}
	if p.Rate != nil {
		row = append(row, perSecond(p.Rate.Requests), perSecond(p.Rate.Responses))
	}
	for len(row) < cells {
		row = append(row, "")
	}
	return row
}

// inFlight are the requests that have no response yet. The two numbers are not
// read at the same moment.
func inFlight(requests, responses uint64) string {
	if responses > requests {
		return "0"
	}
	return Count(requests - responses)
}

func perSecond(v float64) string {
	if v > 0 && v < 10 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return Count(uint64(v + 0.5))
}

// Count writes a number as people read it: 18,242.
func Count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
