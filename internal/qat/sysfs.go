package qat

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// dir is an open directory of sysfs. What is read relative to it belongs to one
// device even if that vanishes and its address is used anew meanwhile, and the
// kernel walks the long path of a device once instead of for every file.
type dir int

// noDir stands for a directory that is not there: so is everything in it.
const noDir dir = -1

func openDir(name string) (dir, error) { return dir(unix.AT_FDCWD).open(name) }

func (d dir) open(name string) (dir, error) {
	fd, err := d.openat(name, unix.O_RDONLY|unix.O_DIRECTORY)
	return dir(fd), err
}

func (d dir) openat(name string, flags int) (int, error) {
	if d == noDir {
		return -1, unix.ENOENT
	}
	for {
		fd, err := unix.Openat(int(d), name, flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (d dir) close() {
	if d != noDir {
		unix.Close(int(d))
	}
}

// reader reads small files, links and directories with one buffer. It belongs
// to one goroutine.
type reader struct{ buf [16 << 10]byte }

// text returns the contents of a file without the white space around them, and
// without the NUL that debugfs files of the QAT driver end in
// (Linux, adf_heartbeat_dbgfs.c: simple_read_from_buffer(…, len + 1)).
func (r *reader) text(d dir, name string) (string, error) {
	fd, err := d.openat(name, unix.O_RDONLY)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, r.buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "read", Path: name, Err: err}
		}
		return string(bytes.Trim(r.buf[:n], " \n\x00")), nil
	}
}

// number returns the number in a file, or absent if there is no such file.
func (r *reader) number(d dir, name string, absent int) (int, error) {
	s, err := r.text(d, name)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return absent, err
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return absent, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return n, nil
}

// link returns the last element of a link's target, or "" if there is no such
// link.
func (r *reader) link(d dir, name string) (string, error) {
	if d == noDir {
		return "", nil
	}
	n, err := unix.Readlinkat(int(d), name, r.buf[:])
	if err == unix.ENOENT {
		return "", nil
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	target := r.buf[:n]
	return string(target[bytes.LastIndexByte(target, '/')+1:]), nil
}

// names returns the entries of a directory that was opened for nothing else: it
// reads on from where the last call stopped.
func (r *reader) names(d dir) ([]string, error) {
	var names []string
	for {
		n, err := unix.ReadDirent(int(d), r.buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(r.buf[:n], -1, names)
	}
}

// sysfs are the directories that discovery reads.
type sysfs struct {
	devices dir // of the PCI bus
	groups  dir // of the IOMMU; noDir without one
	debug   dir // debugfs; noDir when not mounted, or not readable for this process
}

func openSysfs(root string) (sysfs, error) {
	devices, err := openDir(path.Join(root, "/sys/bus/pci/devices"))
	if err != nil {
		return sysfs{}, err
	}
	s := sysfs{devices: devices, groups: noDir, debug: noDir}
	if d, err := openDir(path.Join(root, "/sys/kernel/iommu_groups")); err == nil {
		s.groups = d
	}
	if d, err := openDir(path.Join(root, "/sys/kernel/debug")); err == nil {
		s.debug = d
	}
	return s, nil
}

func (s sysfs) close() {
	s.devices.close()
	s.groups.close()
	s.debug.close()
}

// each calls f for 0 to n-1 on all processors, and returns when all are done.
func each(n int, f func(r *reader, i int)) {
	// More than a few wait for each other in the kernel; a small machine is
	// not worth a goroutine.
	const most, enough = 8, 32
	workers := min(runtime.GOMAXPROCS(0), most, n/enough+1)
	var next atomic.Int64
	work := func() {
		r := new(reader)
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(r, i)
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
