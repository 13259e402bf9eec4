package stmt

import (
	"crypto/ed25519"
	"fmt"
)

// MaxHint is the largest raw hint in bytes.
const MaxHint = 512

// HintBody is the body of a [KindHint] statement. Its author, a node, suspects Peer
// as it was in boot epoch Epoch after Count contradictions; or, with Alive, is Peer
// itself and says that it is alive in that incarnation. Of one author hints are
// ordered by (Epoch, Seq) of the statement: its boot epoch, and a number that rises
// with every hint. Hints are spread by gossip, and neither stored nor authority.
type HintBody struct {
	Peer  Key    `cbor:"peer"`
	Alive bool   `cbor:"alive,omitempty"`
	Epoch uint64 `cbor:"epoch,omitempty"`
	Count uint64 `cbor:"count,omitempty"`
}

// SignHint signs h with the node's key.
func SignHint(node ed25519.PrivateKey, net NetworkID, h HintBody, epoch, seq uint64) ([]byte, error) {
	body, err := Marshal(h)
	if err != nil {
		return nil, err
	}
	return Sign(node, Statement{Kind: KindHint, Network: net, Epoch: epoch, Seq: seq, Body: body})
}

// PeekHint decodes a hint without checking its signature; use it as [Peek]. Errors
// wrap those of Peek, or ErrShape.
func PeekHint(raw []byte, net NetworkID) (*Statement, HintBody, error) {
	var h HintBody
	if len(raw) > MaxHint {
		return nil, h, fmt.Errorf("%w: hint of %d bytes, at most %d", ErrTooLarge, len(raw), MaxHint)
	}
	s, err := Peek(raw, net)
	if err != nil {
		return nil, h, err
	}
	if s.Kind != KindHint || len(s.Deps) > 0 || s.Via != nil {
		return nil, h, fmt.Errorf("%w: %s is no hint", ErrShape, s.Kind)
	}
	if err := Unmarshal(s.Body, &h); err != nil {
		return nil, h, err
	}
	if h.Peer.IsZero() || h.Alive != (h.Peer == s.Author) {
		return nil, h, fmt.Errorf("%w: hint of a node that is not its to say", ErrShape)
	}
	return s, h, nil
}
