package allocation

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

var background = context.Background()

func TestTheNumbersOfANodeTellWhichVFItIs(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	r := resolver(t, Options{}, table)
	vf := table.ByAddress("0000:6b:00.2").Node
	other := table.ByAddress("0000:6b:00.3").Node
	c := container(pod("web"), "app")
	c.Devices = []SpecDevice{
		{"/dev/vfio/vfio", qattest.ControlMajor, qattest.ControlMinor},
		{"/dev/null", 1, 3},
		{"/dev/innocent", int64(vf.Major), int64(vf.Minor)},
		{other.Path, 1, 5}, // named as a VF's node, and /dev/zero
		{vf.Path, int64(vf.Major), int64(vf.Minor)},
		{"/dev/huge", int64(vf.Major) + 1<<32, int64(vf.Minor)},
		{"/dev/negative", -1, -1},
	}
	a := assign(t, r, pod("web"), c)
	expect(t, a, SourceSpec, "cy=0000:6b:00.2#0")
	if a.ContainerID != c.ID || a.Container != "app" || a.Pod.Name != "web" {
		t.Errorf("it is of %+v", a)
	}
}

func TestAContainerWithoutDevicesHoldsNothing(t *testing.T) {
	r := resolver(t, Options{}, machine(t, crypto("0000:6b:00.0", 1)))
	a := assign(t, r, pod("web"), container(pod("web"), "app"))
	expect(t, a, "", "")
	if all := r.Assignments(); len(all) != 0 {
		t.Errorf("recorded: %v", all)
	}
}

func TestWithoutStandaloneAnAnnotationGetsNothing(t *testing.T) {
	r := resolver(t, Options{}, machine(t, crypto("0000:6b:00.0", 4)))
	p := asking("greedy", "app: cy=2", "bad: ;;;")
	r.Warm(p)
	expect(t, assign(t, r, p, container(p, "app")), "", "")
	if all, err := r.ForPod(background, p); err != nil || all != nil {
		t.Errorf("ForPod: %v, %v", all, err)
	}
	if all := r.Assignments(); len(all) != 0 {
		t.Errorf("recorded: %v", all)
	}
}

func TestAVFIsNeverInTwoPods(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	r := resolver(t, Options{}, table)
	a, b := pod("a"), pod("b")
	first := container(a, "app").with(table, "0000:6b:00.1", "0000:6b:00.2")
	second := container(b, "app").with(table, "0000:6b:00.3", "0000:6b:00.2")
	assign(t, r, a, first)
	denied := func() {
		t.Helper()
		_, err := r.Assign(background, b, second)
		refused(t, err, "pod default/b: container app", "VF 0000:6b:00.2", "held by pod default/a, container app")
	}
	denied()
	if _, ok := r.Lookup(second.ID); ok {
		t.Error("the refused container is recorded")
	}
	// The VF of the refused claim that was free still is.
	c := pod("c")
	assign(t, r, c, container(c, "app").with(table, "0000:6b:00.3"))
	r.ReleasePod(c.ID)

	r.ReleaseContainer(first.ID)
	denied() // the pod lives, and so does its VM
	r.ReleasePod(a.ID)
	expect(t, assign(t, r, b, second), SourceSpec, "cy=0000:6b:00.3#0 cy=0000:6b:00.2#1")
}

func TestVFsOfOneGroupGoToOnePod(t *testing.T) {
	table := machine(t, inOneGroup(crypto("0000:6b:00.0", 2)))
	r := resolver(t, Options{}, table)
	a := assign(t, r, pod("a"), container(pod("a"), "app").with(table, "0000:6b:00.1"))
	expect(t, a, SourceSpec, "cy=0000:6b:00.1#0 cy=0000:6b:00.2#1")

	k := startKubelet(t)
	k.grant("default/b", "app", "qat.intel.com/cy", "0000:6b:00.2")
	rk := resolver(t, Options{KubeletSocket: k.socket}, table)
	k.grant("default/a", "app", "qat.intel.com/cy", "0000:6b:00.1")
	assign(t, rk, pod("a"), container(pod("a"), "app"))
	_, err := rk.Assign(background, pod("b"), container(pod("b"), "app"))
	refused(t, err, "VF 0000:6b:00.2", "shares IOMMU group 107000 with 0000:6b:00.1", "held by pod default/a, container app")
}

func TestContainersOfAPodShareAVF(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4), compression("0000:70:00.0", 2))
	r := resolver(t, Options{}, table)
	p := pod("web")
	expect(t, assign(t, r, p, container(p, "init").with(table, "0000:70:00.1", "0000:6b:00.1")), SourceSpec, "dc=0000:70:00.1#0 cy=0000:6b:00.1#1")
	expect(t, assign(t, r, p, container(p, "app").with(table, "0000:6b:00.1", "0000:6b:00.2")), SourceSpec, "cy=0000:6b:00.1#1 cy=0000:6b:00.2#2")
}

func TestTheIndexCountsVFsOfOneConfigurationName(t *testing.T) {
	c6 := qattest.PF{Address: "0000:1a:00.0", Family: "c62x", VFs: 2, VFDriver: "vfio-pci", FirstGroup: 500}
	table := machine(t, crypto("0000:6b:00.0", 4), c6)
	r := resolver(t, Options{}, table)
	p := pod("web")
	one := container(p, "one").with(table, "0000:6b:00.4", "0000:1a:01.1")
	expect(t, assign(t, r, p, one), SourceSpec, "cy=0000:6b:00.4#0 generic=0000:1a:01.1#0")
	expect(t, assign(t, r, p, container(p, "two").with(table, "0000:1a:01.0", "0000:6b:00.1")), SourceSpec, "generic=0000:1a:01.0#1 cy=0000:6b:00.1#1")

	r.ReleaseContainer(one.ID)
	one.ID = "again"
	expect(t, assign(t, r, p, one), SourceSpec, "cy=0000:6b:00.4#0 generic=0000:1a:01.1#0")
}

func TestAVFThatIsNotReadyIsRefused(t *testing.T) {
	pf := crypto("0000:6b:00.0", 2)
	pf.State = qat.StateDown
	table := machine(t, pf)
	r := resolver(t, Options{}, table)
	_, err := r.Assign(background, pod("web"), container(pod("web"), "app").with(table, "0000:6b:00.1"))
	refused(t, err, "pod default/web: container app: 0000:6b:00.1", "PF 0000:6b:00.0 is down")
	if all := r.Assignments(); len(all) != 0 {
		t.Errorf("recorded: %v", all)
	}
}

func TestAPodCannotHoldMoreThanKataHasPortsFor(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 16), crypto("0000:70:00.0", 16))
	r := resolver(t, Options{}, table)
	p := pod("big")
	var all []qat.Address
	for _, d := range table.Devices() {
		all = append(all, d.VF.Address)
	}
	assign(t, r, p, container(p, "one").with(table, all[:16]...))
	assign(t, r, p, container(p, "same").with(table, all[:16]...))
	_, err := r.Assign(background, p, container(p, "two").with(table, all[15:17]...))
	refused(t, err, "pod default/big: container two", "17 VFs", "at most 16", "pcie_root_port")
}

func TestHoldersSurviveANewTable(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 2))
	r := resolver(t, Options{Standalone: true}, table)
	p := asking("a", "app: cy=1")
	expect(t, assign(t, r, p, container(p, "app")), SourcePool, "cy=0000:6b:00.1#0")

	moved := crypto("0000:6b:00.0", 2)
	moved.FirstGroup = 77
	r.SetTable(machine(t, moved))
	q := asking("b", "app: cy=1")
	expect(t, assign(t, r, q, container(q, "app")), SourcePool, "cy=0000:6b:00.2#0")
	again := assign(t, r, p, container(p, "app"))
	expect(t, again, SourcePool, "cy=0000:6b:00.1#0")
	if g := again.VFs[0].Device.VF.Group.ID; g != 77 {
		t.Errorf("given as of group %d, and that was before", g)
	}

	r.SetTable(machine(t, unbound(crypto("0000:6b:00.0", 2))))
	_, err := r.Assign(background, p, container(p, "app"))
	refused(t, err, "pod default/a: container app", "0000:6b:00.1", "expected vfio-pci")
	r.SetTable(nil)
	_, err = r.Assign(background, p, container(p, "app"))
	refused(t, err, "pod default/a: container app", "VF 0000:6b:00.1", "gone from this node")
}

func TestABootingPodThatIsNeverSeenLosesItsVFs(t *testing.T) {
	r := resolver(t, Options{Standalone: true}, machine(t, crypto("0000:6b:00.0", 1)))
	now := time.Now()
	r.ledger.now = func() time.Time { return now }
	ghost, next := asking("ghost", "app: cy=1"), asking("next", "app: cy=1")
	if _, err := r.ForPod(background, ghost); err != nil {
		t.Fatal(err)
	}
	now = now.Add(bootTime)
	_, err := r.ForPod(background, next)
	refused(t, err, "1 held by default/ghost")
	now = now.Add(time.Second)
	if _, err := r.ForPod(background, next); err != nil {
		t.Errorf("after its time: %v", err)
	}

	// One that was seen keeps them.
	r.Warm(next)
	now = now.Add(2 * bootTime)
	_, err = r.ForPod(background, ghost)
	refused(t, err, "1 held by default/next")
}

func TestAPodThatLivesGetsWhatABootingOneLost(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 2))
	r := resolver(t, standalone, table)
	now := time.Now()
	r.ledger.now = func() time.Time { return now }
	old, ghost := pod("old"), asking("ghost", "app: cy=1")
	assign(t, r, old, container(old, "one").with(table, "0000:6b:00.2"))
	if _, err := r.ForPod(background, ghost); err != nil {
		t.Fatal(err)
	}
	two := container(old, "two").with(table, "0000:6b:00.1")
	_, err := r.Assign(background, old, two)
	refused(t, err, "held by pod default/ghost, container app")
	now = now.Add(bootTime + 1)
	expect(t, assign(t, r, old, two), SourceSpec, "cy=0000:6b:00.1#1")
}

func TestForPodLeavesContainersWhatTheyHave(t *testing.T) {
	r := resolver(t, standalone, machine(t, crypto("0000:6b:00.0", 2)))
	p := asking("p", "app: cy=1")
	c := container(p, "app")
	assign(t, r, p, c)
	all, err := r.ForPod(background, p)
	if err != nil || len(all) != 1 || all[0].ContainerID != c.ID {
		t.Errorf("ForPod: %v, %v", all, err)
	}
	if _, ok := r.Lookup(c.ID); !ok {
		t.Error("the container is forgotten")
	}
}

func TestTheNextSandboxOfAPodTakesOver(t *testing.T) {
	r := resolver(t, Options{Standalone: true}, machine(t, crypto("0000:6b:00.0", 2)))
	first := asking("web", "app: cy=2")
	if _, err := r.ForPod(background, first); err != nil {
		t.Fatal(err)
	}
	// It failed to start, and nobody told.
	second := asking("web", "app: cy=2")
	second.ID = "sandbox-web-2"
	if _, err := r.ForPod(background, second); err != nil {
		t.Fatalf("the second sandbox of the pod: %v", err)
	}
	assign(t, r, second, container(second, "app"))

	// With a container in it, it is no remnant.
	third := asking("web", "app: cy=2")
	third.ID = "sandbox-web-3"
	_, err := r.ForPod(background, third)
	refused(t, err, "2 held by default/web")
}

func TestAssignmentsAreListedForPeople(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	r := resolver(t, Options{Standalone: true}, table)
	b, a := asking("b", "late: cy=1", "app: cy=1"), pod("a")
	assign(t, r, b, container(b, "app"))
	assign(t, r, a, container(a, "z").with(table, "0000:6b:00.7"))
	c := container(a, "k").with(table, "0000:6b:00.6")
	assign(t, r, a, c)
	c.Devices = nil
	assign(t, r, a, c.with(table, "0000:6b:00.5")) // it came back with another VF
	r.ReleaseContainer(c.ID)

	var got []string
	for _, x := range r.Assignments() {
		got = append(got, x.Pod.Name+" "+x.Container+" "+x.ContainerID+" "+string(x.Source)+" "+vfs(x))
	}
	want := []string{
		"a    cy=0000:6b:00.6#1",
		"a k  spec cy=0000:6b:00.5#2",
		"a z sandbox-a/z spec cy=0000:6b:00.7#0",
		"b app sandbox-b/app pool cy=0000:6b:00.1#0",
		"b late  pool cy=0000:6b:00.2#-1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nexpected\n%q", got, want)
	}
}
