package stmt

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Limits on every statement.
const (
	// MaxStatement is the largest raw statement in bytes (CONTRACT, Limits).
	MaxStatement = 8 << 10
	// MaxDeps is the largest number of dependencies.
	MaxDeps = 64
	// MaxTime bounds [Statement.Time]: 2100-01-01T00:00:00Z. An unbounded
	// time poisons the Automerge engine, and a date past this one is a lie.
	MaxTime = 4102444800
	// maxKind is the longest kind in bytes.
	maxKind = 16
)

// Errors of [Verify] and [Sign]; returned errors wrap one of them or
// [ErrEncoding].
var (
	// ErrTooLarge: the statement exceeds a limit of this package.
	ErrTooLarge = errors.New("stmt: statement too large")
	// ErrShape: canonical, but not a statement.
	ErrShape = errors.New("stmt: malformed statement")
	// ErrNetwork: a statement of another network.
	ErrNetwork = errors.New("stmt: statement of another network")
	// ErrSignature: the signature does not verify.
	ErrSignature = errors.New("stmt: bad signature")
)

// Kind says what a statement is about. It is part of what is signed.
type Kind string

// The kinds. A verifier accepts other kinds, so that newer members' statements
// can be relayed; package crdt stores only those that it has a rule for.
const (
	KindMember   Kind = "member"   // admits or revokes a key
	KindInvite   Kind = "invite"   // the root's delegation to an invite key
	KindOperator Kind = "operator" // a node's delegation to those who run it
	KindOwner    Kind = "owner"    // which instances of an owner live
	KindSpec     Kind = "spec"     // a change of one instance's desired state
	KindSecret   Kind = "secret"   // one secret of an instance, encrypted
	KindNode     Kind = "node"     // what a node is and has
	KindClaim    Kind = "claim"    // what a node does with one slot
	KindHint     Kind = "hint"     // suspicion or contradiction; gossip only
	KindSession  Kind = "session"  // binds a connection to an owner; never stored
	KindBase     Kind = "base"     // a publisher's name for a base
)

// Statement is one verified or to be signed sentence.
type Statement struct {
	Kind    Kind
	Network NetworkID
	Author  Key
	Epoch   uint64 // meaning by kind: boot epoch of a register, epoch of a spec
	Seq     uint64 // meaning by kind: strictly increasing per author or actor
	Time    int64  // Unix seconds, 0…MaxTime; display only, never authority
	Deps    []ID   // statements this one has seen; at most MaxDeps
	Via     []byte // raw statement that delegates to Author, or nil
	Body    []byte // canonical DAG-CBOR map of the kind

	// Set by Peek and Verify, ignored by Sign.
	ID  ID
	Raw []byte // the bytes; shared with the caller of Peek or Verify

	payload, sig []byte // in Raw
}

// appendEnvelope makes a raw statement: a CBOR array of two byte strings.
func appendEnvelope(payload, sig []byte) []byte {
	b := make([]byte, 0, 1+3+len(payload)+2+len(sig))
	b = append(b, majorArray<<5|2)
	for _, part := range [][]byte{payload, sig} {
		b = append(appendHead(b, majorBytes, uint64(len(part))), part...)
	}
	return b
}

// openEnvelope returns the parts of a raw statement, not copied.
func openEnvelope(raw []byte) (payload, sig []byte, err error) {
	if err := CheckCanonical(raw); err != nil {
		return nil, nil, err
	}
	if raw[0] != majorArray<<5|2 {
		return nil, nil, fmt.Errorf("%w: no array of two", ErrShape)
	}
	at := 1
	for _, part := range []*[]byte{&payload, &sig} {
		major, n, next, err := checkHead(raw, at)
		if err != nil {
			return nil, nil, err
		}
		if major != majorBytes {
			return nil, nil, fmt.Errorf("%w: no array of byte strings", ErrShape)
		}
		at = next + int(n) // canonical: it ends within raw
		*part = raw[next:at:at]
	}
	return payload, sig, nil
}

// signedBytes is what the signature covers and the ID hashes.
func signedBytes(k Kind, payload []byte) []byte {
	b := make([]byte, 0, len(domain)+len(k)+1+len(payload))
	b = append(b, domain...)
	b = append(b, k...)
	b = append(b, 0)
	return append(b, payload...)
}

const domain = "formation/stmt/1\x00"

// Sign encodes and signs s. s.Author may be zero (it becomes priv's key) and
// must be priv's key otherwise; s.ID and s.Raw are ignored. Errors wrap
// ErrShape, ErrTooLarge or ErrEncoding.
func Sign(priv ed25519.PrivateKey, s Statement) ([]byte, error) {
	st, err := Make(priv, s)
	if err != nil {
		return nil, err
	}
	return st.Raw, nil
}

// Make is [Sign] and returns what [Verify] does of the raw statement. It shares
// the dependencies, delegation and body of s.
func Make(priv ed25519.PrivateKey, s Statement) (*Statement, error) {
	if len(priv) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("%w: private key of %d bytes", ErrShape, len(priv))
	}
	author := KeyOf(priv)
	if s.Author.IsZero() {
		s.Author = author
	}
	if s.Author != author {
		return nil, fmt.Errorf("%w: author %s is not the signing key %s", ErrShape, s.Author, author)
	}
	p, err := encode(&s)
	if err != nil {
		return nil, err
	}
	signed := signedBytes(s.Kind, p)
	s.ID, s.payload, s.sig = sha256.Sum256(signed), p, ed25519.Sign(priv, signed)
	s.Raw = appendEnvelope(s.payload, s.sig)
	return &s, nil
}

// Fits says whether Sign, with the key of s.Author, would sign s: nil, or its
// error.
func Fits(s Statement) error {
	_, err := encode(&s)
	return err
}

// encode returns the payload of s.
func encode(s *Statement) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	p := s.appendPayload(make([]byte, 0, 192+len(s.Deps)*(2+len(ID{}))+len(s.Via)+len(s.Body)))
	if err := CheckCanonical(p); err != nil {
		return nil, err
	}
	if n := 1 + len(appendHead(nil, majorBytes, uint64(len(p)))) + len(p) + 2 + ed25519.SignatureSize; n > MaxStatement {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, MaxStatement)
	}
	return p, nil
}

// Peek decodes raw without checking its signature: size, then shape, then
// network. What it returns is hostile input; use it to drop the stale and the
// unwanted cheaply, and [Statement.CheckSignature] before believing anything. The
// statement shares memory with raw, which must not change afterwards.
func Peek(raw []byte, net NetworkID) (*Statement, error) {
	if len(raw) > MaxStatement {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(raw), MaxStatement)
	}
	pay, sig, err := openEnvelope(raw)
	if err != nil {
		return nil, err
	}
	if len(sig) != ed25519.SignatureSize {
		return nil, fmt.Errorf("%w: signature of %d bytes", ErrShape, len(sig))
	}
	s := &Statement{Raw: raw, payload: pay, sig: sig}
	if err := Fields(pay, s.readField); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.Author.IsZero() {
		return nil, fmt.Errorf("%w: no author", ErrShape)
	}
	if s.Network != net {
		return nil, fmt.Errorf("%w: %s", ErrNetwork, s.Network.Short())
	}
	s.ID = sha256.Sum256(signedBytes(s.Kind, pay))
	return s, nil
}

// Reread decodes raw, which Peek or Verify has accepted before: without another look
// at its network, and without its ID.
func Reread(raw []byte) (*Statement, error) {
	pay, sig, err := openEnvelope(raw)
	if err != nil {
		return nil, err
	}
	s := &Statement{Raw: raw, payload: pay, sig: sig}
	return s, Fields(pay, s.readField)
}

// Verify decodes raw and checks, in this order, size, shape, network and
// signature. Errors wrap ErrTooLarge, ErrEncoding, ErrShape, ErrNetwork or
// ErrSignature. The statement shares memory with raw, which must not change
// afterwards. Whether Author may say it is not checked here.
func Verify(raw []byte, net NetworkID) (*Statement, error) {
	s, err := Peek(raw, net)
	if err != nil {
		return nil, err
	}
	if err := s.CheckSignature(); err != nil {
		return nil, err
	}
	return s, nil
}

// CheckSignature finishes what Peek began: nil when Author signed the statement,
// else an error that wraps ErrSignature.
func (s *Statement) CheckSignature() error {
	if len(s.sig) != ed25519.SignatureSize || !ed25519.Verify(s.Author[:], signedBytes(s.Kind, s.payload), s.sig) {
		return fmt.Errorf("%w: %s statement of %s", ErrSignature, s.Kind, s.Author)
	}
	return nil
}

// check holds what is true of every statement, on both sides of the wire.
func (s *Statement) check() error {
	switch {
	case s.Kind == "" || len(s.Kind) > maxKind:
		return fmt.Errorf("%w: kind of %d bytes", ErrShape, len(s.Kind))
	case s.Time < 0 || s.Time > MaxTime:
		return fmt.Errorf("%w: time %d", ErrShape, s.Time)
	case len(s.Deps) > MaxDeps:
		return fmt.Errorf("%w: %d dependencies, at most %d", ErrTooLarge, len(s.Deps), MaxDeps)
	case len(s.Body) == 0 || s.Body[0]>>5 != majorMap:
		return fmt.Errorf("%w: body is no map", ErrShape)
	}
	for _, c := range []byte(s.Kind) {
		if c < 'a' || c > 'z' {
			return fmt.Errorf("%w: kind %q", ErrShape, s.Kind)
		}
	}
	for i := 1; i < len(s.Deps); i++ {
		if s.Deps[i-1].Compare(s.Deps[i]) >= 0 {
			return fmt.Errorf("%w: dependencies out of order or repeated", ErrShape)
		}
	}
	return nil
}
