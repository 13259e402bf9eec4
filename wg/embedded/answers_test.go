package embedded_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/formthefog/formation/wg/embedded"
)

// pipe is a TUN device: what is sent comes out of Read, what is written is counted.
type pipe struct {
	tun.Device
	sends [][]byte
	got   int
}

func (p *pipe) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for ; n < len(bufs) && len(p.sends) > 0; n++ {
		sizes[n] = copy(bufs[n][offset:], p.sends[0])
		p.sends = p.sends[1:]
	}
	return n, nil
}

func (p *pipe) Write(bufs [][]byte, _ int) (int, error) {
	p.got += len(bufs)
	return len(bufs), nil
}

const (
	us, them  = "fd00::1", "fd00::2"
	us4, peer = "10.129.0.1", "10.129.0.2"
)

// ip is a packet with ports and, for TCP, flags.
func ip(protocol byte, from, to string, fromPort, toPort uint16, flags byte) []byte {
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	payload := make([]byte, 20)
	binary.BigEndian.PutUint16(payload, fromPort)
	binary.BigEndian.PutUint16(payload[2:], toPort)
	payload[13] = flags
	if a.Is4() {
		h := make([]byte, 20)
		h[0], h[9] = 0x45, protocol
		copy(h[12:], a.AsSlice())
		copy(h[16:], b.AsSlice())
		return append(h, payload...)
	}
	h := make([]byte, 40)
	h[0], h[6] = 0x60, protocol
	copy(h[8:], a.AsSlice())
	copy(h[24:], b.AsSlice())
	return append(h, payload...)
}

func fragment(p []byte) []byte { p[6], p[7] = 0x20, 0; return p }

func TestPeersAnswerAndDoNotAsk(t *testing.T) {
	const tcp, udp, icmp, icmp6, syn, synAck, ack, rst = 6, 17, 1, 58, 0x02, 0x12, 0x10, 0x04
	dns, dns4 := ip(udp, us, them, 4000, 53, 0), ip(udp, us4, peer, 4000, 53, 0)
	for _, c := range []struct {
		name   string
		sent   []byte // by us before
		passed time.Duration
		packet []byte
		passes bool
	}{
		{"a connection", nil, 0, ip(tcp, them, us, 5, 22, syn), false},
		{"a connection over IPv4", nil, 0, ip(tcp, peer, us4, 5, 22, syn), false},
		{"a connection with more flags", nil, 0, ip(tcp, them, us, 5, 22, syn|0xc8), false},
		{"its acceptance", nil, 0, ip(tcp, them, us, 22, 5, synAck), true},
		{"its data", nil, 0, ip(tcp, them, us, 22, 5, ack), true},
		{"its end", nil, 0, ip(tcp, them, us, 22, 5, rst), true},
		{"a datagram", nil, 0, ip(udp, them, us, 53, 4000, 0), false},
		{"an answer", dns, time.Minute, ip(udp, them, us, 53, 4000, 0), true},
		{"an answer over IPv4", dns4, time.Minute, ip(udp, peer, us4, 53, 4000, 0), true},
		{"a late answer", dns, embedded.AnswerWithin + 1, ip(udp, them, us, 53, 4000, 0), false},
		{"from another port", dns, 0, ip(udp, them, us, 54, 4000, 0), false},
		{"to another port", dns, 0, ip(udp, them, us, 53, 4001, 0), false},
		{"from somebody else", dns, 0, ip(udp, "fd00::3", us, 53, 4000, 0), false},
		{"a ping", nil, 0, ip(icmp6, them, us, 0x8000, 0, 0), true},
		{"a ping over IPv4", nil, 0, ip(icmp, peer, us4, 0x0800, 0, 0), true},
		{"another protocol", nil, 0, ip(132, them, us, 1, 1, 0), false},
		{"an extension header", nil, 0, ip(0, them, us, 1, 1, 0), false},
		{"a fragment", nil, 0, fragment(ip(tcp, peer, us4, 22, 5, ack)), false},
		{"half a header", nil, 0, ip(tcp, them, us, 22, 5, ack)[:50], false},
		{"no port", nil, 0, ip(udp, them, us, 53, 4000, 0)[:42], false},
		{"no packet", nil, 0, nil, false},
		{"a header that is longer than the packet", nil, 0, append([]byte{0x4f}, ip(tcp, peer, us4, 22, 5, ack)[1:]...), false},
	} {
		now := time.Hour
		p := &pipe{}
		a := embedded.NewAnswers(p, func() time.Duration { return now })
		send(t, a, p, c.sent)
		now += c.passed
		if n, err := a.Write([][]byte{append(make([]byte, 3), c.packet...)}, 3); n != 1 || err != nil || p.got == 1 != c.passes {
			t.Errorf("%s: passes %v, want %v (%v)", c.name, p.got == 1, c.passes, err)
		}
	}
}

// send has the machine send a packet.
func send(t *testing.T, a *embedded.Answers, p *pipe, packet []byte) {
	t.Helper()
	if packet == nil {
		return
	}
	p.sends = [][]byte{packet}
	sizes, bufs := make([]int, 2), [][]byte{make([]byte, 200), make([]byte, 200)}
	if n, err := a.Read(bufs, sizes, 3); n != 1 || err != nil || sizes[0] != len(packet) {
		t.Fatalf("read %d packets, %v", n, err)
	}
}

// Who asks very many is answered by the latest.
func TestAnswersAreBounded(t *testing.T) {
	now := time.Hour
	p := &pipe{}
	a := embedded.NewAnswers(p, func() time.Duration { return now })
	const many = 5000
	for i := range many {
		now += time.Millisecond
		send(t, a, p, ip(17, us, them, uint16(i), 53, 0))
	}
	for i := range many {
		if _, err := a.Write([][]byte{ip(17, them, us, 53, uint16(i), 0)}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if p.got != 4096 {
		t.Errorf("%d of %d are answered, want 4096", p.got, many)
	}
	if _, err := a.Write([][]byte{ip(17, them, us, 53, many-1, 0)}, 0); err != nil || p.got != 4097 {
		t.Errorf("the latest is not answered: %v %s", err, fmt.Sprint(p.got))
	}
}

func FuzzAnswers(f *testing.F) {
	for _, b := range [][]byte{nil, ip(6, them, us, 1, 2, 2), ip(17, peer, us4, 1, 2, 0), ip(58, them, us, 1, 2, 0)[:42]} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &pipe{}
		a := embedded.NewAnswers(p, func() time.Duration { return 0 })
		if n, err := a.Write([][]byte{b}, 0); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if p.got == 1 && len(b) > 9 && (b[0]>>4 == 6 && b[6] == 17 || b[0]>>4 == 4 && b[9] == 17) {
			t.Fatal("a datagram that nobody has asked for")
		}
	})
}
