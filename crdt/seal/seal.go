// Package seal encrypts the values of secrets (crdt.Secret) to the Ed25519 keys
// that nodes and owners have anyway, and tells a value that its owner meant from
// any other.
//
// Guarantees: a box opens with the owner's key and those of the nodes it was
// made for, and with no other; a value is only handed out when it gives the sum
// that the owner signed, whoever brought it.
//
// Not guaranteed: that one who could read a value forgets it. A node that a
// secret was encrypted to once keeps what it saw; only a new value helps.
package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"github.com/formthefog/formation/crdt/stmt"
)

// MaxValue is the largest value in bytes (CONTRACT, Limits).
const MaxValue = 4 << 10

const (
	saltSize = 32
	domain   = "formation/secret/1\x00"
	hidden   = "[secret]"
)

// MaxFrame is the largest frame in bytes.
const MaxFrame = saltSize + MaxValue

// Errors of this package.
var (
	// ErrTooLarge: a value of more than MaxValue bytes.
	ErrTooLarge = errors.New("seal: value too large")
	// ErrNotForUs: the box is for other keys.
	ErrNotForUs = errors.New("seal: encrypted to other keys")
	// ErrDamaged: no box, or its content is not what the owner signed.
	ErrDamaged = errors.New("seal: not what its owner signed")
)

// Frame is a value with the salt that keeps its sum from being guessed. It does
// not show what it holds when it is printed or logged.
type Frame []byte

// New frames a value with a salt of its own.
func New(value []byte) (Frame, error) {
	if len(value) > MaxValue {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(value), MaxValue)
	}
	f := make(Frame, saltSize, saltSize+len(value))
	rand.Read(f) // never fails (crypto/rand)
	return append(f, value...), nil
}

// Check takes a frame from anybody: it must give sum. Errors wrap ErrDamaged.
func Check(frame []byte, sum [32]byte) (Frame, error) {
	f := Frame(frame)
	if len(f) < saltSize || len(f) > MaxFrame || f.Sum() != sum {
		return nil, fmt.Errorf("%w: %d bytes", ErrDamaged, len(f))
	}
	return f, nil
}

// Value is what the owner set; it shares the frame's memory.
func (f Frame) Value() []byte { return f[saltSize:] }

// Sum is what the owner signs beside the box.
func (f Frame) Sum() [32]byte {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write(f)
	return [32]byte(h.Sum(nil))
}

// String hides the value.
func (Frame) String() string { return hidden }

// GoString hides the value.
func (Frame) GoString() string { return hidden }

// LogValue hides the value.
func (Frame) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalJSON hides the value.
func (Frame) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// Box encrypts a frame to its owner and to nodes. A key that nothing can be
// encrypted to, which only somebody made up, is left out: to are the nodes that
// can open the box.
func Box(f Frame, owner stmt.Key, nodes []stmt.Key) (box []byte, to []stmt.Key, err error) {
	first, err := recipient(owner)
	if err != nil {
		return nil, nil, fmt.Errorf("encrypt to %s: %w", owner, err)
	}
	all := []age.Recipient{first}
	for _, n := range nodes {
		if r, err := recipient(n); err == nil {
			all, to = append(all, r), append(to, n)
		}
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, all...)
	if err == nil {
		_, err = w.Write(f)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("encrypt: %w", err)
	}
	return out.Bytes(), to, nil
}

// recipient is a key that was seen to take a message.
func recipient(k stmt.Key) (age.Recipient, error) {
	p, err := ssh.NewPublicKey(ed25519.PublicKey(k[:]))
	if err != nil {
		return nil, err
	}
	r, err := agessh.NewEd25519Recipient(p)
	if err != nil {
		return nil, err
	}
	_, err = r.Wrap(make([]byte, 16))
	return r, err
}

// Open decrypts a box by the key of its owner or of a node it is for. Errors
// wrap ErrNotForUs or ErrDamaged.
func Open(key ed25519.PrivateKey, box []byte, sum [32]byte) (Frame, error) {
	id, err := agessh.NewEd25519Identity(key)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	r, err := age.Decrypt(bytes.NewReader(box), id)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, ErrNotForUs
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	frame, err := io.ReadAll(io.LimitReader(r, MaxFrame+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return Check(frame, sum)
}
