package node_test

import (
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/internal/vfio/simkernel"
	"github.com/kata-qat/kata-qat/provision/guest"
	"github.com/kata-qat/kata-qat/provision/node"
	"github.com/kata-qat/kata-qat/provision/plan"
)

// all are all steps of all parts, in their order.
func all(parts iter.Seq[node.Part]) (steps []plan.Result, err error) {
	for p := range parts {
		steps = append(steps, p.Outcome.Steps...)
		if p.Err != nil {
			err = p.Err
		}
	}
	return steps, err
}

func statuses(steps []plan.Result) (all []string) {
	for _, s := range steps {
		text := s.Step + " " + string(s.Status)
		if s.After != "" {
			text += " after " + s.After
		}
		all = append(all, text)
	}
	return all
}

// changes is what the steps say that they would change.
func changes(steps []plan.Result) map[string]string {
	all := map[string]string{}
	for _, s := range steps {
		for _, c := range s.Changes {
			all[c.Object] = c.To
		}
	}
	return all
}

func (m *machine) snapshot() map[string]string {
	m.t.Helper()
	all, err := simkernel.Snapshot(m.root)
	if err != nil {
		m.t.Fatal(err)
	}
	delete(all, socket) // containerd's own
	return all
}

func TestABareMachineShowsTheWholePlan(t *testing.T) {
	m := bare(t, qattest.Node{})
	m.o.Config.Profiles = map[string]edits.Profile{"kata-gk": edits.ProfileGuestKernel}
	before := m.snapshot()
	var errs []error
	var steps []plan.Result
	for p := range node.Plan(t.Context(), m.o) {
		steps, errs = append(steps, p.Outcome.Steps...), append(errs, p.Err)
		if !p.Outcome.Pending {
			t.Errorf("%s has nothing to do", p.Name)
		}
	}
	want := []string{
		"preflight missing", "driver-release later after preflight", "kernel-command-line later after preflight", "modules later after preflight",
		"udev-rule later after preflight", "boot-unit later after preflight", "services later after preflight", "virtual-functions later after preflight",
		"guest-guest-kernel missing", "guest-vfio missing",
		"kata missing", "kata-config later after kata", "shim later after kata", "containerd later after kata",
	}
	if diff := cmp.Diff(want, statuses(steps)); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if len(errs) != 3 || slices.ContainsFunc(errs, func(err error) bool { return !plan.OnlyAbsent(err) }) {
		t.Errorf("errors %v: expected only what has to be there first", errs)
	}
	for _, s := range steps {
		if len(s.Changes) == 0 && s.Step != "preflight" && s.Step != "kata" {
			t.Errorf("%s does not say what it would do", s.Step)
		}
	}
	got := changes(steps)
	for object, want := range map[string]string{
		"/etc/default/grub.d/90-kata-qat.cfg":                   "intel_iommu=on iommu=pt",
		"/etc/modules-load.d/kata-qat.conf":                     "vfio-pci\nvfio_iommu_type1\n",
		"/etc/systemd/system/kata-qat-provision.service":        "provision host",
		"sriov_numvfs of each PF":                               "all that it can have",
		"VFs of each PF":                                        "bound to vfio-pci",
		"/var/lib/kata-qat/guest/vfio/current":                  "Linux 6.12.1-test",
		"/var/lib/kata-qat/guest/guest-kernel/current":          "the VFs' own drivers",
		"/etc/kata-qat/kata/kata-qat/config.d/60-kata-qat.toml": "cold_plug_vfio = \"root-port\"",
		"/etc/kata-qat/shim.toml":                               "kata-qat = \"" + kataShim + "\"",
		dropIn:                                                  "required_plugins = [\"kata-qat\"]",
		"/etc/containerd/config.toml":                           "/etc/containerd/conf.d/*.toml",
		"containerd":                                            "restarted",
	} {
		if !strings.Contains(got[object], want) {
			t.Errorf("%s is to be %q, expected %q in it", object, got[object], want)
		}
	}
	if diff := cmp.Diff(before, m.snapshot()); diff != "" {
		t.Errorf("a plan changed something:\n%s", diff)
	}
	if _, err := all(node.Apply(t.Context(), m.o)); err == nil || !strings.Contains(err.Error(), "no QAT physical function") {
		t.Errorf("applied: %v", err)
	}
}

// What is there is looked at, and only the rest is an outline.
func TestAMachineThatLacksOnlyCardsShowsTheRestAsItIs(t *testing.T) {
	m := complete(t)
	if err := os.RemoveAll(filepath.Join(m.root, "sys/bus/pci/devices/0000:6b:00.0")); err != nil {
		t.Fatal(err)
	}
	steps, err := all(node.Plan(t.Context(), m.o))
	if err != nil && !plan.OnlyAbsent(err) {
		t.Error(err)
	}
	got := statuses(steps)
	for _, want := range []string{"preflight missing", "guest-vfio missing", "kata done", "kata-config later after guest-vfio", "shim pending", "containerd pending"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q among %q", want, got)
		}
	}
}

func TestAMachineIsProvisionedAsPlannedAndPutBack(t *testing.T) {
	m := complete(t)
	before := m.snapshot()
	planned, err := all(node.Plan(t.Context(), m.o))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"preflight done", "driver-release done", "kernel-command-line done", "modules pending", "udev-rule pending", "boot-unit pending",
		"services done", "virtual-functions pending", "guest-vfio pending", "kata done", "kata-config pending", "shim pending", "containerd pending",
	}
	if diff := cmp.Diff(want, statuses(planned)); diff != "" {
		t.Errorf("planned (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, m.snapshot()); diff != "" {
		t.Errorf("a plan changed something:\n%s", diff)
	}

	if _, err := all(node.Apply(t.Context(), m.o)); err != nil {
		t.Fatal(err)
	}
	after := m.snapshot()
	for object, to := range changes(planned) {
		// What was planned before the guest was made is what came of it.
		if strings.HasPrefix(object, "/etc/") && !strings.HasSuffix(object, "wants/kata-qat-provision.service") && !strings.HasSuffix(after[object], to) {
			t.Errorf("%s was to be\n%s\nand is\n%s", object, to, after[object])
		}
	}
	if m, err := guest.ReadManifest(filepath.Join(m.root, guest.DefaultOut, "vfio", guest.Current)); err != nil || m.Families[0].Name != "4xxx" {
		t.Errorf("the guest is %+v, %v", m, err)
	}

	for _, again := range []iter.Seq[node.Part]{node.Plan(t.Context(), m.o), node.Apply(t.Context(), m.o)} {
		steps, err := all(again)
		if err != nil || slices.ContainsFunc(steps, func(r plan.Result) bool { return r.Status != plan.Done }) {
			t.Errorf("again: %q, %v", statuses(steps), err)
		}
	}
	if diff := cmp.Diff(after, m.snapshot()); diff != "" {
		t.Errorf("the second run changed something:\n%s", diff)
	}

	if _, err := all(node.Undo(t.Context(), m.o)); err != nil {
		t.Fatal(err)
	}
	left := m.snapshot()
	// Kept for the next run.
	maps.DeleteFunc(left, func(name, _ string) bool { return strings.HasPrefix(name, "/var/lib/kata-qat") })
	if diff := cmp.Diff(before, left); diff != "" {
		t.Errorf("it was not put back:\n%s", diff)
	}
}

// A run ends at what fails, and what comes after it is not touched.
func TestARunEndsWithThePartThatFails(t *testing.T) {
	m := complete(t)
	m.write("/opt/kata/share/kata-containers/kata-containers-initrd.img", "no initrd")
	var parts []string
	for p := range node.Apply(t.Context(), m.o) {
		parts = append(parts, p.Name)
	}
	if diff := cmp.Diff([]string{"host", "guest"}, parts); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(m.root, "etc/kata-qat/kata")); err == nil {
		t.Error("Kata is configured for a guest that is not there")
	}
}
