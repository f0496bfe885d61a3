package inventory

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Write writes the report: a table of VFs for each PF, or all of it as data.
func Write(w io.Writer, f output.Format, r *Report, colours output.Colours) error {
	if f != output.Table {
		return output.Data(w, f, r)
	}
	out := bufio.NewWriter(w)
	if len(r.PFs) == 0 && len(r.Orphans) == 0 {
		fmt.Fprintln(out, "no QAT device on this machine")
	}
	for i, pf := range r.PFs {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintln(out, colours.Bold(output.Text(pf.title())))
		if err := writeVFs(out, pf.VFs, colours); err != nil {
			return err
		}
	}
	if len(r.Orphans) > 0 {
		if len(r.PFs) > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintln(out, colours.Bold("VFs whose PF is not on this machine"))
		if err := writeVFs(out, r.Orphans, colours); err != nil {
			return err
		}
	}
	if len(r.Problems) > 0 {
		fmt.Fprintf(out, "\n%s\n", colours.Bold("Problems"))
		for _, p := range r.Problems {
			fmt.Fprintln(out, colours.Red(output.Text("  ! "+p.Error())))
		}
	}
	return out.Flush()
}

func (pf *PF) title() string {
	parts := []string{"PF " + string(pf.Address), pf.Family.Name, "driver " + cmp.Or(pf.Driver, "none")}
	if pf.NUMANode >= 0 {
		parts = append(parts, "NUMA node "+strconv.Itoa(pf.NUMANode))
	}
	if pf.Services != "" {
		parts = append(parts, "services "+string(pf.Services))
	}
	parts = append(parts, qat.ResourceDomain+"/"+pf.Services.ResourceName())
	if pf.State != "" {
		parts = append(parts, "state "+pf.State)
	}
	parts = append(parts, "health "+string(pf.Health), fmt.Sprintf("%d of %d VFs", pf.NumVFs, pf.TotalVFs))
	return strings.Join(parts, ", ")
}

func writeVFs(w io.Writer, vfs []VF, colours output.Colours) error {
	if len(vfs) == 0 {
		return nil
	}
	rows := make([][]string, len(vfs))
	for i, vf := range vfs {
		rows[i] = vf.row()
	}
	if err := output.Rows(w, []string{"  VF", "DRIVER", "GROUP", "NODE", "READY", "HELD BY"}, rows); err != nil {
		return err
	}
	for _, note := range notes(vfs) {
		fmt.Fprintln(w, colours.Red(output.Text("  ! "+note)))
	}
	return nil
}

func (vf *VF) row() []string {
	group, node, ready := "", "", "no"
	if vf.Group != nil {
		group = strconv.Itoa(vf.Group.ID)
	}
	if vf.Node != nil && vf.Node.Major != 0 {
		node = vf.Node.Path
	}
	if vf.Ready {
		ready = "yes"
	}
	return []string{"  " + string(vf.Address), vf.Driver, group, node, ready, vf.heldBy()}
}

func (vf *VF) heldBy() string {
	if vf.Holders == nil {
		return "?"
	}
	names := make([]string, len(vf.Holders))
	for i, h := range vf.Holders {
		names[i] = h.String()
	}
	return strings.Join(names, ", ")
}

func (h Holder) String() string {
	name := h.ID[:min(len(h.ID), 12)]
	if h.Pod != "" {
		name = h.Namespace + "/" + h.Pod
		if h.Container == "" {
			name += " (sandbox)"
		} else {
			name += "/" + h.Container
		}
	}
	if h.Exited {
		name += " (exited)"
	}
	return name
}

// notes are the reasons why VFs are not ready. What is said of several VFs in
// the same words is said once.
func notes(vfs []VF) []string {
	type note struct {
		text string
		more int
	}
	var all []*note
	same := make(map[string]*note)
	for _, vf := range vfs {
		if vf.Problem == "" {
			continue
		}
		words := strings.ReplaceAll(vf.Problem, string(vf.Address), "")
		if n := same[words]; n != nil {
			n.more++
			continue
		}
		n := &note{text: vf.Problem}
		same[words] = n
		all = append(all, n)
	}
	texts := make([]string, len(all))
	for i, n := range all {
		texts[i] = n.text
		if n.more > 0 {
			texts[i] += fmt.Sprintf(" (the same for %d more VFs)", n.more)
		}
	}
	return texts
}
