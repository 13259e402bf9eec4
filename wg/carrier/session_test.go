package carrier

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// pair is two hosts' sessions with each other over a network that decides what
// arrives.
type pair struct {
	now  time.Duration
	side [2]*session
	home [2]netip.AddrPort // where each is
	// pass says whether a datagram of side i to an address arrives, and from where
	// it then seems to come.
	pass  func(i int, to netip.AddrPort) (from netip.AddrPort, ok bool)
	sent  int
	trail strings.Builder
}

func newPair(pass func(p *pair, i int, to netip.AddrPort) (netip.AddrPort, bool)) *pair {
	p := &pair{home: [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")}}
	p.pass = func(i int, to netip.AddrPort) (netip.AddrPort, bool) { return pass(p, i, to) }
	for i := range p.side {
		p.side[i] = &session{ours: secret{uint64(i + 1), [32]byte{byte(i + 1)}}}
	}
	p.side[0].theirs, p.side[1].theirs = p.side[1].ours, p.side[0].ours
	return p
}

// run lets time pass; side 0 sends something every step while it is busy.
func (p *pair) run(d time.Duration, busy bool) {
	for end := p.now + d; p.now < end; p.now += tickEvery {
		for i, s := range p.side {
			if busy {
				s.used = p.now
			}
			for _, o := range s.tick(p.now) {
				p.carry(i, o)
			}
		}
		if text := fmt.Sprintf("%v %v", p.side[0].route(p.now), p.side[1].route(p.now)); !strings.HasSuffix(p.trail.String(), text+"\n") {
			fmt.Fprintf(&p.trail, "%s %s\n", p.now, text)
		}
	}
}

func (p *pair) carry(i int, o outgoing) {
	p.sent++
	from, ok := p.pass(i, o.to)
	if !ok || o.to != p.home[1-i] && !p.mapped(1-i, o.to) {
		return
	}
	if echo, _, _ := p.side[1-i].receive(p.now, o.b, from); echo != nil {
		p.carry(1-i, outgoing{from, echo})
	}
}

func (p *pair) mapped(i int, a netip.AddrPort) bool { return a.Port() == uint16(100+i) }

func open(p *pair, i int, _ netip.AddrPort) (netip.AddrPort, bool) { return p.home[i], true }

func (s *session) straight(now time.Duration) bool {
	r := s.route(now)
	return r.straight.IsValid() && !r.stream
}

func TestPathIsFoundWhereOneSideIsKnown(t *testing.T) {
	p := newPair(open)
	p.side[0].learn([]netip.AddrPort{p.home[1]}, true) // the other learns it from the probes
	p.run(time.Second, true)
	for i, s := range p.side {
		if !s.straight(p.now) {
			t.Errorf("side %d goes by %v", i, s.route(p.now))
		}
	}
}

// When UDP is cut the stream takes over within Trust, and the path is back within
// a beat and a tick of its return.
func TestCutAndReturn(t *testing.T) {
	cut := false
	p := newPair(func(p *pair, i int, to netip.AddrPort) (netip.AddrPort, bool) { return p.home[i], !cut })
	p.side[0].learn([]netip.AddrPort{p.home[1]}, true)
	p.run(10*time.Second, true)
	cut = true
	p.run(Trust+2*tickEvery, true)
	for i, s := range p.side {
		if r := s.route(p.now); r.straight.IsValid() || !r.stream {
			t.Errorf("side %d goes by %v after UDP was cut\n%s", i, r, &p.trail)
		}
	}
	cut = false
	p.run(beat+2*tickEvery, true)
	for i, s := range p.side {
		if !s.straight(p.now) {
			t.Errorf("side %d is not back: %v\n%s", i, s.route(p.now), &p.trail)
		}
	}
}

// Behind two NATs that let in only what was asked for: probes of both sides at
// each other's outer addresses open the holes.
func TestBothBehindNATs(t *testing.T) {
	outer := [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:100"), netip.MustParseAddrPort("198.51.100.2:101")}
	opened := map[string]bool{}
	p := newPair(func(_ *pair, i int, to netip.AddrPort) (netip.AddrPort, bool) {
		opened[fmt.Sprint(i, to)] = true
		return outer[i], to == outer[1-i] && opened[fmt.Sprint(1-i, outer[i])]
	})
	for i, s := range p.side {
		s.learn([]netip.AddrPort{p.home[1-i], outer[1-i]}, true)
	}
	p.run(2*time.Second, true)
	for i, s := range p.side {
		if r := s.route(p.now); r.straight != outer[1-i] || r.stream {
			t.Errorf("side %d goes by %v\n%s", i, r, &p.trail)
		}
	}
}

func TestNobodyIsAskedForNothing(t *testing.T) {
	p := newPair(open)
	p.side[0].learn([]netip.AddrPort{p.home[1]}, true)
	p.run(10*time.Second, true)
	p.run(busyFor, false)
	p.sent = 0
	p.run(time.Minute, false)
	if p.sent > 4*4 { // a probe and an echo each way every 20 s, and the first
		t.Errorf("%d datagrams in an idle minute", p.sent)
	}
	for _, s := range p.side {
		if r := s.route(p.now); !r.straight.IsValid() {
			t.Errorf("an idle path was given up: %v", r)
		}
	}
	p.run(beat, true) // and is proved again when there is something to send
	for i, s := range p.side {
		if !s.straight(p.now) {
			t.Errorf("side %d goes by %v", i, s.route(p.now))
		}
	}
}

func TestForgedProbes(t *testing.T) {
	p := newPair(open)
	s := p.side[0]
	stranger := netip.MustParseAddrPort("203.0.113.9:9")
	good := s.ours.seal(probe{kind: kindProbe, number: 5})
	if echo, _, ok := s.receive(0, good, stranger); !ok || len(echo) != len(good) {
		t.Fatal("a good probe was refused, or amplified")
	}
	if _, _, ok := s.receive(0, good, p.home[1]); ok {
		t.Error("a probe counted twice")
	}
	other := secret{s.ours.session, [32]byte{9}}
	for name, b := range map[string][]byte{
		"another key":                other.seal(probe{kind: kindProbe, number: 6}),
		"another session":            secret{77, s.ours.key}.seal(probe{kind: kindProbe, number: 6}),
		"an echo to nothing":         s.ours.seal(probe{kind: kindEcho, number: 6}),
		"an unknown kind":            s.ours.seal(probe{kind: 3, number: 6}),
		"a probe with a flipped bit": flip(s.ours.seal(probe{kind: kindProbe, number: 6})),
		"a short one":                good[:probeSize-1],
		"nothing":                    nil,
	} {
		if echo, seen, ok := s.receive(0, b, stranger); ok || echo != nil || seen.IsValid() {
			t.Errorf("%s passed", name)
		}
	}
	if s.route(0).straight.IsValid() {
		t.Error("a path is trusted that was never proved")
	}
}

func flip(b []byte) []byte {
	b[12] ^= 1
	return b
}

// A host that names many addresses cannot push out one that works, nor make us
// send to all of them for ever.
func TestCandidatesAreBounded(t *testing.T) {
	p := newPair(open)
	p.side[0].learn([]netip.AddrPort{p.home[1]}, true)
	p.run(3*time.Second, true)
	r := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		var many []netip.AddrPort
		for range 50 {
			many = append(many, netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(r.Uint32())}), uint16(1+r.UintN(65535))))
		}
		p.side[0].learn(many, true)
		p.run(time.Second, true)
		if n := len(p.side[0].candidates); n > maxCandidates {
			t.Fatalf("%d candidates", n)
		}
	}
	if !p.side[0].straight(p.now) {
		t.Errorf("the path that works is gone: %v", p.side[0].route(p.now))
	}
	p.side[0].learn([]netip.AddrPort{{}, netip.MustParseAddrPort("0.0.0.0:5"), netip.MustParseAddrPort("192.0.2.7:0"),
		netip.MustParseAddrPort("224.0.0.1:5"), Address("somebody")}, true)
	for _, c := range p.side[0].candidates {
		if c.at.Addr().IsUnspecified() || c.at.Addr().IsMulticast() || c.at.Port() == 0 || IsHost(c.at) {
			t.Errorf("%s is a candidate", c.at)
		}
	}
}

func FuzzProbe(f *testing.F) {
	s := secret{1, [32]byte{1}}
	f.Add(s.seal(probe{kind: kindProbe, number: 1}))
	f.Add(s.seal(probe{kind: kindEcho, number: 1, seen: netip.MustParseAddrPort("[2001:db8::1]:7")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := s.open(b)
		if err != nil {
			return
		}
		if again, err := s.open(s.seal(p)); err != nil || again != p {
			t.Errorf("%v became %v (%v)", p, again, err)
		}
	})
}

func FuzzGreeting(f *testing.F) {
	f.Add(greeting{secret{1, [32]byte{2}}, whereabouts{[]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, 1}}.marshal())
	f.Add([]byte{greetingByte})
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parseGreeting(b)
		if err != nil {
			return
		}
		again, err := parseGreeting(g.marshal())
		if err != nil || again.secret != g.secret || !slices.Equal(again.addrs, g.addrs) || again.own != g.own || len(g.addrs) > maxCandidates || g.own > len(g.addrs) {
			t.Errorf("%v became %v (%v)", g, again, err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add([]byte{0, 3, 1, 2, 3, 0, 1, 9})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, buf := bytes.NewReader(b), make([]byte, maxFrame)
		var again bytes.Buffer
		for {
			frame, err := readFrame(r, buf)
			if err != nil {
				break
			}
			if err := writeFrame(&again, frame); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Errorf("%x became %x", b, again.Bytes())
		}
	})
}
