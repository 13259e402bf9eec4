package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Version is that of the protocol on the agent's socket. A form that finds another
// makes that agent stop, and starts its own.
const Version = 1

// maxLine bounds a line on the socket, in bytes.
const maxLine = 16 << 10

// The socket carries JSON lines. A form begins with a request; the agent answers
// each line with a reply. After a reply to "reach" the form may say "dial" on the
// same connection, and after a reply to that both sides are the guest's raw bytes.
const (
	opStatus = "status"
	opStop   = "stop" // in every version
	opReach  = "reach"
	opDial   = "dial"
)

type request struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	Target  Target `json:"target,omitzero"`
	Port    uint16 `json:"port,omitempty"`
	// Hasty is of "reach": who asks has another way, and waits for nobody of whom it
	// is known that it would be in vain.
	Hasty bool `json:"hasty,omitempty"`
}

type reply struct {
	Version int     `json:"version"`
	Error   string  `json:"error,omitempty"`
	Kind    string  `json:"kind,omitempty"` // of the error
	Status  *Status `json:"status,omitempty"`
}

// The kinds of errors that a form tells apart.
const (
	kindVersion  = "version"  // [ErrVersion]
	kindNoPeer   = "no-peer"  // [ErrNoPeer]
	kindUnlisted = "unlisted" // [ErrUnlisted]
	kindRefused  = "refused"  // the guest answered, and nothing listens there
	kindSilent   = "silent"   // [ErrSilent]
)

// ErrVersion: the agent is another version's.
var ErrVersion = errors.New("the agent is of another version")

// ErrRefused: the guest was reached and has nothing on that port.
var ErrRefused = errors.New("connection refused")

// Status is what an agent says of itself.
type Status struct {
	PID         int          `json:"pid"`
	Since       time.Time    `json:"since"`
	Owner       stmt.Key     `json:"owner"`
	Device      stmt.Key     `json:"device"`
	MeshKey     string       `json:"mesh_key"`
	Address     string       `json:"address"`
	Connections int          `json:"connections"`
	Error       string       `json:"error,omitempty"` // of the last question to the nodes
	Peers       []PeerStatus `json:"peers"`           // never null
}

// PeerStatus is one replica or node in a [Status].
type PeerStatus struct {
	Instance  string     `json:"instance"` // "": a node
	Name      string     `json:"name"`
	Slot      int        `json:"slot"`
	Node      stmt.Key   `json:"node"`
	MeshKey   string     `json:"mesh_key"`
	Address   string     `json:"address"`
	Address6  string     `json:"address6"`
	Handshake *time.Time `json:"handshake"` // null: none
	Silent    bool       `json:"silent"`    // it did not answer lately: nobody in a haste waits for it
	Received  int64      `json:"received_bytes"`
	Sent      int64      `json:"sent_bytes"`
}

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	for kind, err := range map[string]error{kindVersion: ErrVersion, kindNoPeer: ErrNoPeer, kindUnlisted: ErrUnlisted, kindRefused: ErrRefused, kindSilent: ErrSilent} {
		if kind == r.Kind {
			return fmt.Errorf("%w: %s", err, r.Error)
		}
	}
	return errors.New(r.Error)
}

func replyOf(err error) reply {
	r := reply{Version: Version, Error: err.Error()}
	switch {
	case errors.Is(err, ErrVersion):
		r.Kind = kindVersion
	case errors.Is(err, ErrUnlisted):
		r.Kind = kindUnlisted
	case errors.Is(err, ErrNoPeer):
		r.Kind = kindNoPeer
	case errors.Is(err, ErrRefused):
		r.Kind = kindRefused
	case errors.Is(err, ErrSilent):
		r.Kind = kindSilent
	}
	return r
}

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readLine reads one line into v, a byte at a time: what follows is not its own.
func readLine(r io.Reader, most int, v any) error {
	var line bytes.Buffer
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		if line.Len() >= most {
			return fmt.Errorf("agent: a line is over %d bytes", most)
		}
		line.WriteByte(b[0])
	}
	if err := json.Unmarshal(line.Bytes(), v); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}
