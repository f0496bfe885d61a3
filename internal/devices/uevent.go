package devices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoEvents says that the kernel sends this process no events of devices,
// although it may ask for them.
var ErrNoEvents = errors.New("the kernel sends events of devices only to network namespaces of the machine's own user namespace, and this process is in another (a rootless container?): run it on the host, or in a container with its network (hostNetwork)")

// Events sends on the channel whenever the kernel announces that a PCI or VFIO
// device came, went or changed: nil, or an error when announcements were lost.
// Many at once may be sent as one. The channel is closed when the context ends,
// or if the kernel sends no more. Where there are no announcements to be had the
// error is immediate; see ErrNoEvents.
func Events(ctx context.Context) (<-chan error, error) {
	if err := checkNamespace(); err != nil {
		return nil, err
	}
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

// checkNamespace finds out whether uevents can arrive here at all: a socket for
// them can be had anywhere, but the kernel sends them to the network namespaces
// that belong to the initial user namespace (Linux 4.18, lib/kobject_uevent.c).
func checkNamespace() error {
	net, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil // nothing is known: let it be tried
	}
	defer net.Close()
	fd, err := unix.IoctlRetInt(int(net.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		// EPERM: it belongs to a user namespace around that of this process.
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("user namespace of the network: %w", err)
	}
	const initialUserNamespace = 0xeffffffd // Linux, include/linux/proc_ns.h, PROC_USER_INIT_INO
	if st.Ino != initialUserNamespace {
		return ErrNoEvents
	}
	return nil
}

// settle is how long it must be quiet before a change is looked at: enabling the
// VFs of one PF is some hundred events.
const settle = 200 * time.Millisecond

// Settled passes events on once no more have come for a while: one for all that
// came until then, with the last of their errors. The channel is closed with that
// of the events, or when the context ends.
func Settled(ctx context.Context, events <-chan error) <-chan error {
	out := make(chan error)
	go func() {
		defer close(out)
		quiet := time.NewTimer(settle)
		defer quiet.Stop()
		quiet.Stop()
		var last error
		for {
			select {
			case <-ctx.Done():
				return
			case err, ok := <-events:
				if !ok {
					return
				}
				if err != nil {
					last = err
				}
				quiet.Reset(settle)
			case <-quiet.C:
				select {
				case out <- last:
					last = nil
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}
