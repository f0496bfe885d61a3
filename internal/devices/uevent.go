package devices

import (
	"bytes"
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// listenUevents sends on the channel for every kernel event that concerns a
// PCI or VFIO device; an error when events were lost. The kernel sends uevents
// to the network namespaces of the initial user namespace (Linux 4.18,
// lib/kobject_uevent.c).
func listenUevents(ctx context.Context) (<-chan error, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// A burst of a thousand VFs must fit; without the right to it the default stays.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	// Group 1 is the kernel's own; udev repeats events in group 2.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	// As a file in the runtime's poller the read ends when the file is closed.
	sock := os.NewFile(uintptr(fd), "uevents")
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	out := make(chan error, 1)
	go func() {
		defer close(out)
		defer stop()
		defer sock.Close()
		buf := make([]byte, 8<<10)
		for {
			n, err := sock.Read(buf)
			switch {
			case errors.Is(err, unix.ENOBUFS):
			case err != nil:
				return
			case !concerns(buf[:n]):
				continue
			}
			select {
			case out <- err:
			case <-ctx.Done():
				return
			default: // one is waiting already, which says enough
			}
		}
	}()
	return out, nil
}

// concerns tells whether an event is about a device of a kind that matters: a
// uevent is NUL-separated, "action@path" and then KEY=value.
func concerns(event []byte) bool {
	return bytes.Contains(event, []byte("\x00SUBSYSTEM=pci\x00")) || bytes.Contains(event, []byte("\x00SUBSYSTEM=vfio"))
}
