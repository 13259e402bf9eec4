package embedded

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// Answers is a TUN device by which peers answer, and do not ask: they open no TCP
// connection to this machine, and send UDP only to where something was sent to them
// from in the last AnswerWithin. ICMP passes. What is neither, fragments and packets
// with extension headers too, does not.
type Answers struct {
	tun.Device
	now func() time.Duration

	mu    sync.Mutex
	asked map[flow]time.Duration // when last
}

// AnswerWithin is for how long UDP may be answered.
const AnswerWithin = 3 * time.Minute

// maxAsked bounds how many conversations over UDP are remembered.
const maxAsked = 4096

// flow is a conversation over UDP.
type flow struct {
	peer netip.AddrPort
	port uint16 // ours
}

// NewAnswers makes one of a TUN device, which is its own from now on. now never goes
// back.
func NewAnswers(d tun.Device, now func() time.Duration) *Answers {
	return &Answers{Device: d, now: now, asked: map[flow]time.Duration{}}
}

// Read implements tun.Device.
func (a *Answers) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := a.Device.Read(bufs, sizes, offset)
	for i := range n {
		if s, ok := parseSegment(bufs[i][offset : offset+sizes[i]]); ok && s.protocol == protocolUDP {
			a.note(flow{netip.AddrPortFrom(s.to, s.toPort), s.fromPort})
		}
	}
	return n, err
}

func (a *Answers) note(f flow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if _, known := a.asked[f]; !known && len(a.asked) >= maxAsked {
		a.makeRoom(now)
	}
	a.asked[f] = now
}

// makeRoom forgets what is over, and the oldest when nothing is; a.mu is held.
func (a *Answers) makeRoom(now time.Duration) {
	oldest, at := flow{}, now
	for f, t := range a.asked {
		if now-t > AnswerWithin {
			delete(a.asked, f)
		} else if t <= at {
			oldest, at = f, t
		}
	}
	if len(a.asked) >= maxAsked {
		delete(a.asked, oldest)
	}
}

// Write implements tun.Device.
func (a *Answers) Write(bufs [][]byte, offset int) (int, error) {
	return writeKept(a.Device, bufs, offset, a.answers)
}

// answers says whether a packet may come in.
func (a *Answers) answers(b []byte) bool {
	s, ok := parseSegment(b)
	if !ok {
		return false
	}
	switch s.protocol {
	case protocolTCP:
		return !s.opens
	case protocolUDP:
		a.mu.Lock()
		defer a.mu.Unlock()
		t, asked := a.asked[flow{netip.AddrPortFrom(s.from, s.fromPort), s.toPort}]
		return asked && a.now()-t <= AnswerWithin
	}
	return true
}

const (
	protocolICMP  = 1
	protocolTCP   = 6
	protocolUDP   = 17
	protocolICMP6 = 58
)

// segment is what is looked at of a packet.
type segment struct {
	protocol         byte
	from, to         netip.Addr
	fromPort, toPort uint16
	opens            bool // TCP: it asks for a connection
}

// parseSegment reads an IP packet of a protocol that is known here, whole.
func parseSegment(b []byte) (s segment, ok bool) {
	var payload []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		header := int(b[0]&15) * 4
		if header < 20 || header > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 { // a fragment
			return s, false
		}
		s.protocol, payload = b[9], b[header:]
		s.from, s.to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 40 && b[0]>>4 == 6:
		s.protocol, payload = b[6], b[40:]
		s.from, s.to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return s, false
	}
	switch s.protocol {
	case protocolICMP, protocolICMP6:
		return s, len(payload) >= 4
	case protocolUDP:
		ok = len(payload) >= 8
	case protocolTCP:
		if ok = len(payload) >= 20; ok {
			const syn, ack = 0x02, 0x10
			s.opens = payload[13]&(syn|ack) == syn
		}
	}
	if ok {
		s.fromPort, s.toPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	}
	return s, ok
}
