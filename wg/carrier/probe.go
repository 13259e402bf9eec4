package carrier

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// A probe asks whether its path works, an echo answers. Both are
//
//	0f ‖ kind ‖ session of the reader (8) ‖ number (8) ‖ address seen (18) ‖ MAC (16)
//
// and equally long, so that an echo amplifies nothing. The address is where the
// echo's sender saw the probe come from, zero in a probe. The MAC is the first
// half of HMAC-SHA-256 under the reader's key.
const (
	probeByte = 0x0f // WireGuard's are 1 to 4, QUIC's have 0x40 set
	probeSize = 2 + 8 + 8 + addrSize + macSize
	addrSize  = 16 + 2
	macSize   = 16
)

type probeKind byte

const (
	kindProbe probeKind = 1
	kindEcho  probeKind = 2
)

// secret is what a host tells another so that the other's probes can be known.
type secret struct {
	session uint64
	key     [32]byte
}

type probe struct {
	kind   probeKind
	number uint64
	seen   netip.AddrPort // of an echo
}

// isProbe says whether b may be a probe; nothing else on the socket begins so.
func isProbe(b []byte) bool { return len(b) == probeSize && b[0] == probeByte }

// sessionOf is to whom a probe is.
func sessionOf(b []byte) uint64 { return binary.BigEndian.Uint64(b[2:]) }

// seal makes p a datagram for the holder of s.
func (s secret) seal(p probe) []byte {
	b := append(make([]byte, 0, probeSize), probeByte, byte(p.kind))
	b = binary.BigEndian.AppendUint64(b, s.session)
	b = binary.BigEndian.AppendUint64(b, p.number)
	b = appendAddr(b, p.seen)
	return append(b, s.mac(b)...)
}

var errForged = errors.New("carrier: the MAC is wrong")

// open reads a probe made for s.
func (s secret) open(b []byte) (probe, error) {
	if !isProbe(b) || sessionOf(b) != s.session {
		return probe{}, errors.New("carrier: no probe for this session")
	}
	body := b[:probeSize-macSize]
	if !hmac.Equal(b[probeSize-macSize:], s.mac(body)) {
		return probe{}, errForged
	}
	p := probe{kind: probeKind(b[1]), number: binary.BigEndian.Uint64(b[10:]), seen: readAddr(b[18:])}
	if p.kind != kindProbe && p.kind != kindEcho {
		return probe{}, fmt.Errorf("carrier: probe of kind %d", p.kind)
	}
	return p, nil
}

func (s secret) mac(b []byte) []byte {
	h := hmac.New(sha256.New, s.key[:])
	h.Write(b)
	return h.Sum(nil)[:macSize]
}

// appendAddr and readAddr know an address as 16 bytes and a port; none is zeros.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, make([]byte, addrSize)...)
	}
	ip := a.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, ip[:]...), a.Port())
}

func readAddr(b []byte) netip.AddrPort {
	a := netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
	if a.Port() == 0 || a.Addr().IsUnspecified() {
		return netip.AddrPort{}
	}
	return a
}
