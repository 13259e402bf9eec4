package carrier

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// How paths are proved and trusted. Three lost probes in a row are no reason to
// leave a path; with Tailscale's 2 s and 6.5 s the stream took over 7.0 s after UDP
// was cut (measured in TestPunchedPath, both ends), which is the most allowed.
const (
	// Trust is for how long after its last proof a straight path is used.
	Trust = 5500 * time.Millisecond

	beat     = 1500 * time.Millisecond // between probes of the path in use, while it is used
	firstTry = 250 * time.Millisecond  // between the first probes of a candidate: holes need both sides
	tries    = 8                       // so many of them
	retry    = 10 * time.Second        // between later probes of what does not answer
	idleBeat = 20 * time.Second        // keeps a NAT's hole, whose life is 30 s at least (RFC 4787)

	busyFor = 10 * time.Second // a host counts as in use after a datagram
	idleFor = 5 * time.Minute  // after which a host is forgotten

	maxCandidates = 16 // addresses of a host
	maxFlying     = 8  // probes of a candidate without an echo yet
)

// session is what is known of the paths to one host. It is pure: time is given,
// what is to be sent is returned. Not safe for concurrent use.
type session struct {
	ours, theirs secret // theirs is zero until the host has told it
	number       uint64 // of the last probe
	heard        uint64 // the highest number of a probe by the host
	candidates   []*candidate
	current      *candidate    // the straight path used last
	used         time.Duration // the last datagram, either way
}

// candidate is an address at which the host may be.
type candidate struct {
	at     netip.AddrPort
	named  bool // by the host or by whoever knows; else it was seen only
	own    bool // an address of the host itself, not of a NAT before it
	sent   time.Duration
	count  int // probes sent since the last echo
	proved time.Duration
	ok     bool // proved at least once
	rtt    time.Duration
	flying []flight
}

type flight struct {
	number uint64
	at     time.Duration
}

// outgoing is a datagram to be sent.
type outgoing struct {
	to netip.AddrPort
	b  []byte
}

// learn adds addresses at which the host may be. What it has is kept; beyond the
// bound those go that have proved nothing.
func (s *session) learn(addrs []netip.AddrPort, named bool) {
	for _, a := range addrs {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || IsHost(a) {
			continue
		}
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if c := s.candidate(a); c != nil {
			c.named = c.named || named
			continue
		}
		if len(s.candidates) >= maxCandidates && !s.dropWorst() {
			return
		}
		s.candidates = append(s.candidates, &candidate{at: a, named: named})
	}
}

// own says which addresses are the host's own.
func (s *session) own(addrs []netip.AddrPort) {
	for _, c := range s.candidates {
		c.own = slices.ContainsFunc(addrs, func(a netip.AddrPort) bool {
			return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) == c.at
		})
	}
}

func (s *session) candidate(a netip.AddrPort) *candidate {
	i := slices.IndexFunc(s.candidates, func(c *candidate) bool { return c.at == a })
	if i < 0 {
		return nil
	}
	return s.candidates[i]
}

// dropWorst makes room: of those that never answered the one tried most, seen
// ones before named ones.
func (s *session) dropWorst() bool {
	worst := -1
	for i, c := range s.candidates {
		if c.ok {
			continue
		}
		if worst < 0 || cmp.Or(cmp.Compare(b2i(!c.named), b2i(!s.candidates[worst].named)), cmp.Compare(c.count, s.candidates[worst].count)) > 0 {
			worst = i
		}
	}
	if worst < 0 || s.candidates[worst].count < tries {
		return false
	}
	s.candidates = slices.Delete(s.candidates, worst, worst+1)
	return true
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tick returns the probes that are due.
func (s *session) tick(now time.Duration) []outgoing {
	if s.theirs == (secret{}) {
		return nil
	}
	var out []outgoing
	best := s.best(now)
	for _, c := range s.candidates {
		if c.count > 0 || c.sent > 0 || c.ok {
			if now-c.sent < s.interval(now, c, c == best) {
				continue
			}
		}
		s.number++
		c.sent = now
		c.count++
		if c.flying = append(c.flying, flight{s.number, now}); len(c.flying) > maxFlying {
			c.flying = slices.Delete(c.flying, 0, 1)
		}
		out = append(out, outgoing{c.at, s.theirs.seal(probe{kind: kindProbe, number: s.number})})
	}
	return out
}

func (s *session) interval(now time.Duration, c *candidate, best bool) time.Duration {
	busy := now-s.used < busyFor
	switch {
	case c.ok && best && busy:
		return beat
	case c.ok && now-c.proved < idleFor && !busy:
		return idleBeat
	case !c.ok && c.count < tries:
		return firstTry
	case c.ok && c.count < tries && busy:
		return beat // it may come back
	default:
		return retry
	}
}

// receive judges a probe or echo that came from an address. It returns an echo to
// be sent, the address at which the host sees us when it says so, and whether
// the datagram was the host's.
func (s *session) receive(now time.Duration, b []byte, from netip.AddrPort) (echo []byte, seen netip.AddrPort, ok bool) {
	p, err := s.ours.open(b)
	if err != nil {
		return nil, netip.AddrPort{}, false
	}
	if p.kind == kindProbe {
		if p.number <= s.heard || s.theirs == (secret{}) {
			return nil, netip.AddrPort{}, false // a repetition, or too early to answer
		}
		s.heard = p.number
		s.learn([]netip.AddrPort{from}, false)
		return s.theirs.seal(probe{kind: kindEcho, number: p.number, seen: from}), netip.AddrPort{}, true
	}
	for _, c := range s.candidates {
		i := slices.IndexFunc(c.flying, func(f flight) bool { return f.number == p.number })
		if i < 0 {
			continue
		}
		// That the echo came shows that the probe arrived, wherever it came from.
		c.rtt, c.proved, c.ok, c.count = now-c.flying[i].at, now, true, 0
		c.flying = slices.Delete(c.flying, 0, i+1)
		return nil, p.seen, true
	}
	return nil, netip.AddrPort{}, false
}

// best is the straight path to use, nil when none is trusted. The one in use is
// left only for one that is much quicker.
func (s *session) best(now time.Duration) *candidate {
	if s.current != nil && !s.current.trusted(now) {
		s.current = nil
	}
	for _, c := range s.candidates {
		if c.trusted(now) && (s.current == nil || c.rtt < s.current.rtt*3/4) {
			s.current = c
		}
	}
	return s.current
}

func (c *candidate) trusted(now time.Duration) bool { return c.ok && now-c.proved <= Trust }

// stale is a straight path that worked and has not been asked lately: as good a
// guess as any, but not alone.
func (s *session) stale(now time.Duration) *candidate {
	var best *candidate
	for _, c := range s.candidates {
		if c.ok && c.count <= 1 && now-c.proved <= idleBeat+Trust && (best == nil || c.proved > best.proved) {
			best = c
		}
	}
	return best
}

// route is where datagrams for a host go.
type route struct {
	straight netip.AddrPort // invalid: none
	stream   bool           // over the stream, also or only
	rtt      time.Duration  // of the straight path
}

// route says how to send at this moment.
func (s *session) route(now time.Duration) route {
	if c := s.best(now); c != nil {
		return route{straight: c.at, rtt: c.rtt}
	}
	if c := s.stale(now); c != nil {
		return route{straight: c.at, stream: true, rtt: c.rtt}
	}
	return route{stream: true}
}

// sources are the addresses from which the host's datagrams may come: where it has
// proved to be, and where its probes seem to be from.
func (s *session) sources() (proved, seen []netip.AddrPort) {
	for _, c := range s.candidates {
		switch {
		case c.ok:
			proved = append(proved, c.at)
		case !c.named:
			seen = append(seen, c.at)
		}
	}
	return proved, seen
}
