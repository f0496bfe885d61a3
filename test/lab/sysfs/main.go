// Command sysfs writes down what sysfs and the machine's configuration hold, and
// compares:
//
//	sysfs save FILE
//	sysfs compare FIRST SECOND LATER
//
// What differs between the first two, between which nothing was changed, changes
// by itself (counters, clocks) and is left out of the comparison of the second
// with the later one. It prints what differs and exits with 1 if anything does.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// roots are what is written down.
var roots = []string{"/sys/bus/pci", "/sys/devices", "/sys/kernel/iommu_groups", "/sys/class", "/sys/module", "/dev/vfio", "/etc", "/var", "/run"}

// unread are files whose reading has effects, that are the device's memory, or
// that count time; and what is no device's.
var (
	unread = regexp.MustCompile(`/(config|rom|vpd|resource\d+(_wc)?|remove|rescan|sections/.*|notes/.*|power/runtime_(active|suspended)_time)$`)
	passed = regexp.MustCompile(`^/sys/devices/(system|virtual/(workqueue|bdi|tty|mem|block|vc|vtconsole|net)|platform|pnp\d+|LNXSYSTM:00|breakpoint|cpu|msr|software|tracepoint|uprobe|kprobe)(/|$)`)
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sysfs:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "save":
		b, err := json.Marshal(save())
		if err != nil {
			return err
		}
		return os.WriteFile(args[1], b, 0o600)
	case len(args) == 4 && args[0] == "compare":
		return compare(args[1:])
	}
	return fmt.Errorf("usage: sysfs save FILE | sysfs compare FIRST SECOND LATER")
}

// save reads everything; what cannot be read is noted as that.
func save() map[string]string {
	all := make(map[string]string)
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				all[name] = "not there"
			case passed.MatchString(name):
				return fs.SkipDir
			case d.Type()&fs.ModeSymlink != 0:
				target, _ := os.Readlink(name)
				all[name] = "-> " + target
			case d.Type().IsRegular() && !unread.MatchString(name):
				b, err := os.ReadFile(name)
				all[name] = string(bytes.TrimSpace(b))
				if err != nil {
					all[name] = "unreadable"
				}
			default:
				all[name] = d.Type().String()
			}
			return nil
		})
	}
	return all
}

func compare(files []string) error {
	var s [3]map[string]string
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &s[i]); err != nil {
			return err
		}
	}
	first, before, after := s[0], s[1], s[2]
	names := make(map[string]bool)
	for name := range before {
		names[name] = true
	}
	for name := range after {
		names[name] = true
	}
	differ := 0
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if was, now := value(before, name), value(after, name); was != now && value(first, name) == was {
			fmt.Printf("differs: %s was %q, is %q\n", name, was, now)
			differ++
		}
	}
	if differ > 0 {
		return fmt.Errorf("%d of %d differ", differ, len(names))
	}
	fmt.Printf("same: %d files, links and directories\n", len(names))
	return nil
}

func value(s map[string]string, name string) string {
	if v, ok := s[name]; ok {
		return v
	}
	return "not there"
}
