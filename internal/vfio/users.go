package vfio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// User is a process that has a VF's device node open.
type User struct {
	PID     int
	Command string
	Node    string
}

func (u User) String() string { return fmt.Sprintf("process %d (%s)", u.PID, u.Command) }

// Users finds who has the node of one of these VFs open, by VF: the processes
// that VisibleUsers finds. A node that is open and whose user cannot be seen, as
// from another PID namespace, has a User without a PID: to find out it opens the
// node, which for that moment nobody else can. So it is for VFs that are to be
// changed.
func Users(root string, vfs []*qat.VF) (map[qat.Address]User, error) {
	users, nodes, err := visibleUsers(root, vfs)
	if err != nil {
		return nil, err
	}
	for node, addresses := range nodes {
		if users[addresses[0]].PID == 0 && busy(filepath.Join(root, node)) {
			for _, a := range addresses {
				users[a] = User{Command: "not visible from here", Node: node}
			}
		}
	}
	return users, nil
}

// VisibleUsers finds the processes that have the node of one of these VFs open,
// by VF, and disturbs nobody. The kernel has no such list: this looks at the open
// files of all processes below root's /proc, which takes a while on a busy
// machine.
func VisibleUsers(root string, vfs []*qat.VF) (map[qat.Address]User, error) {
	users, _, err := visibleUsers(root, vfs)
	return users, err
}

// visibleUsers also returns which VFs each node stands for.
func visibleUsers(root string, vfs []*qat.VF) (map[qat.Address]User, map[string][]qat.Address, error) {
	nodes := make(map[string][]qat.Address)
	numbers := make(map[uint64]string)
	for _, vf := range vfs {
		if vf.Group == nil || !isVFIO(vf.Driver) {
			continue
		}
		for _, node := range append(cdevs(root, vf.Address), vf.Group.Node()) {
			nodes[node] = append(nodes[node], vf.Address)
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(root, node), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR {
				numbers[uint64(st.Rdev)] = node
			}
		}
	}
	if len(nodes) == 0 {
		return nil, nil, nil
	}
	users := make(map[qat.Address]User)
	if err := eachOpenFile(root, func(pid int, file, target string) {
		node := target
		if nodes[node] == nil {
			var st unix.Stat_t // a container may have the node by another name
			if unix.Stat(file, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || numbers[uint64(st.Rdev)] == "" {
				return
			}
			node = numbers[uint64(st.Rdev)]
		}
		for _, a := range nodes[node] {
			users[a] = User{PID: pid, Command: command(root, pid), Node: node}
		}
	}); err != nil {
		return nil, nil, fmt.Errorf("find who uses VFs: %w", err)
	}
	return users, nodes, nil
}

// cdevs are the nodes that iommufd's users open instead of the group's
// (Linux 6.6, CONFIG_VFIO_DEVICE_CDEV).
func cdevs(root string, a qat.Address) []string {
	names, err := filepath.Glob(filepath.Join(root, devicesDir, string(a), "vfio-dev", "vfio*"))
	if err != nil {
		return nil
	}
	for i, n := range names {
		names[i] = path.Join(cdevDir, filepath.Base(n))
	}
	return names
}

// busy tells whether somebody has a group open: vfio lets only one do so at a
// time (Linux, drivers/vfio/group.c, vfio_group_fops_open).
func busy(node string) bool {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EBUSY)
}

// eachOpenFile calls f for the open files below /dev of all processes. Processes
// that end meanwhile are passed over.
func eachOpenFile(root string, f func(pid int, file, target string)) error {
	proc := filepath.Join(root, "proc")
	entries, err := os.ReadDir(proc)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// On a daemon's only processor a pod that starts goes first.
		runtime.Gosched()
		dir := filepath.Join(proc, e.Name(), "fd")
		files, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, file := range files {
			name := filepath.Join(dir, file.Name())
			// Only device nodes are looked at closer: to stat a file of a network
			// file system that is gone takes forever.
			if target, err := os.Readlink(name); err == nil && strings.HasPrefix(target, "/dev/") {
				f(pid, name, target)
			}
		}
	}
	return nil
}

func command(root string, pid int) string {
	b, err := os.ReadFile(filepath.Join(root, "proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return "ended"
	}
	return strings.TrimSpace(string(b))
}

// InUse makes one error of what Users found, nil if nobody uses any.
func InUse(users map[qat.Address]User) error {
	if len(users) == 0 {
		return nil
	}
	addresses := make([]qat.Address, 0, len(users))
	for a := range users {
		addresses = append(addresses, a)
	}
	first := slices.MinFunc(addresses, qat.Address.Compare)
	more := ""
	if n := len(addresses) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	u := users[first]
	who := u.String()
	if u.PID == 0 {
		who = "a process that is not visible from here"
	}
	return fmt.Errorf("VF %s is in use: %s has %s open%s: stop it first", first, who, u.Node, more)
}
