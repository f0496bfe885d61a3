package topology

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
)

// Measures of the picture, in pixels.
const (
	margin   = 24
	pad      = 14
	perRow   = 8 // VFs
	cellW    = 118
	cellH    = 42
	gap      = 6
	labelW   = 192 // of what stands beside the VFs of a PF
	gridW    = perRow*(cellW+gap) - gap
	cardW    = labelW + gridW + 2*pad
	panelW   = cardW + 2*pad
	pageW    = panelW + 2*margin
	cardMinH = 106
	podCols  = 3
	podH     = 40
	troubles = 8 // that are written out
)

// WriteSVG writes the topology as a picture that is readable in light and in dark
// surroundings. It holds no script and refers to nothing.
func (t *Topology) WriteSVG(w io.Writer) error {
	d := &drawing{number: make(map[string]int)}
	for i, p := range t.Pods {
		d.number[p.Name] = i
	}
	y := t.header(d)
	for i := range t.Nodes {
		y = d.node(&t.Nodes[i], y) + 16
	}
	if len(t.Nodes) == 0 {
		d.text(margin, y+16, "", "No QAT device on this machine.")
		y += 32
	}
	y = d.pods(t.Pods, y)
	y = d.troubles(t.troubles(), y)
	height := d.legend(y) + margin

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-labelledby="title summary">`+"\n", pageW, height)
	fmt.Fprintf(&b, "<title id=\"title\">%s</title>\n<desc id=\"summary\">%s</desc>\n<style>%s</style>\n", escape(t.title()), escape(t.summary()), style())
	fmt.Fprintf(&b, `<rect class="page" width="%d" height="%d"/>`+"\n", pageW, height)
	b.Write(d.b.Bytes())
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

func (t *Topology) title() string {
	if t.Host == "" {
		return "QAT topology"
	}
	return "QAT topology of " + t.Host
}

func (t *Topology) summary() string {
	states, pfs, vfs := t.count()
	s := fmt.Sprintf("%s, %s: ", plural(pfs, "PF"), plural(vfs, "VF"))
	if t.HoldersKnown {
		s += fmt.Sprintf("%d held by %s, %d free, %d unusable", states[Held], plural(len(t.Pods), "pod"), states[Free], states[Unusable])
	} else {
		s += fmt.Sprintf("%d usable, %d unusable; who holds them could not be found out", states[Free]+states[Held], states[Unusable])
	}
	return s + " · " + t.Time.Format(time.DateTime) + " UTC"
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// drawing is the picture so far.
type drawing struct {
	b      bytes.Buffer
	number map[string]int // of a pod
}

func (t *Topology) header(d *drawing) (y int) {
	d.text(margin, margin+18, "title", t.title())
	d.text(margin, margin+40, "muted", t.summary())
	return margin + 56
}

// node draws a NUMA node and returns where it ends.
func (d *drawing) node(n *Node, y int) int {
	height := 34 + pad
	for i := range n.PFs {
		height += n.PFs[i].height() + 10
	}
	d.rect(margin, y, panelW, height-10, 10, "panel")
	d.text(margin+pad, y+23, "head", n.title())
	at := y + 34
	for i := range n.PFs {
		d.pf(&n.PFs[i], margin+pad, at)
		at += n.PFs[i].height() + 10
	}
	return y + height - 10
}

func (n *Node) title() string {
	switch {
	case n.NUMA < 0:
		return "No NUMA information"
	case n.Socket == nil:
		return fmt.Sprintf("NUMA node %d", n.NUMA)
	}
	return fmt.Sprintf("Socket %d · NUMA node %d", *n.Socket, n.NUMA)
}

func (pf *PF) rows() int { return (len(pf.VFs) + perRow - 1) / perRow }

func (pf *PF) height() int { return max(cardMinH, pf.rows()*(cellH+gap)-gap+2*pad) }

// pf draws a PF and its VFs.
func (d *drawing) pf(pf *PF, x, y int) {
	d.rect(x, y, cardW, pf.height(), 8, "card")
	left := x + pad
	if pf.Address == "" {
		d.text(left, y+28, "pf", "VFs without a PF")
		d.text(left, y+46, "muted small", "as in a guest")
	} else {
		d.text(left, y+28, "pf mono", string(pf.Address))
		d.text(left, y+46, "", join(pf.Family, string(pf.Services)))
		d.text(left, y+62, "muted small", pf.Resource)
		dot, word := "ok-dot", "small"
		switch {
		case pf.Health == qat.HealthDead || pf.State == qat.StateDown:
			dot, word = "bad-dot", "bad small"
		case pf.Health == qat.HealthUnknown:
			dot = "unknown-dot"
		}
		fmt.Fprintf(&d.b, `<circle class="%s" cx="%d" cy="%d" r="4.5"/>`+"\n", dot, left+5, y+77)
		d.text(left+16, y+81, word, join(pf.State, healthWord(pf.Health)))
		d.text(left, y+97, "muted small", fmt.Sprintf("%d of %s · driver %s", len(pf.VFs), plural(max(pf.TotalVFs, len(pf.VFs)), "VF"), orNone(pf.Driver)))
	}
	for i := range pf.VFs {
		d.vf(pf, &pf.VFs[i], x+pad+labelW+i%perRow*(cellW+gap), y+pad+i/perRow*(cellH+gap))
	}
	d.sharedGroups(pf, x+pad+labelW, y+pad)
}

func healthWord(h qat.Health) string {
	if h == qat.HealthUnknown {
		return "health unknown"
	}
	return string(h)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " · ")
}

// vf draws a VF: its address and group, and who holds it or why nobody can.
func (d *drawing) vf(pf *PF, vf *VF, x, y int) {
	fmt.Fprintf(&d.b, "<g><title>%s</title>\n", escape(vf.describe()))
	switch {
	case len(vf.Pods) > 0:
		number := d.number[vf.Pods[0]]
		d.rect(x, y, cellW, cellH, 5, "p"+strconv.Itoa(number%len(hues)))
		d.badge(x+8, y+24, number)
		name, most := base(vf.Pods[0]), 14
		if more := len(vf.Pods) - 1; more > 0 {
			d.textEnd(x+cellW-8, y+34, "small", fmt.Sprintf("+%d", more))
			most = 10
		}
		d.text(x+28, y+34, "small", cut(name, most))
		if vf.Problem != "" {
			d.rect(x, y, cellW, cellH, 5, "trouble")
		}
	case vf.State == Unusable:
		d.rect(x, y, cellW, cellH, 5, "unusable")
		d.text(x+8, y+34, "bad small", cut(pf.reason(vf), 17))
	default:
		words := "free"
		if vf.Pods == nil {
			words = "holder unknown"
		}
		d.rect(x, y, cellW, cellH, 5, "free")
		d.text(x+8, y+34, "muted small", words)
	}
	address := short(vf.Address)
	d.text(x+8, y+17, "mono", address)
	const most = 8 // characters of an address beside which a group fits
	if vf.Group != nil && len(address) <= most {
		d.textEnd(x+cellW-8, y+17, "muted small", "grp "+strconv.Itoa(vf.Group.ID))
	}
	d.b.WriteString("</g>\n")
}

// reason says in few words why a VF cannot be handed out.
func (pf *PF) reason(vf *VF) string {
	switch {
	case pf.State == qat.StateDown:
		return "PF down"
	case pf.Health == qat.HealthDead:
		return "PF dead"
	case vf.Driver == "":
		return "no driver"
	case !strings.Contains(vf.Driver, "vfio"):
		return "on " + vf.Driver
	case vf.Group == nil:
		return "no IOMMU group"
	case len(vf.Group.Shared) > 0:
		return "group not usable"
	}
	return "unusable"
}

// badge is a pod's number on its colour.
func (d *drawing) badge(x, y, number int) {
	fmt.Fprintf(&d.b, `<rect class="b%d" x="%d" y="%d" width="16" height="13" rx="3"/>`+"\n", number%len(hues), x, y)
	fmt.Fprintf(&d.b, `<text class="num" x="%d" y="%d" text-anchor="middle">%d</text>`+"\n", x+8, y+10, number+1)
}

// sharedGroups draws a line around neighbours that are in one IOMMU group: they
// can only be handed out together.
func (d *drawing) sharedGroups(pf *PF, x, y int) {
	for i := 0; i < len(pf.VFs); {
		end := i + 1
		g := pf.VFs[i].Group
		for end < len(pf.VFs) && end%perRow != 0 && g != nil && pf.VFs[end].Group != nil && pf.VFs[end].Group.ID == g.ID {
			end++
		}
		if g != nil && len(g.Shared) > 0 {
			d.rect(x+i%perRow*(cellW+gap)-3, y+i/perRow*(cellH+gap)-3, (end-i)*(cellW+gap)-gap+6, cellH+6, 7, "shared")
		}
		i = end
	}
}

// short leaves out the PCI domain where there is only the first.
func short(a qat.Address) string { return strings.TrimPrefix(string(a), "0000:") }

// base is a pod's name without its namespace.
func base(pod string) string { return pod[strings.LastIndexByte(pod, '/')+1:] }

func (vf *VF) describe() string {
	lines := []string{"VF " + string(vf.Address) + ", driver " + orNone(vf.Driver)}
	if g := vf.Group; g != nil {
		line := fmt.Sprintf("IOMMU group %d", g.ID)
		if g.Node != "" {
			line += ", " + g.Node
		}
		if len(g.Shared) > 0 {
			line += ", with " + strings.Join(g.Shared, ", ")
		}
		lines = append(lines, line)
	}
	if len(vf.Pods) > 0 {
		lines = append(lines, "held by "+strings.Join(vf.Pods, ", "))
	}
	if vf.Problem != "" {
		lines = append(lines, vf.Problem)
	}
	return strings.Join(lines, "\n")
}

// pods lists the pods.
func (d *drawing) pods(pods []Pod, y int) int {
	if len(pods) == 0 {
		return y
	}
	d.text(margin, y+18, "head", "Pods")
	y += 28
	const width = (panelW - (podCols-1)*10) / podCols
	for i, p := range pods {
		x, at := margin+i%podCols*(width+10), y+i/podCols*(podH+8)
		d.rect(x, at, width, podH, 6, "p"+strconv.Itoa(i%len(hues)))
		d.badge(x+10, at+9, i)
		d.text(x+34, at+19, "", cut(p.Name, 48))
		class, numa := "muted small", ""
		if len(p.NUMANodes) > 1 {
			class, numa = "warn small", "NUMA nodes "+numbers(p.NUMANodes)
		}
		d.text(x+34, at+33, class, cut(join(plural(len(p.VFs), "VF"), numa, strings.Join(p.Containers, ", ")), 56))
	}
	return y + (len(pods)+podCols-1)/podCols*(podH+8) + 8
}

func numbers(ns []int) string {
	s := make([]string, len(ns))
	for i, n := range ns {
		s[i] = strconv.Itoa(n)
	}
	return strings.Join(s, ", ")
}

// troubles writes out what is wrong.
func (d *drawing) troubles(all []string, y int) int {
	if len(all) == 0 {
		return y
	}
	d.text(margin, y+18, "head", "Problems")
	y += 36
	for i, s := range all {
		if i == troubles {
			d.text(margin, y, "muted small", fmt.Sprintf("and %d more: kata-qat doctor", len(all)-troubles))
			y += 17
			break
		}
		d.text(margin, y, "bad small", cut(s, 190))
		y += 17
	}
	return y
}

// legend says what the signs mean.
func (d *drawing) legend(y int) int {
	y += 6
	x := margin
	for _, l := range []struct{ class, words string }{
		{"free", "free"}, {"p0", "held: number and colour are the pod's"}, {"unusable", "cannot be handed out"}, {"shared", "IOMMU group shared with other devices"},
	} {
		d.rect(x, y, 22, 14, 4, l.class)
		d.text(x+30, y+11, "muted small", l.words)
		x += 54 + len(l.words)*6
	}
	return y + 14
}

func (d *drawing) rect(x, y, w, h, r int, class string) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="%d"/>`+"\n", class, x, y, w, h, r)
}

func (d *drawing) text(x, y int, class, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" x="%d" y="%d">%s</text>`+"\n", class, x, y, escape(s))
}

func (d *drawing) textEnd(x, y int, class, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" x="%d" y="%d" text-anchor="end">%s</text>`+"\n", class, x, y, escape(s))
}

// escape makes a text safe inside of XML. Line breaks stay, for tooltips.
func escape(s string) string {
	lines := strings.Split(s, "\n")
	var b bytes.Buffer
	for i, line := range lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		_ = xml.EscapeText(&b, []byte(output.Text(line))) // a buffer takes all
	}
	return b.String()
}

// cut makes s at most n characters long.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
