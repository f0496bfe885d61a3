package topology

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/inventory"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

var update = flag.Bool("update", false, "write testdata anew, and the pictures to look at below it")

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// report is what is known of a machine.
func report(t *testing.T, tree qattest.Tree, holders inventory.Holders) *inventory.Report {
	t.Helper()
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	return inventory.New(inv, vfio.Load(tree.Root, inv, vfio.Options{}), holders)
}

func pod(name, container string) inventory.Holder {
	return inventory.Holder{ID: "a99a", Namespace: "default", Pod: name, Container: container}
}

// single has one PF with 16 VFs, of which a pod has two.
func single(t *testing.T) *Topology {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{
		{Address: "0000:6b:00.0", Family: "4xxx", Services: "sym;asym", State: qat.StateUp, Group: 1, VFs: 16, VFDriver: "vfio-pci", FirstGroup: 100},
	}})
	tree.RequireNodes(t)
	tls := []inventory.Holder{pod("ingress", "tls")}
	return New(report(t, tree, inventory.Holders{"0000:6b:00.1": tls, "0000:6b:00.2": tls}), nil, "node-1", noon)
}

// large has four PFs on two sockets: one is dead, and one has all its VFs in one
// IOMMU group.
func large(t *testing.T) *Topology {
	pf := func(address qat.Address, numa int, services string, group int) qattest.PF {
		return qattest.PF{Address: address, Family: "4xxx", NUMA: numa, Services: services, State: qat.StateUp, Group: group, VFs: 16, VFDriver: "vfio-pci", FirstGroup: 100 * group}
	}
	machine := qattest.Node{PFs: []qattest.PF{
		pf("0000:6b:00.0", 0, "sym;asym", 1), pf("0000:70:00.0", 0, "dc", 2), pf("0000:e8:00.0", 1, "sym;asym", 3), pf("0000:f3:00.0", 1, "sym", 4),
	}}
	machine.PFs[3].OneGroup = true
	tree := qattest.New(t, machine)
	tree.RequireNodes(t)
	for _, dir := range []string{"node0", "node1"} {
		n := dir[4:]
		write(t, tree.Root, "/sys/devices/system/node/"+dir+"/cpulist", map[string]string{"0": "0-27,56-83", "1": "28-55,84-111"}[n])
	}
	write(t, tree.Root, "/sys/devices/system/cpu/cpu0/topology/physical_package_id", "0")
	write(t, tree.Root, "/sys/devices/system/cpu/cpu28/topology/physical_package_id", "1")
	if err := errors.Join(tree.Kill("0000:70:00.0"), tree.Rebind("0000:6b:01.7", "4xxxvf"), tree.Rebind("0000:6b:02.0", "")); err != nil {
		t.Fatal(err)
	}
	holders := make(inventory.Holders)
	give := func(h inventory.Holder, vfs ...qat.Address) {
		for _, a := range vfs {
			holders[a] = append(holders[a], h)
		}
	}
	give(pod("ingress-7c9f", "haproxy"), "0000:6b:00.1", "0000:6b:00.2", "0000:6b:00.3", "0000:e8:00.1")
	give(pod("envoy", "proxy"), "0000:6b:00.4", "0000:6b:00.5")
	give(pod("backup-nightly-with-a-very-long-name-29381", "zip"), "0000:70:00.1", "0000:70:00.2", "0000:70:00.3", "0000:70:00.4")
	for i := range 9 {
		give(pod(fmt.Sprintf("tenant-%d", i), "app"), qat.Address(fmt.Sprintf("0000:e8:01.%d", i%8)))
	}
	return New(report(t, tree, holders), Sockets(tree.Root), "node-2", noon)
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func picture(t *testing.T, top *Topology) string {
	t.Helper()
	var b bytes.Buffer
	if err := top.WriteSVG(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// element is a part of a picture.
type element struct {
	name  string
	attrs map[string]string
	text  string
}

// elements reads a picture, which must be XML.
func elements(t *testing.T, svg string) (all []element) {
	t.Helper()
	dec := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("the picture is no XML: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, attrs: make(map[string]string)}
			for _, a := range token.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			all = append(all, e)
		case xml.CharData:
			if len(all) > 0 {
				all[len(all)-1].text += string(token)
			}
		}
	}
}

func TestThePictureHasEverything(t *testing.T) {
	top := large(t)
	svg := picture(t, top)
	var words strings.Builder
	classes := make(map[string]int)
	for _, e := range elements(t, svg) {
		fmt.Fprintln(&words, e.text)
		if e.name == "rect" {
			classes[e.attrs["class"]]++
		}
	}
	for _, want := range []string{
		"QAT topology of node-2", "4 PFs, 64 VFs: ", "Socket 0 · NUMA node 0", "Socket 1 · NUMA node 1",
		"0000:6b:00.0", "4xxx · sym;asym", "qat.intel.com/cy", "up · healthy", "up · dead", "16 of 16 VFs · driver 4xxx",
		"6b:00.1", "grp 100", "VF 0000:6b:00.1, driver vfio-pci\nIOMMU group 100, /dev/vfio/100\nheld by default/ingress-7c9f",
		"ingress-7c9f", "4 VFs · NUMA nodes 0, 1 · haproxy", "default/backup-nightly-with-a-very-long-name-29…", "PF dead",
		"on 4xxxvf", "no driver", "0000:70:00.1: its PF 0000:70:00.0 does not answer the heartbeat", "(and 15 more VFs)",
	} {
		if !strings.Contains(words.String(), want) {
			t.Errorf("%q is not in the picture", want)
		}
	}
	states, _, _ := top.count()
	for class, want := range map[string]int{
		"panel": 2, "card": 4, "free": states[Free] + 1, "unusable": states[Unusable] + 1, // one in the legend
		"trouble": 4,     // held, of a PF that is dead
		"shared":  2 + 1, // two rows of one group
	} {
		if classes[class] != want {
			t.Errorf("%d of class %s, expected %d", classes[class], class, want)
		}
	}
}

// A wiki shows a picture in a frame in which nothing may run, and somebody's pod
// has a say in the names.
func TestThePictureIsHarmless(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{{Address: "0000:6b:00.0", Family: "4xxx", Services: "dc", Group: 1, VFs: 1, VFDriver: "vfio-pci", FirstGroup: 100}}})
	evil := inventory.Holder{Namespace: "default", Pod: "</text><script>alert(1)</script>", Container: "\x1b[2J&\x00"}
	svg := picture(t, New(report(t, tree, inventory.Holders{"0000:6b:00.1": {evil}}), nil, "<node>", noon))
	for _, e := range elements(t, svg) {
		if e.name == "script" || e.name == "foreignObject" || e.attrs["href"] != "" {
			t.Errorf("element %+v", e)
		}
	}
	if strings.ContainsAny(svg, "\x1b\x00") {
		t.Error("control characters")
	}
}

// Every colour has another in the dark.
func TestThePictureIsReadableInTheDark(t *testing.T) {
	css := style()
	light, dark, ok := strings.Cut(css, "@media (prefers-color-scheme: dark)")
	if !ok {
		t.Fatal("no style for the dark")
	}
	colour := regexp.MustCompile(`(?m)^\s*(\S+) \{ (fill|stroke): #`)
	rules := func(s string) (all []string) {
		for _, m := range colour.FindAllStringSubmatch(s, -1) {
			all = append(all, m[1]+" "+m[2])
		}
		return all
	}
	if l, d := rules(light), rules(dark); !slices.Equal(l, d) || len(l) < 20 {
		t.Errorf("light has %v\ndark has %v", l, d)
	}
	used := regexp.MustCompile(`class="([^"]+)"`)
	for _, m := range used.FindAllStringSubmatch(picture(t, large(t)), -1) {
		for _, class := range strings.Fields(m[1]) {
			if !strings.Contains(light, "."+class+" ") {
				t.Errorf("class %s has no style", class)
			}
		}
	}
}

// Whether words fit their places only an eye can tell.
func TestThePictureIsTheOneThatWasLookedAt(t *testing.T) {
	for name, top := range map[string]*Topology{"single": single(t), "large": large(t)} {
		svg := picture(t, top)
		if *update {
			if err := os.WriteFile(filepath.Join("testdata", name+".svg"), []byte(svg), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(filepath.Join("testdata", name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		if svg != string(want) {
			t.Errorf("testdata/%s.svg is no longer what is drawn: look at the new one (-update), it must be legible", name)
		}
	}
}

func TestDataNamesPodsAndTheirNodes(t *testing.T) {
	top := large(t)
	if len(top.Nodes) != 2 || top.Nodes[1].NUMA != 1 || *top.Nodes[1].Socket != 1 || len(top.Nodes[0].PFs) != 2 {
		t.Fatalf("nodes %+v", top.Nodes)
	}
	i := slices.IndexFunc(top.Pods, func(p Pod) bool { return p.Name == "default/ingress-7c9f" })
	if i < 0 || !slices.Equal(top.Pods[i].NUMANodes, []int{0, 1}) || len(top.Pods[i].VFs) != 4 || !slices.Equal(top.Pods[i].Containers, []string{"haproxy"}) {
		t.Errorf("pods %+v", top.Pods)
	}
	vf := top.Nodes[1].PFs[1].VFs[0]
	if vf.Group == nil || len(vf.Group.Shared) != 15 || vf.State != Free {
		t.Errorf("a VF of a shared group: %+v", vf)
	}
}

func TestWithoutAnswersNothingIsInvented(t *testing.T) {
	tree := qattest.New(t, qattest.Node{Orphans: []qattest.VF{{Address: "0000:00:05.0", Family: "4xxx", Driver: "vfio-pci", NUMA: -1, Group: 5}}})
	top := New(report(t, tree, nil), Sockets(tree.Root), "", noon)
	if top.HoldersKnown || top.Nodes[0].NUMA != -1 || top.Nodes[0].Socket != nil {
		t.Errorf("%+v", top)
	}
	svg := picture(t, top)
	for _, want := range []string{"No NUMA information", "VFs without a PF", "who holds them could not be found out"} {
		if !strings.Contains(svg, want) {
			t.Errorf("%q is not in the picture", want)
		}
	}
	empty := New(&inventory.Report{}, nil, "", noon)
	if svg := picture(t, empty); !strings.Contains(svg, "No QAT device on this machine") {
		t.Error("nothing is said of a machine without devices")
	}
}
