package host

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// kernelModules are the modules that the running kernel has on the disk, by
// name with "_" for every "-".
type kernelModules struct {
	release string
	needs   map[string][]string // the modules that each needs, what needs another before it
	builtin map[string]bool
	aliases string // modules.alias, as it is
	err     error  // nothing is known of them
}

// kernel reads what modules there are.
func (m *machine) kernel() *kernelModules {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kernelModules == nil {
		m.kernelModules = m.readKernelModules()
	}
	return m.kernelModules
}

func (m *machine) readKernelModules() *kernelModules {
	k := &kernelModules{needs: make(map[string][]string), builtin: make(map[string]bool)}
	release, err := os.ReadFile(m.sys("/proc/sys/kernel/osrelease"))
	if err != nil {
		k.err = fmt.Errorf("release of the running kernel: %w", err)
		return k
	}
	k.release = strings.TrimSpace(string(release))
	dir := "/lib/modules/" + k.release
	dep, err := m.read(dir + "/modules.dep")
	if err != nil {
		k.err = fmt.Errorf("modules of Linux %s: %w", k.release, err)
		return k
	}
	for line := range strings.Lines(string(dep)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		var names []string
		for _, n := range strings.Fields(needs) {
			names = append(names, moduleName(n))
		}
		k.needs[moduleName(file)] = names
	}
	builtin, _ := m.read(dir + "/modules.builtin") // not every kernel has one
	for line := range strings.Lines(string(builtin)) {
		k.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	aliases, _ := m.read(dir + "/modules.alias")
	k.aliases = string(aliases)
	return k
}

// moduleName is the name of the module in a file, or of one that is spelt with
// either character.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func (k *kernelModules) has(module string) bool {
	name := moduleName(module)
	_, ok := k.needs[name]
	return ok || k.builtin[name]
}

// closure is a module and all that it needs; what needs another comes first, so
// that they can be unloaded in this order.
func (k *kernelModules) closure(module string) []string {
	name := moduleName(module)
	return append([]string{name}, k.needs[name]...)
}

// variant tells whether a vfio driver of this name is made for a device: its
// module has an alias for vfio's users then (Linux,
// PCI_DRIVER_OVERRIDE_DEVICE_VFIO).
func (k *kernelModules) variant(driver string, device uint16) bool {
	prefix := fmt.Sprintf("alias vfio_pci:v%08Xd%08X", 0x8086, device)
	for line := range strings.Lines(k.aliases) {
		if fields := strings.Fields(line); strings.HasPrefix(line, prefix) && len(fields) == 3 && fields[2] == driver {
			return true
		}
	}
	return false
}

// loaded tells whether the running kernel has a module, loaded or built in. One
// that udev is loading at this moment is there, but its devices may not be bound
// (initstate is "coming"): it is not loaded, and modprobe waits for it.
func (m *machine) loaded(module string) bool {
	name := moduleName(module)
	if _, err := os.Stat(m.sys("/sys/module/" + name)); err != nil {
		return m.kernel().builtin[name]
	}
	state, err := m.text("/sys/module/" + name + "/initstate")
	return err == nil && (state == "live" || state == "")
}
