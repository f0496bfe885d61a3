package oneshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/kata-qat/kata-qat/internal/version"
)

// The field numbers are those of internal/api/v1/node.proto and of ttrpc's
// request.proto.

// message is a protobuf message that is being written. A field that is empty is
// left out, as proto3 wants.
type message []byte

const (
	wireVarint = 0
	wireBytes  = 2
)

func (m *message) number(field int, v uint64) {
	if v != 0 {
		*m = binary.AppendUvarint(*m, uint64(field)<<3|wireVarint)
		*m = binary.AppendUvarint(*m, v)
	}
}

func (m *message) text(field int, s string) {
	if s != "" {
		m.bytes(field, []byte(s))
	}
}

func (m *message) bytes(field int, b []byte) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3|wireBytes)
	*m = binary.AppendUvarint(*m, uint64(len(b)))
	*m = append(*m, b...)
}

// encode makes a PrepareSandboxRequest.
func (s Sandbox) encode() []byte {
	var client, m message
	client.number(1, Revision)
	client.text(2, version.Version)
	m.bytes(1, client)
	for i, text := range []string{s.ID, s.Namespace, s.Name, s.UID, s.RuntimeHandler} {
		m.text(2+i, text)
	}
	for k, v := range s.Annotations {
		var entry message
		entry.text(1, k)
		entry.text(2, v)
		m.bytes(7, entry)
	}
	return m
}

// envelope makes a ttrpc request with its header.
func envelope(payload []byte, limit time.Duration) []byte {
	m := make(message, headerSize, headerSize+len(payload)+128)
	m.text(1, service)
	m.text(2, method)
	m.bytes(3, payload)
	m.number(4, uint64(limit.Nanoseconds()))
	binary.BigEndian.PutUint32(m[0:], uint32(len(m)-headerSize))
	binary.BigEndian.PutUint32(m[4:], stream)
	m[8] = messageRequest
	return m
}

var errMalformed = errors.New("malformed message")

// fields calls f with every field of a message: a number has nil bytes, bytes
// are never nil. Wire types that none of our fields has are passed over.
func fields(b []byte, f func(field int, number uint64, bytes []byte) error) error {
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 {
			return errMalformed
		}
		b = b[n:]
		var number uint64
		var value []byte
		switch key & 7 {
		case wireVarint:
			if number, n = binary.Uvarint(b); n <= 0 {
				return errMalformed
			}
		case wireBytes:
			size, s := binary.Uvarint(b)
			if s <= 0 || size > uint64(len(b)-s) {
				return errMalformed
			}
			n = s + int(size)
			value = b[s:n]
		case 1:
			n = 8
		case 5:
			n = 4
		default:
			return errMalformed
		}
		if n > len(b) {
			return errMalformed
		}
		b = b[n:]
		if kind := key & 7; kind != wireVarint && kind != wireBytes {
			continue
		}
		if err := f(int(key>>3), number, value); err != nil {
			return err
		}
	}
	return nil
}

// decodeAnswer reads a ttrpc response.
func decodeAnswer(b []byte) (code uint64, text string, payload []byte, err error) {
	err = fields(b, func(field int, _ uint64, value []byte) error {
		switch field {
		case 1:
			return fields(value, func(field int, number uint64, value []byte) error {
				switch field {
				case 1:
					code = number
				case 2:
					text = string(value)
				}
				return nil
			})
		case 2:
			payload = value
		}
		return nil
	})
	return code, text, payload, err
}

// decodeEdits reads a PrepareSandboxResponse.
func decodeEdits(b []byte) (*Edits, error) {
	e := &Edits{}
	var revision uint64
	var daemon string
	err := fields(b, func(field int, _ uint64, value []byte) error {
		if value == nil {
			return nil
		}
		switch field {
		case 1:
			return fields(value, func(field int, number uint64, value []byte) error {
				switch field {
				case 1:
					revision = number
				case 2:
					daemon = string(value)
				}
				return nil
			})
		case 2:
			d, err := decodeDevice(value)
			e.Devices = append(e.Devices, d)
			return err
		case 3:
			return e.annotate(value)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the node daemon's answer: %w", err)
	}
	return e, CheckRevision(revision, daemon)
}

// CheckRevision refuses the answer of a daemon that is too old for this build.
func CheckRevision(revision uint64, daemon string) error {
	if revision >= Oldest {
		return nil
	}
	return fmt.Errorf("the node daemon (version %q) speaks revision %d of the API, this program (%s) needs %d: install the same version of both and restart the daemon",
		daemon, revision, version.Version, Oldest)
}

func (e *Edits) annotate(entry []byte) error {
	var pair [2]string
	err := fields(entry, func(field int, _ uint64, value []byte) error {
		if field == 1 || field == 2 {
			pair[field-1] = string(value)
		}
		return nil
	})
	if e.Annotations == nil {
		e.Annotations = make(map[string]string)
	}
	e.Annotations[pair[0]] = pair[1]
	return err
}

func decodeDevice(b []byte) (Device, error) {
	var d Device
	err := fields(b, func(field int, number uint64, value []byte) error {
		switch field {
		case 1:
			d.Path = string(value)
		case 2:
			d.Major = int64(number)
		case 3:
			d.Minor = int64(number)
		case 4:
			d.Mode = uint32(number)
		case 5:
			d.UID = uint32(number)
		case 6:
			d.GID = uint32(number)
		}
		return nil
	})
	return d, err
}
