//go:build bed

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
	"github.com/kata-qat/kata-qat/test/bed"
	"github.com/kata-qat/kata-qat/test/simnode"
)

// Every pod that must be refused says so in one line that names it, and leaves
// every VF free.
func TestRequestsThatAreRefused(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	for name, tc := range map[string]struct {
		request string
		says    []string
	}{
		"not a request":     {"two please", []string{"kata-qat.io/request.main", "two please"}},
		"zero":              {"cy=0", []string{"cy=0"}},
		"negative":          {"cy=-1", []string{"cy=-1"}},
		"a number too big":  {"cy=99999999999999999999", []string{"cy=9999"}},
		"named twice":       {"cy=1,cy=1", []string{"cy"}},
		"unknown resource":  {"rsa=1", []string{"rsa"}},
		"more than 16":      {"cy=9,dc=9", []string{"16"}},
		"a path":            {"../../etc=1", []string{"../../etc"}},
		"a foreign domain":  {"example.com/cy=1", []string{"example.com/cy"}},
		"an escape attempt": {"cy=1\nkata-qat.io/request.other=2", nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := runPod(t, n, asking(tc.request))
			err := refused(t, pod, bed.ContainerSpec{})
			mustContain(t, "error", err, append(tc.says, "default/"+pod.Spec.Name)...)
			remove(t, pod)
			if by := held(t, n); len(by) != 0 {
				t.Errorf("held after a refusal: %v", by)
			}
		})
	}
}

// A device plugin may give what cannot be passed; the pool never does.
func TestDevicesThatAreNotReadyAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*qattest.Node)
		says   []string
	}{
		"a VF that is not on vfio": {
			change: func(m *qattest.Node) { m.PFs[0].VFDriver = "4xxxvf" },
			says:   []string{"0000:6b:00.1", "4xxxvf", "vfio-pci"},
		},
		"a group that is not viable": {
			change: func(m *qattest.Node) {
				m.Others = []qattest.Device{{Address: "0000:6b:1f.0", Vendor: 0x8086, Device: 0x1521, Driver: "igb", Group: 100}}
			},
			says: []string{"0000:6b:00.1", "0000:6b:1f.0", "igb"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			machine := simnode.Machine()
			machine.PFs, machine.PFs[0].VFs = machine.PFs[:1], 1
			tc.change(&machine)
			n := startNode(t, func(o *simnode.Options) { o.Machine = &machine })
			d := startDaemon(t, n)
			pod := runPod(t, n, asking("cy=1"))
			mustContain(t, "from the pool", refused(t, pod, bed.ContainerSpec{}), "cy", "default/"+pod.Spec.Name)
			remove(t, pod)
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}

			k := startKubelet(t, n)
			startDaemon(t, n)
			k.give("default", "given", "main", "qat.intel.com/cy", "0000:6b:00.1")
			pod = runPod(t, n, bed.PodSpec{Name: "given"})
			mustContain(t, "from kubelet", refused(t, pod, bed.ContainerSpec{}), append(tc.says, "default/given")...)
			remove(t, pod)
		})
	}
}

func TestAConfigurationThatAsksTooMuchIsRefused(t *testing.T) {
	n := startNode(t, func(o *simnode.Options) {
		o.Config = map[string]any{"conf": map[string]any{"cy_instances": 3, "processes": 2}}
	})
	startDaemon(t, n)
	pod := runPod(t, n, asking("cy=1"))
	mustContain(t, "error", refused(t, pod, bed.ContainerSpec{}), "0000:6b:00.1", "3 cy instances", "12 ring pairs", "has 4")
	// Compression is not concerned.
	other := runPod(t, n, asking("dc=1"))
	runContainer(t, other, bed.ContainerSpec{})
	remove(t, pod)
	remove(t, other)
}

func TestADeadDeviceIsRefused(t *testing.T) {
	machine := simnode.Machine()
	machine.PFs = machine.PFs[:1]
	n := startNode(t, func(o *simnode.Options) { o.Machine = &machine })
	if err := n.Tree.Kill(qat.Address("0000:6b:00.0")); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, n)
	pod := runPod(t, n, asking("cy=1"))
	mustContain(t, "error", refused(t, pod, bed.ContainerSpec{}), "default/"+pod.Spec.Name)
	remove(t, pod)
}

func TestCommandsRefuseBadInput(t *testing.T) {
	n := startNode(t)
	startDaemon(t, n)
	if err := n.Configure(map[string]any{"standalon": true}); err != nil {
		t.Fatal(err)
	}
	mustContain(t, "unknown key", fails(t, n, "nri-plugin"), "config.toml:", "standalon", "unknown key")
	empty := t.TempDir()
	mustContain(t, "bundle without config.json", fails(t, n, "dump", "--bundle", empty), filepath.Join(empty, "config.json"))
	mustContain(t, "no such container", fails(t, n, "dump", "0123456789ab"), "0123456789ab")
	mustContain(t, "no such pod", fails(t, n, "dump", "default/nobody"), "default/nobody")
	// A kubelet's socket and standalone mode exclude each other.
	if err := n.Configure(nil); err != nil {
		t.Fatal(err)
	}
	socket := kubeletSocket(n)
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustContain(t, "standalone beside a kubelet", fails(t, n, "nri-plugin"), "standalone", socket)
}
