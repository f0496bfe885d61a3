package vfio_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio"
	"github.com/kata-qat/kata-qat/internal/vfio/simkernel"
)

const vf qat.Address = "0000:6b:00.1"

// machine has a PF whose VFs are bound to driver.
func machine(t *testing.T, family, driver string) (vfio.Binder, *simkernel.Kernel) {
	t.Helper()
	one := pf()
	one.Family, one.VFDriver = family, driver
	one.Address = "0000:6b:00.0"
	k := simkernel.New(qattest.New(t, qattest.Node{PFs: []qattest.PF{one}}))
	return vfio.Binder{Root: k.Tree.Root, Write: k.Write}, k
}

func binding(t *testing.T, b vfio.Binder, a qat.Address) vfio.Binding {
	t.Helper()
	got, err := b.Binding(a)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestADeviceIsBoundWhateverHadItBefore(t *testing.T) {
	for _, before := range []string{"", "4xxxvf", "vfio-pci"} {
		b, k := machine(t, "4xxx", before)
		if err := b.Bind(vf, "vfio-pci"); err != nil {
			t.Fatal(err)
		}
		if got, want := binding(t, b, vf), (vfio.Binding{Driver: "vfio-pci", Override: "vfio-pci"}); got != want {
			t.Errorf("from %q: bound to %+v, want %+v", before, got, want)
		}
		if got := binding(t, b, "0000:6b:00.2"); got.Driver != before || got.Override != "" {
			t.Errorf("from %q: another VF has %+v now", before, got)
		}
		for _, w := range k.Writes() {
			if strings.Contains(w, "new_id") {
				t.Errorf("new_id was written: %s", w)
			}
		}
	}
}

func TestADriverThatDoesNotTakeADeviceIsAskedWhy(t *testing.T) {
	tests := []struct {
		name, family, driver string
		prepare              func(root string) error
		want                 string
	}{
		{
			name: "deny-list", family: "c62x", driver: "vfio-pci",
			prepare: func(root string) error {
				dir := filepath.Join(root, "sys/module/vfio_pci/parameters")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(dir, "disable_denylist"), []byte("N\n"), 0o444)
			},
			want: "bind 0000:6b:01.0 to vfio-pci: invalid argument: vfio-pci refuses devices of its deny-list unless it is loaded with disable_denylist=1: see dmesg",
		},
		{
			name: "no such driver", family: "4xxx", driver: "qat_vfio_pci",
			want: "bind 0000:6b:00.1 to qat_vfio_pci: the driver is not there: expected its module to be loaded",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, k := machine(t, tt.family, "")
			if tt.prepare != nil {
				if err := tt.prepare(k.Tree.Root); err != nil {
					t.Fatal(err)
				}
			}
			first := qattest.VFAddress("0000:6b:00.0", qat.FamilyByName(tt.family), 0)
			if err := b.Bind(first, tt.driver); err == nil || err.Error() != tt.want {
				t.Errorf("error\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestABindingIsRestoredExactly(t *testing.T) {
	for _, was := range []vfio.Binding{{}, {Driver: "4xxxvf"}, {Driver: "vfio-pci", Override: "vfio-pci"}, {Override: "vfio-pci"}} {
		b, k := machine(t, "4xxx", was.Driver)
		if err := k.Tree.Set("0000:6b:00.0", "sriov_drivers_autoprobe", "0"); err != nil {
			t.Fatal(err)
		}
		if was.Override != "" {
			if err := k.Tree.Set(vf, "driver_override", was.Override); err != nil {
				t.Fatal(err)
			}
		}
		before := binding(t, b, vf)
		if before != was {
			t.Fatalf("the machine has %+v, want %+v", before, was)
		}
		if err := b.Bind(vf, "vfio-pci"); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second finds nothing to do
			if err := b.Restore(vf, before); err != nil {
				t.Fatal(err)
			}
			if got := binding(t, b, vf); got != before {
				t.Errorf("restored to %+v, want %+v", got, before)
			}
		}
	}
}

func TestUnbindLeavesADeviceWithoutDriver(t *testing.T) {
	b, _ := machine(t, "4xxx", "4xxxvf")
	for range 2 {
		if err := b.Unbind(vf); err != nil {
			t.Fatal(err)
		}
		if got := binding(t, b, vf); got.Driver != "" {
			t.Errorf("it has %q", got.Driver)
		}
	}
}

func TestABindingOfADeviceThatIsGoneIsAnError(t *testing.T) {
	b, _ := machine(t, "4xxx", "")
	if _, err := b.Binding("0000:6b:1f.0"); err == nil {
		t.Error("a device that is not there has a binding")
	}
}

func TestForeignNamesTheDeviceThatSpoilsAGroup(t *testing.T) {
	ours := func(a string) bool { return a == "vf" }
	tests := []struct {
		name   string
		others []qat.GroupMember
		want   string
	}{
		{"alone", nil, ""},
		{"with a bridge", []qat.GroupMember{{Address: "port", Driver: "pcieport"}}, ""},
		{"with a device that nobody drives", []qat.GroupMember{{Address: "nic"}}, ""},
		{"with a network card", []qat.GroupMember{{Address: "port", Driver: "pcieport"}, {Address: "nic", Driver: "igb"}}, "nic"},
		{"with a device that would be handed out", []qat.GroupMember{{Address: "nic", Driver: "vfio-pci"}}, "nic"},
	}
	for _, tt := range tests {
		g := &qat.Group{Members: append([]qat.GroupMember{{Address: "vf", Driver: "4xxxvf"}}, tt.others...)}
		got := ""
		if m := vfio.Foreign(g, ours); m != nil {
			got = m.Address
		}
		if got != tt.want {
			t.Errorf("%s: %q spoils it, want %q", tt.name, got, tt.want)
		}
	}
}

func TestUsersAreFoundByWhatTheyHaveOpen(t *testing.T) {
	tree := qattest.New(t, qattest.Node{PFs: []qattest.PF{pf()}})
	inv, err := qat.Discover(tree.Root)
	if err != nil {
		t.Fatal(err)
	}
	vfs := slices.Collect(inv.VFs())
	if users, err := vfio.Users(tree.Root, vfs); err != nil || vfio.InUse(users) != nil {
		t.Fatalf("without processes there are users %v, %v", users, err)
	}
	fds := filepath.Join(tree.Root, "proc/4711/fd")
	if err := os.MkdirAll(fds, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree.Root, "proc/4711/comm"), []byte("qemu-system-x86\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	for fd, target := range map[string]string{"1": "/dev/null", "2": "socket:[1]", "3": "/dev/vfio/41"} {
		if err := os.Symlink(target, filepath.Join(fds, fd)); err != nil {
			t.Fatal(err)
		}
	}
	users, err := vfio.Users(tree.Root, vfs)
	if err != nil {
		t.Fatal(err)
	}
	want := map[qat.Address]vfio.User{"0000:6b:00.2": {PID: 4711, Command: "qemu-system-x86", Node: "/dev/vfio/41"}}
	if diff := cmp.Diff(want, users); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
	const text = "VF 0000:6b:00.2 is in use: process 4711 (qemu-system-x86) has /dev/vfio/41 open: stop it first"
	if err := vfio.InUse(users); err == nil || err.Error() != text {
		t.Errorf("error %v, want %s", err, text)
	}
}
