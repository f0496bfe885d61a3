// Command provisionbench measures, in a guest of the lab, how long it takes to
// enable the VFs of all QAT devices and bind them to vfio-pci:
//
//	start      kata-qat provision host --help: to start the program
//	floor      a program that only writes sriov_numvfs, to all PFs at once: what
//	           the kernel itself takes
//	provision  kata-qat provision host, all of it
//	step       of that, enabling and binding, as it says itself
//	shell      unbind, override and bind one VF after the other, with a process
//	           for each, as scripts of drivers do
//	first      kata-qat provision host on a machine as it was before: nothing is
//	           loaded or configured
//	again      the same once more, with nothing to do
//
// Rounds are interleaved. All but the last two begin with vfio-pci loaded and no
// VFs.
//
//	provisionbench ROUNDS
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// shellLoop does what init scripts do: PF after PF, VF after VF, and a process
// for every name that it looks up and every node that it gives away.
const shellLoop = `
for f in /sys/bus/pci/devices/*/sriov_totalvfs; do
	pf=$(/bin/dirname $f)
	/bin/cat $f >$pf/sriov_numvfs
	for v in $(/bin/ls -d $pf/virtfn*); do
		vf=$(/bin/basename $(/bin/readlink $v))
		if [ -e $v/driver ]; then
			driver=$(/bin/basename $(/bin/readlink $v/driver))
			/bin/echo $vf >/sys/bus/pci/drivers/$driver/unbind
		fi
		/bin/echo vfio-pci >$v/driver_override
		/bin/echo $vf >/sys/bus/pci/drivers/vfio-pci/bind
		group=$(/bin/basename $(/bin/readlink $v/iommu_group))
		/bin/chown 0:0 /dev/vfio/$group
		/bin/chmod 660 /dev/vfio/$group
	done
done`

func main() {
	if len(os.Args) == 3 && os.Args[1] == "floor" {
		exit(write(os.Args[2]))
		return
	}
	rounds := 3
	if len(os.Args) == 2 {
		rounds, _ = strconv.Atoi(os.Args[1])
	}
	exit(bench(rounds))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "provisionbench:", err)
		os.Exit(1)
	}
}

// write writes sriov_numvfs of all PFs at once: "all" or "0".
func write(what string) error {
	files, err := filepath.Glob("/sys/bus/pci/devices/*/sriov_totalvfs")
	if err != nil {
		return err
	}
	errs := make([]error, len(files))
	var wg sync.WaitGroup
	for i, f := range files {
		wg.Go(func() {
			n := []byte(what)
			if what == "all" {
				if n, errs[i] = os.ReadFile(f); errs[i] != nil {
					return
				}
			}
			errs[i] = os.WriteFile(filepath.Join(filepath.Dir(f), "sriov_numvfs"), n, 0)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

var provision = []string{"kata-qat", "provision", "host"}

func undo() error {
	out, err := exec.Command(provision[0], append(provision[1:], "--undo")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("undo: %w: %s", err, out)
	}
	return nil
}

func bench(rounds int) error {
	self := "/proc/self/exe"
	measured := []struct {
		name   string
		argv   []string
		before func() error
		took   []time.Duration
	}{
		{name: "start", argv: []string{"kata-qat", "provision", "host", "--help"}},
		{name: "floor", argv: []string{self, "floor", "all"}, before: reset},
		{name: "provision", argv: provision, before: reset},
		{name: "shell", argv: []string{"sh", "-eu", "-c", shellLoop}, before: reset},
		{name: "first", argv: provision, before: undo},
		{name: "again", argv: provision},
	}
	var inside []time.Duration
	for range rounds {
		for i := range measured {
			m := &measured[i]
			if m.before != nil {
				if err := m.before(); err != nil {
					return err
				}
			}
			start := time.Now()
			out, err := exec.Command(m.argv[0], m.argv[1:]...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", m.name, err, out)
			}
			m.took = append(m.took, time.Since(start))
			if step := enabling.FindSubmatch(out); step != nil && m.name == "provision" {
				d, err := time.ParseDuration(string(step[1]) + "s")
				if err != nil {
					return err
				}
				inside = append(inside, d)
			}
		}
	}
	for _, m := range measured {
		show(m.name, m.took)
	}
	show("step", inside)
	return nil
}

// enabling is what kata-qat says of the step that enables and binds.
var enabling = regexp.MustCompile(`virtual-functions: changed in ([\d.]+) s`)

func show(name string, took []time.Duration) {
	slices.Sort(took)
	fmt.Printf("bench %s median %.3f best %.3f worst %.3f s\n", name, took[len(took)/2].Seconds(), took[0].Seconds(), took[len(took)-1].Seconds())
}

// reset takes all VFs away again.
func reset() error {
	if err := write("0"); err != nil {
		return err
	}
	files, err := filepath.Glob("/sys/bus/pci/devices/*/sriov_drivers_autoprobe")
	for _, f := range files {
		err = errors.Join(err, os.WriteFile(f, []byte("1"), 0))
	}
	return err
}
