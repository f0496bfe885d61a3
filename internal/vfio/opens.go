package vfio

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// cdevDir has the nodes of single devices, for users of iommufd.
const cdevDir = "/dev/vfio/devices"

// Opened is a node of VFIO that a process has opened or closed.
type Opened struct {
	Node string
	// Lost says that it may have been any node.
	Lost bool
}

const opensMask = unix.IN_OPEN | unix.IN_CLOSE | unix.IN_CREATE | unix.IN_ONLYDIR

// Opens tells, until the context ends, of every open and close of a VFIO node
// below root by the node's own name. A node of the same device that somebody
// made elsewhere, as containers have it, is another file, and is not seen. The
// channel is closed at the end. The error is fs.ErrNotExist as long as there is
// no /dev/vfio.
func Opens(ctx context.Context, root string) (<-chan Opened, error) {
	// fsnotify has no events of opening.
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	dirs := make(map[int32]string)
	for _, dir := range []string{filepath.Dir(ControlNode), cdevDir} {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(root, dir), opensMask)
		if err != nil && (dir != cdevDir || !errors.Is(err, fs.ErrNotExist)) {
			unix.Close(fd)
			return nil, &fs.PathError{Op: "watch", Path: filepath.Join(root, dir), Err: err}
		}
		if err == nil {
			dirs[int32(wd)] = dir
		}
	}
	// As a file in the runtime's poller the read ends when the file is closed.
	events := os.NewFile(uintptr(fd), "inotify")
	stop := context.AfterFunc(ctx, func() { events.Close() })
	out := make(chan Opened)
	go func() {
		defer close(out)
		defer stop()
		defer events.Close()
		buf := make([]byte, 16<<10)
		for {
			n, err := events.Read(buf)
			if err != nil {
				return
			}
			for _, o := range parseOpens(buf[:n], dirs) {
				if o.Node == cdevDir { // it comes with the first device that has such a node
					if wd, err := unix.InotifyAddWatch(fd, filepath.Join(root, cdevDir), opensMask); err == nil {
						dirs[int32(wd)] = cdevDir
					}
					continue
				}
				select {
				case out <- o:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// parseOpens reads inotify's events (Linux, inotify(7)): watch, mask, cookie,
// length of the name, and the name with NULs after it.
func parseOpens(b []byte, dirs map[int32]string) (all []Opened) {
	for len(b) >= unix.SizeofInotifyEvent {
		wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
		end := min(unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:])), len(b))
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:end], "\x00"))
		b = b[end:]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			all = append(all, Opened{Lost: true})
		case name == "" || dirs[wd] == "" || path.Join(dirs[wd], name) == ControlNode:
		case mask&unix.IN_ISDIR != 0 && (mask&unix.IN_CREATE == 0 || path.Join(dirs[wd], name) != cdevDir):
		case mask&unix.IN_ISDIR == 0 && mask&unix.IN_CREATE != 0:
		default:
			all = append(all, Opened{Node: path.Join(dirs[wd], name)})
		}
	}
	return all
}

// ByNode returns the devices that a node of the host stands for: those of an
// IOMMU group, or the one that iommufd's users open. It returns none for a node
// that is no QAT VF's.
func (t *Table) ByNode(root, node string) []*Device {
	if dir, name := path.Split(node); path.Clean(dir) == cdevDir {
		target, err := os.Readlink(filepath.Join(root, "/sys/class/vfio-dev", name, "device"))
		if err != nil {
			return nil
		}
		if d := t.ByAddress(qat.Address(filepath.Base(target))); d != nil {
			return []*Device{d}
		}
		return nil
	}
	var all []*Device
	for _, d := range t.Devices() {
		if d.Node.Path == node {
			all = append(all, d)
		}
	}
	return all
}
