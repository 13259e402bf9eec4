package forward

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/blake2s"
)

// Messages of the WireGuard protocol (whitepaper, section 5.4): the first byte is
// the kind, three zero bytes follow.
const (
	initiation  = 1
	response    = 2
	cookieReply = 3
	transport   = 4

	initiationSize  = 148
	responseSize    = 92
	cookieReplySize = 64
	transportMin    = 32

	macSize = 16 // of each of the two MACs that end a handshake message
)

// Is says whether b can be a WireGuard datagram: nothing else that shares its
// port begins so. QUIC's first byte has 0x40 set (RFC 9443).
func Is(b []byte) bool {
	if len(b) < transportMin || b[1]|b[2]|b[3] != 0 {
		return false
	}
	switch b[0] {
	case initiation:
		return len(b) == initiationSize
	case response:
		return len(b) == responseSize
	case cookieReply:
		return len(b) == cookieReplySize
	case transport:
		return len(b)%16 == 0
	}
	return false
}

// sender is the index that a handshake message tells its reader to use.
func sender(b []byte) uint32 { return binary.LittleEndian.Uint32(b[4:]) }

// receiver is the index by which a message finds its reader.
func receiver(b []byte) uint32 {
	if b[0] == response {
		return binary.LittleEndian.Uint32(b[8:])
	}
	return binary.LittleEndian.Uint32(b[4:])
}

// macKey is under what the first MAC of messages to the holder of a public key is.
func macKey(public [32]byte) [blake2s.Size]byte {
	return blake2s.Sum256(append([]byte("mac1----"), public[:]...))
}

// addressed says whether a handshake message is for the one with that macKey.
func addressed(b []byte, key *[blake2s.Size]byte) bool {
	at := len(b) - 2*macSize
	return subtle.ConstantTimeCompare(mac(b, key), b[at:at+macSize]) == 1
}

// mac is the first MAC of a handshake message.
func mac(b []byte, key *[blake2s.Size]byte) []byte {
	h, err := blake2s.New128(key[:])
	if err != nil {
		panic(fmt.Sprint("blake2s with a key of 32 bytes: ", err))
	}
	h.Write(b[:len(b)-2*macSize])
	return h.Sum(nil)
}
