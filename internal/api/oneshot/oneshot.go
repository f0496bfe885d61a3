// Package oneshot makes one call to the node daemon's API and nothing else, for
// the shim, which runs at every start of a pod: initialising the ttrpc and
// protobuf runtimes would cost the pod more than the call itself. It speaks the
// same protocol on the wire, and its tests hold it against the generated code.
package oneshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/internal/version"
)

const (
	// SocketName is the socket's name in the daemon's run directory.
	SocketName = "node.sock"
	// Socket is where the daemon serves unless it is configured otherwise.
	Socket = "/run/kata-qat/" + SocketName
	// Revision of the API that this build speaks. It grows with every field
	// that a peer may want to rely on.
	Revision = 1
	// Oldest is the oldest revision of a peer that this build can do with.
	Oldest = 1
)

// Sandbox is a request: the sandbox that is about to be started.
type Sandbox struct {
	ID, Namespace, Name, UID, RuntimeHandler string
	// Annotations of its spec that the daemon may want to know.
	Annotations map[string]string
}

// Edits are an answer: what is to be written into the sandbox's spec.
type Edits struct {
	Devices     []Device
	Annotations map[string]string
}

// Device is a character device node.
type Device struct {
	Path         string
	Major, Minor int64
	Mode         uint32 // permission bits
	UID, GID     uint32
}

// ttrpc's framing and envelopes (ttrpc, PROTOCOL.md and request.proto).
const (
	service        = "kataqat.node.v1.Node"
	method         = "PrepareSandbox"
	headerSize     = 10 // length, stream id, type, flags
	stream         = 1
	messageRequest = 1
	messageAnswer  = 2
	maxMessage     = 4 << 20
)

// The codes of an answer that mean more than its message
// (google.golang.org/grpc/codes).
const (
	codeDeadlineExceeded = 4
	codeUnimplemented    = 12
)

// PrepareSandbox asks the daemon at the socket, and waits no longer than limit
// in all: a daemon that is just being started again is waited for, because the
// pod would have to wait longer for kubelet's next try. The error says what to do.
func PrepareSandbox(socket string, limit time.Duration, s Sandbox) (*Edits, error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(pause) {
		edits, err := ask(socket, limit, deadline, s)
		if away := (*awayError)(nil); !errors.As(err, &away) || time.Until(deadline) <= pause {
			return edits, err
		}
	}
}

// pause is between two attempts to reach a daemon.
const pause = 20 * time.Millisecond

// awayError says that no daemon is there, or no longer. The daemon takes a
// request that it has had already as the same.
type awayError struct{ err error }

func (e *awayError) Error() string { return e.err.Error() }
func (e *awayError) Unwrap() error { return e.err }

func ask(socket string, limit time.Duration, deadline time.Time, s Sandbox) (*Edits, error) {
	c, err := dial(socket, limit, deadline)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.send(envelope(s.encode(), time.Until(deadline))); err != nil {
		return nil, c.explain(err)
	}
	payload, err := c.answer()
	if err != nil {
		return nil, err
	}
	return decodeEdits(payload)
}

// conn is a blocking socket: without a poller there are fewer threads to start.
type conn struct {
	fd       int
	socket   string
	limit    time.Duration
	deadline time.Time
}

func dial(socket string, limit time.Duration, deadline time.Time) (*conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	c := &conn{fd: fd, socket: socket, limit: limit, deadline: deadline}
	err = c.within(unix.SO_SNDTIMEO)
	if err == nil {
		err = retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: socket}) })
	}
	if err != nil {
		c.close()
		away := errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
		err = fmt.Errorf("reach the node daemon at %s: %w: is kata-qat nri-plugin running (systemctl status kata-qat)?", socket, err)
		if away {
			err = &awayError{err}
		}
		return nil, err
	}
	return c, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// within bounds the next operation by what is left of the time.
func (c *conn) within(option int) error {
	left := time.Until(c.deadline)
	if left <= 0 {
		return unix.EAGAIN
	}
	tv := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, option, &tv)
}

func (c *conn) send(message []byte) error {
	for len(message) > 0 {
		if err := c.within(unix.SO_SNDTIMEO); err != nil {
			return err
		}
		n, err := unix.SendmsgN(c.fd, message, nil, nil, unix.MSG_NOSIGNAL)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		message = message[max(n, 0):]
	}
	return nil
}

var errClosed = errors.New("closed")

func (c *conn) read(b []byte) error {
	for len(b) > 0 {
		if err := c.within(unix.SO_RCVTIMEO); err != nil {
			return err
		}
		n, err := unix.Read(c.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errClosed
		}
		b = b[n:]
	}
	return nil
}

// answer reads the one message that we wait for and returns its payload.
func (c *conn) answer() ([]byte, error) {
	header := make([]byte, headerSize)
	if err := c.read(header); err != nil {
		return nil, c.explain(err)
	}
	size := binary.BigEndian.Uint32(header)
	if size > maxMessage || header[8] != messageAnswer {
		return nil, fmt.Errorf("what serves at %s is no node daemon: stop it, or correct socket in shim.toml", c.socket)
	}
	body := make([]byte, size)
	if err := c.read(body); err != nil {
		return nil, c.explain(err)
	}
	code, message, payload, err := decodeAnswer(body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the answer of the node daemon at %s: %w", c.socket, err)
	case code == codeDeadlineExceeded:
		return nil, c.explain(unix.EAGAIN)
	case code == codeUnimplemented:
		return nil, fmt.Errorf("the node daemon at %s does not know this call: it is of another version than this program (%s); install the same version of both", c.socket, version.Version)
	case code != 0:
		return nil, errors.New(message) // the daemon's words say enough
	}
	return payload, nil
}

// explain says what an error of the connection means.
func (c *conn) explain(err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("the node daemon at %s did not answer within %s: see its log (journalctl -u kata-qat)", c.socket, c.limit)
	case errors.Is(err, errClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET):
		return &awayError{fmt.Errorf("the node daemon at %s closed the connection: it serves root only, and may be restarting; see its log (journalctl -u kata-qat)", c.socket)}
	}
	return fmt.Errorf("talk to the node daemon at %s: %w", c.socket, err)
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
