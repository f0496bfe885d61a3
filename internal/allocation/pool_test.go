package allocation

import (
	"fmt"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

var standalone = Options{Standalone: true}

func TestThePoolSpreadsOverPFs(t *testing.T) {
	r := resolver(t, standalone, machine(t, crypto("0000:6b:00.0", 4), crypto("0000:70:00.0", 4), crypto("0000:75:00.0", 4)))
	p := asking("a", "app: cy=4")
	expect(t, assign(t, r, p, container(p, "app")), SourcePool, "cy=0000:6b:00.1#0 cy=0000:70:00.1#1 cy=0000:75:00.1#2 cy=0000:6b:00.2#3")
	q := asking("b", "app: cy=1")
	expect(t, assign(t, r, q, container(q, "app")), SourcePool, "cy=0000:70:00.2#0")
}

func TestThePoolCountsVFsThatOthersHandedOut(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4), crypto("0000:70:00.0", 4))
	r := resolver(t, standalone, table)
	assign(t, r, pod("a"), container(pod("a"), "app").with(table, "0000:6b:00.1"))
	p := asking("b", "app: cy=1")
	expect(t, assign(t, r, p, container(p, "app")), SourcePool, "cy=0000:70:00.1#0")
}

func TestThePoolStaysInOneNUMANode(t *testing.T) {
	for _, c := range []struct {
		name string
		pod  Pod
		want map[string]string
	}{
		{"a pod as a whole", asking("p", "a: cy=2", "b: dc=1"), map[string]string{
			"a": "cy=0000:b0:00.1#0 cy=0000:b0:00.2#1", "b": "dc=0000:c0:00.1#2",
		}},
		{"else a container", asking("p", "a: cy=3", "b: dc=2"), map[string]string{
			"a": "cy=0000:b0:00.1#0 cy=0000:b0:00.2#1 cy=0000:b0:00.3#2", "b": "dc=0000:70:00.1#3 dc=0000:70:00.2#4",
		}},
		{"else a request", asking("p", "a: cy=3,dc=2"), map[string]string{
			"a": "cy=0000:b0:00.1#0 cy=0000:b0:00.2#1 cy=0000:b0:00.3#2 dc=0000:70:00.1#3 dc=0000:70:00.2#4",
		}},
		{"else nothing", asking("p", "a: cy=4"), map[string]string{
			"a": "cy=0000:6b:00.1#0 cy=0000:b0:00.1#1 cy=0000:b0:00.2#2 cy=0000:b0:00.3#3",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := resolver(t, standalone, machine(t,
				onNode(0, crypto("0000:6b:00.0", 1)), onNode(0, compression("0000:70:00.0", 2)),
				onNode(1, crypto("0000:b0:00.0", 3)), onNode(1, compression("0000:c0:00.0", 1))))
			for _, name := range []string{"a", "b"} {
				if want := c.want[name]; want != "" {
					expect(t, assign(t, r, c.pod, container(c.pod, name)), SourcePool, want)
				}
			}
		})
	}
}

func TestThePoolPrefersTheNodeWithTheMostFree(t *testing.T) {
	table := machine(t, onNode(0, crypto("0000:6b:00.0", 2)), onNode(1, crypto("0000:70:00.0", 4)))
	r := resolver(t, standalone, table)
	p := asking("p", "app: cy=1")
	expect(t, assign(t, r, p, container(p, "app")), SourcePool, "cy=0000:70:00.1#0")

	// Unless the pod is on another already.
	q := asking("q", "app: cy=1")
	assign(t, r, q, container(q, "side").with(table, "0000:6b:00.1"))
	expect(t, assign(t, r, q, container(q, "app")), SourcePool, "cy=0000:6b:00.2#1")
}

func TestThePoolLooksAtAPodAsAWhole(t *testing.T) {
	// The first container alone would be better off on node 0.
	r := resolver(t, standalone, machine(t, onNode(0, crypto("0000:6b:00.0", 4)), onNode(1, crypto("0000:70:00.0", 1)), onNode(1, compression("0000:75:00.0", 1))))
	p := asking("p", "a: cy=1", "b: dc=1")
	expect(t, assign(t, r, p, container(p, "a")), SourcePool, "cy=0000:70:00.1#0")
	expect(t, assign(t, r, p, container(p, "b")), SourcePool, "dc=0000:75:00.1#1")
}

func TestAPortAboveAVFIsNoReasonToLeaveIt(t *testing.T) {
	table := load(t, qattest.Node{
		PFs: []qattest.PF{crypto("0000:6b:00.0", 1), crypto("0000:70:00.0", 1)},
		Others: []qattest.Device{
			{Address: "0000:6a:00.0", Vendor: qat.Vendor, Device: 0x347a, Driver: "pcieport", Group: 107000},
			{Address: "0000:6f:00.0", Vendor: qat.Vendor, Device: 0x1572, Driver: "vfio-pci", Group: 112000},
		},
	})
	r := resolver(t, standalone, table)
	p, q := asking("p", "app: cy=1"), asking("q", "app: cy=1")
	expect(t, assign(t, r, p, container(p, "app")), SourcePool, "cy=0000:6b:00.1#0")
	_, err := r.Assign(background, q, container(q, "app"))
	refused(t, err, "1 not usable") // a network card comes with it
}

func TestAllContainersOfAPodAreServedTogether(t *testing.T) {
	r := resolver(t, standalone, machine(t, crypto("0000:6b:00.0", 4)))
	p, q := asking("p", "first: cy=1", "second: cy=2"), asking("q", "app: cy=2")
	r.Warm(p)
	_, err := r.Assign(background, q, container(q, "app"))
	refused(t, err, "pod default/q: container app: annotation kata-qat.io/request.app", "2 more of qat.intel.com/cy", "1 of 4 are free", "3 held by default/p")

	// The index follows the order in which the containers come to the VM.
	expect(t, assign(t, r, p, container(p, "second")), SourcePool, "cy=0000:6b:00.2#0 cy=0000:6b:00.3#1")
	expect(t, assign(t, r, p, container(p, "first")), SourcePool, "cy=0000:6b:00.1#2")
	expect(t, assign(t, r, p, container(p, "third")), "", "")

	again := container(p, "second")
	r.ReleaseContainer(again.ID)
	again.ID = "second-2"
	expect(t, assign(t, r, p, again), SourcePool, "cy=0000:6b:00.2#0 cy=0000:6b:00.3#1")
	r.ReleasePod(p.ID)
	expect(t, assign(t, r, q, container(q, "app")), SourcePool, "cy=0000:6b:00.1#0 cy=0000:6b:00.2#1")
}

func TestTheSandboxGetsWhatItsContainersWillHold(t *testing.T) {
	r := resolver(t, standalone, machine(t, crypto("0000:6b:00.0", 4), compression("0000:70:00.0", 4)))
	p := asking("p", "zip: dc=1", "app: cy=1,dc=1")
	all, err := r.ForPod(background, p)
	if err != nil || len(all) != 2 {
		t.Fatalf("ForPod: %v, %v", all, err)
	}
	expect(t, all[0], SourcePool, "cy=0000:6b:00.1#0 dc=0000:70:00.1#1")
	expect(t, all[1], SourcePool, "dc=0000:70:00.2#2")
	if all[0].ContainerID != "" || all[0].Container != "app" || all[1].Container != "zip" {
		t.Errorf("ForPod: %+v", all)
	}
	r.Warm(p)
	expect(t, assign(t, r, p, container(p, "zip")), SourcePool, "dc=0000:70:00.2#2")
}

func TestThePoolTakesOnlyVFsThatComeAlone(t *testing.T) {
	r := resolver(t, standalone, machine(t, inOneGroup(crypto("0000:6b:00.0", 2)), unbound(crypto("0000:70:00.0", 2)), crypto("0000:75:00.0", 1)))
	p := asking("p", "app: cy=2")
	_, err := r.Assign(background, p, container(p, "app"))
	refused(t, err, "2 more of qat.intel.com/cy", "1 of 5 are free", "4 not usable")
	if all := r.Assignments(); len(all) != 0 {
		t.Errorf("recorded: %v", all)
	}
	q := asking("q", "app: cy=1")
	expect(t, assign(t, r, q, container(q, "app")), SourcePool, "cy=0000:75:00.1#0")
}

func TestBadAnnotationsAreRefusedWithWhatIsExpected(t *testing.T) {
	r := resolver(t, standalone, machine(t, crypto("0000:6b:00.0", 16), compression("0000:70:00.0", 16)))
	for name, c := range map[string]struct {
		pod   Pod
		words []string
	}{
		"malformed":       {asking("p", "app: cy two"), []string{"pod default/p: container app: annotation kata-qat.io/request.app", "expected <resource>=<number>"}},
		"unknown":         {asking("p", "app: sym=1"), []string{"container app", "annotation kata-qat.io/request.app", "qat.intel.com/sym", "expected one of qat.intel.com/cy, qat.intel.com/dc"}},
		"too many":        {asking("p", "app: cy=9", "b: dc=8"), []string{"pod default/p: annotations kata-qat.io/request.*", "17 VFs", "pcie_root_port"}},
		"of another":      {asking("p", "app: cy=1", "other: cy=x"), []string{"container other"}},
		"no container":    {asking("p", ": cy=1"), []string{"pod default/p", `"" is no name of a container`}},
		"a bad container": {asking("p", "a\nb: cy=1"), []string{`"a\nb" is no name of a container`}},
	} {
		t.Run(name, func(t *testing.T) {
			r.Warm(c.pod)
			_, err := r.Assign(background, c.pod, container(c.pod, "app"))
			refused(t, err, c.words...)
			_, err = r.ForPod(background, c.pod)
			refused(t, err, c.words...)
			for _, a := range r.Assignments() {
				t.Errorf("recorded: %v", a)
			}
		})
	}
}

func TestAShortageNamesAFewHolders(t *testing.T) {
	r := resolver(t, standalone, machine(t, crypto("0000:6b:00.0", 5)))
	for i := range 5 {
		p := asking(fmt.Sprint("p", i), "app: cy=1")
		assign(t, r, p, container(p, "app"))
	}
	p := asking("late", "app: cy=1")
	_, err := r.Assign(background, p, container(p, "app"))
	refused(t, err, "0 of 5 are free", "1 held by default/p0, 1 held by default/p1, 1 held by default/p2, others by 2 more pods")
}

func TestThePoolIsDeterministic(t *testing.T) {
	table := machine(t, onNode(0, crypto("0000:6b:00.0", 8)), onNode(1, crypto("0000:70:00.0", 8)), onNode(1, compression("0000:75:00.0", 8)))
	run := func() (all []string) {
		r := resolver(t, standalone, table)
		for i := range 4 {
			p := asking(fmt.Sprint("p", i), "a: cy=2,dc=1", "b: cy=1")
			for _, n := range []string{"b", "a"} {
				all = append(all, vfs(assign(t, r, p, container(p, n))))
			}
			if i == 1 {
				r.ReleasePod("sandbox-p0")
			}
		}
		return all
	}
	first := fmt.Sprint(run())
	for range 10 {
		if again := fmt.Sprint(run()); again != first {
			t.Fatalf("first %s\nthen  %s", first, again)
		}
	}
}

func TestTheSpecComesBeforeTheAnnotation(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	r := resolver(t, standalone, table)
	p := asking("p", "app: cy=2")
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.4")), SourceSpec, "cy=0000:6b:00.4#0")
}

func TestTheDomainCanBeAnother(t *testing.T) {
	r := resolver(t, Options{Standalone: true, Domain: "accel.example.org"}, machine(t, crypto("0000:6b:00.0", 4)))
	p := asking("p", "app: accel.example.org/cy=1")
	if a := assign(t, r, p, container(p, "app")); a.VFs[0].Resource != "accel.example.org/cy" {
		t.Errorf("%+v", a)
	}
	q := asking("q", "app: "+qat.ResourceDomain+"/cy=1")
	_, err := r.Assign(background, q, container(q, "app"))
	refused(t, err, "expected <resource>=<number>")
}
