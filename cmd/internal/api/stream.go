package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// MaxHeader bounds the JSON line that opens a proxy or exec stream, in bytes.
const MaxHeader = 64 << 10

// ProxyRequest opens a ProtoProxy stream on the replica's host. After a
// StreamReply with OK set both sides are raw bytes; half-close is carried.
type ProxyRequest struct {
	Instance string `json:"instance"` // instance ID
	Slot     int    `json:"slot"`
	Port     int    `json:"port"` // guest TCP port, 1–65535
}

// PublicRequest opens a ProtoPublic stream on the replica's host, which takes it
// from nodes of the network, for ports that the instance offers to everybody.
// After a StreamReply with OK set both sides are raw bytes for TCP, with
// half-close; for UDP datagrams, each with its length in two bytes, big endian,
// before it.
type PublicRequest struct {
	Instance string `json:"instance"`
	Slot     int    `json:"slot"`
	Port     int    `json:"port"`
	Proto    string `json:"proto"` // "tcp" or "udp"
}

// ExecRequest opens a ProtoExec stream on the replica's host. After a
// StreamReply with OK set the bytes are the framed standard streams of package
// fogvm/guest.
type ExecRequest struct {
	Instance string          `json:"instance"`
	Slot     int             `json:"slot"`
	Exec     json.RawMessage `json:"exec"` // a guest.ExecRequest
}

// StreamReply answers a ProxyRequest, PublicRequest or ExecRequest.
type StreamReply struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	Exit  int    `json:"exit,omitempty"` // an exit code of this package
}

// WriteHeader writes v as one JSON line of at most MaxHeader bytes.
func WriteHeader(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("stream header: %w", err)
	}
	if len(b)+1 > MaxHeader {
		return Problemf(ExitUsage, "the stream header has %d bytes; at most %d are allowed", len(b), MaxHeader-1)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// ReadHeader reads one JSON line of at most MaxHeader bytes into v. It reads a
// byte at a time, so that not one byte after the line is consumed.
func ReadHeader(r io.Reader, v any) error {
	var line bytes.Buffer
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return fmt.Errorf("stream header: %w", err)
		}
		if b[0] == '\n' {
			break
		}
		if line.Len() >= MaxHeader-1 {
			return Problemf(ExitUsage, "the stream header is over %d bytes", MaxHeader)
		}
		line.WriteByte(b[0])
	}
	dec := json.NewDecoder(&line)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return Problemf(ExitUsage, "stream header: %v", err)
	}
	return nil
}

// Err is nil for an OK reply, else a Problem.
func (r StreamReply) Err() error {
	if r.OK {
		return nil
	}
	exit := r.Exit
	if exit == 0 {
		exit = ExitFailed
	}
	return Problemf(exit, "%s", r.Error)
}
