package stmt

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/mr-tron/base58"
)

// Key is an Ed25519 public key: the identity of a node, an owner, an operator,
// a network root or an invite. The zero Key is no identity.
type Key [ed25519.PublicKeySize]byte

// ErrKey is wrapped by every error about the text form of a [Key].
var ErrKey = errors.New("stmt: invalid key")

// peerIDPrefix is what libp2p puts before an Ed25519 public key to make a peer
// ID: multihash "identity" (0x00), length 36, then the protobuf PublicKey
// {Type: Ed25519 (08 01), Data: 32 bytes (12 20)}. See the libp2p peer-ids
// specification.
var peerIDPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// KeyOf returns the public half of priv. It panics when priv has a wrong
// length, which is a programming error.
func KeyOf(priv ed25519.PrivateKey) Key {
	return Key(priv.Public().(ed25519.PublicKey))
}

// IsZero says whether k is no identity at all.
func (k Key) IsZero() bool { return k == Key{} }

// PeerID returns the binary libp2p peer ID of k (38 bytes), which converts to
// peer.ID by a plain string conversion.
func (k Key) PeerID() string { return string(peerIDPrefix) + string(k[:]) }

// String returns the libp2p peer-ID text form, "12D3Koo…"; the zero Key is "".
func (k Key) String() string {
	if k.IsZero() {
		return ""
	}
	return base58.Encode([]byte(k.PeerID()))
}

// Compare orders keys bytewise.
func (k Key) Compare(o Key) int { return bytes.Compare(k[:], o[:]) }

// MarshalText returns the form of [Key.String].
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText accepts what [ParseKey] accepts, and "" as the zero Key.
func (k *Key) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*k = Key{}
		return nil
	}
	p, err := ParseKey(string(b))
	if err != nil {
		return err
	}
	*k = p
	return nil
}

// ParseKey reads a public key from its peer-ID form, from 64 hexadecimal
// digits, or from base64 (standard or URL alphabet, padded or not). Errors wrap
// [ErrKey].
func ParseKey(s string) (Key, error) {
	if len(s) > 128 {
		return Key{}, fmt.Errorf("%w: %d characters", ErrKey, len(s))
	}
	if strings.HasPrefix(s, "12D3Koo") {
		b, err := base58.Decode(s)
		if err != nil {
			return Key{}, fmt.Errorf("%w: %q: %w", ErrKey, s, err)
		}
		return KeyOfPeerID(string(b))
	}
	if len(s) == 2*len(Key{}) {
		if b, err := hex.DecodeString(s); err == nil {
			return Key(b), nil
		}
	}
	plain := strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(s, "="))
	if b, err := base64.RawURLEncoding.Strict().DecodeString(plain); err == nil && len(b) == len(Key{}) {
		return Key(b), nil
	}
	return Key{}, fmt.Errorf("%w: %q is no peer ID, hex or base64 form of an Ed25519 public key", ErrKey, s)
}

// KeyOfPeerID is the inverse of [Key.PeerID]: id is a binary peer ID, such as
// string(peer.ID). Errors wrap [ErrKey].
func KeyOfPeerID(id string) (Key, error) {
	b := []byte(id)
	if len(b) != len(peerIDPrefix)+len(Key{}) || !bytes.HasPrefix(b, peerIDPrefix) {
		return Key{}, fmt.Errorf("%w: not the peer ID of an Ed25519 key", ErrKey)
	}
	return Key(b[len(peerIDPrefix):]), nil
}

// NetworkID names a network: SHA-256 of a domain tag, the network's name and
// its root key. A zero root makes an open network, which admits everyone.
type NetworkID [sha256.Size]byte

// NewNetworkID returns the ID of the network called name under root, with settings
// as usual ([Settings.NetworkID]). Renaming a network makes another network.
func NewNetworkID(name string, root Key) NetworkID {
	h := sha256.New()
	h.Write([]byte("formation/network/1\x00"))
	h.Write([]byte(name))
	h.Write([]byte{0})
	h.Write(root[:])
	return NetworkID(h.Sum(nil))
}

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Short returns the 16 lower-case base32 characters (80 bits) that stand for
// the network in protocol IDs, topics and DHT prefixes.
func (n NetworkID) Short() string { return lowerBase32.EncodeToString(n[:10]) }

// String returns the ID in hexadecimal.
func (n NetworkID) String() string { return hex.EncodeToString(n[:]) }

// ID names a statement: SHA-256 of its signed bytes (tag, kind and payload; not
// the signature, so two signatures of one content are one statement).
type ID [sha256.Size]byte

// String returns the ID in hexadecimal.
func (i ID) String() string { return hex.EncodeToString(i[:]) }

// Compare orders IDs bytewise.
func (i ID) Compare(o ID) int { return bytes.Compare(i[:], o[:]) }
