package stmt

import (
	"crypto/ed25519"
	"fmt"
	"time"
)

// MaxSession is the longest life of a session statement.
const MaxSession = 24 * time.Hour

// SessionBody is the body of a [KindSession] statement: its author, an owner or
// one of its devices, speaks through the connection between Client and Server
// until Expires. It is worthless on any other connection, so it need not be
// secret.
type SessionBody struct {
	Client  Key    `cbor:"client"` // the client's connection identity, usually ephemeral
	Server  Key    `cbor:"server"`
	Scope   string `cbor:"scope,omitempty"` // "" = everything the owner may do
	Expires int64  `cbor:"expires"`         // Unix seconds
	// Owner is whom the author speaks for when it is a device; zero: itself.
	Owner Key `cbor:"owner,omitzero"`
}

// SignSession signs s with the owner's key, or with a device's when s names the
// owner.
func SignSession(key ed25519.PrivateKey, net NetworkID, s SessionBody) ([]byte, error) {
	if len(key) == ed25519.PrivateKeySize && s.Owner == KeyOf(key) {
		s.Owner = Key{}
	}
	body, err := Marshal(s)
	if err != nil {
		return nil, err
	}
	return Sign(key, Statement{Kind: KindSession, Network: net, Body: body})
}

// CheckSession verifies a session presented on the connection between client
// and server, and returns who signed it and the owner it is to speak for. When
// they differ, whether that key is a device of the owner's is the caller's to
// find out. A session that expires more
// than [MaxSession] (and an hour for skewed clocks) from now is refused.
// Errors wrap those of [Verify], ErrAuthority or ErrExpired.
func CheckSession(raw []byte, net NetworkID, client, server Key, now time.Time) (author, owner Key, s SessionBody, err error) {
	no := func(err error) (Key, Key, SessionBody, error) { return Key{}, Key{}, SessionBody{}, err }
	v, err := Verify(raw, net)
	if err != nil {
		return no(err)
	}
	if v.Kind != KindSession {
		return no(fmt.Errorf("%w: %s is no session", ErrShape, v.Kind))
	}
	if err := Unmarshal(v.Body, &s); err != nil {
		return no(err)
	}
	if s.Client != client || s.Server != server {
		return no(fmt.Errorf("%w: session of another connection", ErrAuthority))
	}
	left := time.Unix(s.Expires, 0).Sub(now)
	if left <= 0 {
		return no(fmt.Errorf("%w: session ended %s ago", ErrExpired, -left.Round(time.Second)))
	}
	if left > MaxSession+time.Hour {
		return no(fmt.Errorf("%w: session longer than %s", ErrAuthority, MaxSession))
	}
	if owner = s.Owner; owner.IsZero() {
		owner = v.Author
	}
	return v.Author, owner, s, nil
}

// MaxBaseName is the longest base name in bytes.
const MaxBaseName = 128

// BaseBody is the body of a [KindBase] statement: its author says that the base
// called Name ("debian:12") is the base with this CID. Of one publisher and
// name the latest by (Epoch, Seq) holds. Whether to trust the publisher is each
// reader's decision.
type BaseBody struct {
	Name string `cbor:"name"`
	CID  string `cbor:"cid"`
}

// SignBase signs b with a publisher's key. epoch is usually 1 and seq the Unix
// time, so that a later statement holds.
func SignBase(publisher ed25519.PrivateKey, net NetworkID, b BaseBody, epoch, seq uint64) ([]byte, error) {
	body, err := Marshal(b)
	if err != nil {
		return nil, err
	}
	return Sign(publisher, Statement{Kind: KindBase, Network: net, Epoch: epoch, Seq: seq, Body: body})
}

// MaxHello is the largest encoded [Hello] in bytes.
const MaxHello = 2*MaxStatement + 64

// Hello is what a peer presents when a connection opens. Either may be nil: in
// an open network nodes present nothing, and a node presents no session.
type Hello struct {
	Member  []byte `cbor:"member,omitempty"`  // raw member statement of the peer's key or its owner's
	Session []byte `cbor:"session,omitempty"` // raw session statement
}

// EncodeHello returns h's canonical bytes.
func EncodeHello(h Hello) ([]byte, error) {
	b, err := Marshal(h)
	if err == nil && len(b) > MaxHello {
		err = fmt.Errorf("%w: hello of %d bytes", ErrTooLarge, len(b))
	}
	return b, err
}

// DecodeHello is the inverse of [EncodeHello]. Nothing in the result is
// verified.
func DecodeHello(b []byte) (Hello, error) {
	var h Hello
	if len(b) > MaxHello {
		return h, fmt.Errorf("%w: hello of %d bytes", ErrTooLarge, len(b))
	}
	if len(b) == 0 || b[0]>>5 != majorMap {
		return h, fmt.Errorf("%w: hello is no map", ErrShape)
	}
	err := Unmarshal(b, &h)
	return h, err
}
