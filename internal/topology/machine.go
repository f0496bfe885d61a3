package topology

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Sockets tells which socket each NUMA node of a machine is in, as far as sysfs
// says: several nodes are in one when the firmware splits sockets (sub-NUMA
// clustering), and a node without a CPU is in none.
func Sockets(root string) map[int]int {
	sockets := make(map[int]int)
	nodes, _ := filepath.Glob(filepath.Join(root, "/sys/devices/system/node/node[0-9]*"))
	for _, dir := range nodes {
		numa, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "node"))
		if err != nil {
			continue
		}
		// "0-27,56-83"
		cpu := strings.FieldsFunc(text(filepath.Join(dir, "cpulist")), func(r rune) bool { return r < '0' || r > '9' })
		if len(cpu) == 0 {
			continue
		}
		id := text(filepath.Join(root, "/sys/devices/system/cpu/cpu"+cpu[0], "topology/physical_package_id"))
		if socket, err := strconv.Atoi(id); err == nil && socket >= 0 {
			sockets[numa] = socket
		}
	}
	return sockets
}

// Host is the machine's name, or "".
func Host(root string) string {
	name := text(filepath.Join(root, "/proc/sys/kernel/hostname"))
	if name == "" {
		name = text(filepath.Join(root, "/etc/hostname"))
	}
	return name
}

func text(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
