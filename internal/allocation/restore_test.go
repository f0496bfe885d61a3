package allocation

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

func TestAfterARestartTheSpecsTellWhoHoldsWhat(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	r := resolver(t, standalone, table)
	a, b := asking("a", "app: cy=1", "late: cy=1"), asking("b", "app: cy=2")
	app := container(a, "app").with(table, "0000:6b:00.2")
	if err := r.Restore([]Pod{a, b}, []PodContainer{{a.ID, app}}); err != nil {
		t.Fatal(err)
	}
	got, ok := r.Lookup(app.ID)
	if !ok {
		t.Fatal("the container that lives is unknown")
	}
	expect(t, got, SourceSpec, "cy=0000:6b:00.2#0")
	expect(t, assign(t, r, b, container(b, "app")), SourcePool, "cy=0000:6b:00.1#0 cy=0000:6b:00.3#1")
	expect(t, assign(t, r, a, container(a, "late")), SourcePool, "cy=0000:6b:00.4#1")
	app.Devices, app.ID = nil, "again"
	expect(t, assign(t, r, a, app), SourcePool, "cy=0000:6b:00.2#0")
}

func TestAColdPluggedPodFindsItsVFsInItsSandbox(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 8))
	r := resolver(t, standalone, table)
	p := asking("p", "a: cy=2", "b: cy=1")
	sandbox := Container{ID: p.ID}.with(table, "0000:6b:00.5", "0000:6b:00.7", "0000:6b:00.6")
	if err := r.Restore([]Pod{p}, []PodContainer{{p.ID, sandbox}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.Lookup(sandbox.ID); ok {
		t.Error("the sandbox is listed as a container")
	}
	expect(t, assign(t, r, p, container(p, "a")), SourcePool, "cy=0000:6b:00.5#0 cy=0000:6b:00.7#1")
	expect(t, assign(t, r, p, container(p, "b")), SourcePool, "cy=0000:6b:00.6#2")
}

func TestRestoreFreesWhatPodsThatAreGoneHeld(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 4))
	r := resolver(t, standalone, table)
	gone, lives, boots := asking("gone", "app: cy=1"), asking("lives", "app: cy=1", "late: cy=1"), asking("boots", "app: cy=1")
	assign(t, r, gone, container(gone, "app"))
	app := container(lives, "app")
	expect(t, assign(t, r, lives, app), SourcePool, "cy=0000:6b:00.2#0")
	dead := container(lives, "late")
	expect(t, assign(t, r, lives, dead), SourcePool, "cy=0000:6b:00.3#1")
	if _, err := r.ForPod(background, boots); err != nil {
		t.Fatal(err)
	}
	if err := r.Restore([]Pod{lives}, []PodContainer{{lives.ID, app.with(table, "0000:6b:00.2")}}); err != nil {
		t.Fatal(err)
	}
	got, _ := r.Lookup(app.ID)
	expect(t, got, SourcePool, "cy=0000:6b:00.2#0") // who gave it is remembered
	if _, ok := r.Lookup(dead.ID); ok {
		t.Error("a container that is gone still holds")
	}
	expect(t, assign(t, r, lives, container(lives, "late")), SourcePool, "cy=0000:6b:00.3#1")
	expect(t, assign(t, r, boots, container(boots, "app")), SourcePool, "cy=0000:6b:00.4#0")
	p := asking("next", "app: cy=1")
	expect(t, assign(t, r, p, container(p, "app")), SourcePool, "cy=0000:6b:00.1#0")
}

func TestASpecIsTruerThanWhatWasSetAside(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 3))
	r := resolver(t, standalone, table)
	a, b := asking("a", "app: cy=1"), pod("b")
	r.Warm(a) // sets 0000:6b:00.1 aside
	other := container(b, "app").with(table, "0000:6b:00.1")
	if err := r.Restore([]Pod{a, b}, []PodContainer{{b.ID, other}}); err != nil {
		t.Fatal(err)
	}
	got, _ := r.Lookup(other.ID)
	expect(t, got, SourceSpec, "cy=0000:6b:00.1#0")
	expect(t, assign(t, r, a, container(a, "app")), SourcePool, "cy=0000:6b:00.2#0")
}

func TestRestoreNamesWhatCannotBe(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 3))
	r := resolver(t, Options{}, table)
	a, b := pod("a"), pod("b")
	err := r.Restore([]Pod{a, b}, []PodContainer{
		{a.ID, container(a, "app").with(table, "0000:6b:00.1")},
		{b.ID, container(b, "app").with(table, "0000:6b:00.1", "0000:6b:00.2")},
	})
	refused(t, err, "pod default/b: container app", "VF 0000:6b:00.1", "also in the spec of pod default/a")
	got, _ := r.Lookup(container(b, "app").ID)
	expect(t, got, SourceSpec, "cy=0000:6b:00.2#0")
	refused(t, r.Restore([]Pod{a}, []PodContainer{{"unknown", container(a, "app").with(table, "0000:6b:00.1")}}), "container app", "1 QAT VFs", "its sandbox unknown is gone")
}

func TestAPodThatHasTooMuchAlreadyKeepsIt(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 16), crypto("0000:70:00.0", 4))
	r := resolver(t, standalone, table)
	var all []qat.Address
	for _, d := range table.Devices() {
		all = append(all, d.VF.Address)
	}
	p := asking("p", "more: cy=1")
	big := container(p, "big").with(table, all[:17]...)
	if err := r.Restore([]Pod{p}, []PodContainer{{p.ID, big}}); err != nil {
		t.Fatal(err)
	}
	big.ID = "again"
	if a := assign(t, r, p, big); len(a.VFs) != 17 {
		t.Errorf("it holds %d", len(a.VFs))
	}
	_, err := r.ForPod(background, p)
	refused(t, err, "pod default/p", "18 VFs", "pcie_root_port")
}

// world is what the pods of a node really have, as the hypervisors would know.
type world struct {
	t      *testing.T
	r      *Resolver
	table  *vfio.Table
	owners map[qat.Address]*atomic.Pointer[string]
}

// grab has a VM take what an assignment says, and fails where another has it.
func (w *world) grab(p Pod, a Assignment) {
	for _, v := range a.VFs {
		o := w.owners[v.Device.VF.Address]
		if !o.CompareAndSwap(nil, &p.ID) {
			if id := o.Load(); id != nil && *id != p.ID {
				w.t.Errorf("VF %s is in pod %s and given to %s", v.Device.VF.Address, *id, p.ID)
			}
		}
	}
}

func (w *world) let(p Pod) {
	for _, o := range w.owners {
		if id := o.Load(); id != nil && *id == p.ID {
			o.Store(nil)
		}
	}
}

func TestUnderLoadNoVFIsInTwoPods(t *testing.T) {
	table := machine(t, onNode(0, crypto("0000:6b:00.0", 8)), onNode(1, crypto("0000:70:00.0", 8)), onNode(1, compression("0000:75:00.0", 8)))
	w := &world{t: t, r: resolver(t, standalone, table), table: table, owners: make(map[qat.Address]*atomic.Pointer[string])}
	for _, d := range table.Devices() {
		w.owners[d.VF.Address] = new(atomic.Pointer[string])
	}

	// A restart needs the truth about all pods, so it excludes the requests
	// that change it, as NRI does.
	var quiet sync.RWMutex
	var mu sync.Mutex
	alive := make(map[string]Pod)
	live := make(map[string]PodContainer)
	given := new(atomic.Int64)

	onePod := func(rng *rand.Rand, name string) {
		requests := []string{fmt.Sprintf("a: cy=%d", 1+rng.IntN(4)), "b: dc=1"}
		p := asking(name, requests[:1+rng.IntN(2)]...)
		step := func(f func()) {
			quiet.RLock()
			defer quiet.RUnlock()
			f()
		}
		step(func() {
			if rng.IntN(2) == 0 {
				w.r.ForPod(background, p)
			}
			w.r.Warm(p)
			mu.Lock()
			alive[p.ID] = p
			mu.Unlock()
		})
		for i := range 6 {
			step(func() {
				c := container(p, []string{"a", "b", "c"}[rng.IntN(3)])
				c.ID = fmt.Sprint(c.ID, i)
				if rng.IntN(4) == 0 { // a device plugin gave it some, rightly or not
					c = c.with(table, table.Devices()[rng.IntN(len(table.Devices()))].VF.Address)
				}
				a, err := w.r.Assign(background, p, c)
				if err != nil {
					return
				}
				w.grab(p, a)
				given.Add(int64(len(a.VFs)))
				if rng.IntN(3) == 0 {
					w.r.ReleaseContainer(c.ID)
					return
				}
				c.Devices = nil
				for _, v := range a.VFs {
					c = c.with(table, v.Device.VF.Address)
				}
				mu.Lock()
				live[c.ID] = PodContainer{p.ID, c}
				mu.Unlock()
			})
		}
		step(func() {
			mu.Lock()
			delete(alive, p.ID)
			for id, c := range live {
				if c.PodID == p.ID {
					delete(live, id)
				}
			}
			mu.Unlock()
			w.let(p)
			w.r.ReleasePod(p.ID)
		})
	}
	restart := func() {
		quiet.Lock()
		defer quiet.Unlock()
		var pods []Pod
		var containers []PodContainer
		for _, p := range alive {
			pods = append(pods, p)
		}
		for _, c := range live {
			containers = append(containers, c)
		}
		if err := w.r.Restore(pods, containers); err != nil {
			t.Errorf("Restore: %v", err)
		}
	}

	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for i := range 60 {
				onePod(rng, fmt.Sprintf("p%d-%d", g, i))
				if rng.IntN(4) == 0 {
					restart()
				}
				w.once(w.r.Assignments())
			}
		})
	}
	group.Wait()
	if given.Load() == 0 {
		t.Fatal("nothing was given at all")
	}
	for _, a := range w.r.Assignments() {
		t.Errorf("left over: %v", a)
	}
	if n := len(w.r.ledger.byVF); n != 0 {
		t.Errorf("%d VFs are held by nobody", n)
	}
	p := asking("last", "a: cy=16")
	assign(t, w.r, p, container(p, "a")) // all of them are free again
}

// once checks that a snapshot has each VF in one pod.
func (w *world) once(all []Assignment) {
	holder := make(map[qat.Address]string)
	for _, a := range all {
		for _, v := range a.VFs {
			if o := holder[v.Device.VF.Address]; o != "" && o != a.Pod.ID {
				w.t.Errorf("VF %s is held by %s and %s", v.Device.VF.Address, o, a.Pod.ID)
			}
			holder[v.Device.VF.Address] = a.Pod.ID
		}
	}
}

// A containerd that was started anew tells nobody that an older sandbox ends.
func TestARestoredPodThatEndedUnheardHoldsNothing(t *testing.T) {
	table := machine(t, crypto("0000:6b:00.0", 1))
	stopped := map[string]bool{}
	asked := 0
	r := resolver(t, Options{Stopped: func(id string) bool { asked++; return stopped[id] }}, table)
	old, next := pod("old"), pod("next")
	if err := r.Restore([]Pod{old}, []PodContainer{{old.ID, container(old, "app").with(table, "0000:6b:00.1")}}); err != nil {
		t.Fatal(err)
	}
	wants := container(next, "app").with(table, "0000:6b:00.1")
	if _, err := r.Assign(background, next, wants); err == nil {
		t.Error("a VF of a pod that lives was given to another")
	}
	stopped[old.ID] = true
	expect(t, assign(t, r, next, wants), SourceSpec, "cy=0000:6b:00.1#0")
	if all := r.Assignments(); len(all) != 1 || all[0].Pod.Name != next.Name {
		t.Errorf("assignments: %v", all)
	}

	// Of a pod that began while we listened we hear the end, too.
	stopped[next.ID] = true
	asked = 0
	if _, err := r.Assign(background, pod("third"), container(pod("third"), "app").with(table, "0000:6b:00.1")); err == nil || asked > 0 {
		t.Errorf("error %v, %d questions whether it has stopped", err, asked)
	}
}
