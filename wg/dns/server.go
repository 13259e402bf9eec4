// Package dns answers for the names of a mesh from a snapshot.
//
// Guarantees: an answer is in an order that changes with every question; a name
// that is not there is denied with the zone's SOA, so that the denial is kept no
// longer than an answer; what is outside the zone and its reverse zones is
// refused, whoever asks; a change costs what has changed.
//
// Whoever has a scope need not say it: with the scope "owner", "hello" is
// "hello.owner" unless there is a "hello" for everybody. Answers then are as the
// question was.
//
// Not guaranteed: that an answer is still true when it is used: it may be [TTL]
// seconds old. There is no DNSSEC: who can answer in this machine's name can lie.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Config is what a [Server] needs.
type Config struct {
	Zone    string         // "dev.formation.cloud"
	Reverse []netip.Prefix // addresses whose names are asked here
	// Scope is what an asker with that address may leave out at the end of names,
	// relative to the zone; "": nothing. nil: nobody may. It is called by several
	// goroutines.
	Scope func(asker netip.Addr) string
}

// Server answers questions. Its methods may be called by several goroutines.
type Server struct {
	cfg  Config
	zone atomic.Pointer[zone] // never nil
	turn atomic.Uint32

	setting sync.Mutex
	have    map[string]*held // in zone, by name as given
	byName  map[string]*held // the same, and those of an ongoing Set, by canonical name
	sets    int
}

// New makes a server of a zone without names.
func New(cfg Config) (*Server, error) {
	apex := dns.CanonicalName(cfg.Zone)
	if _, ok := dns.IsDomainName(apex); !ok || apex == "." {
		return nil, fmt.Errorf("dns: %.80q is no zone", cfg.Zone)
	}
	s := &Server{cfg: cfg, have: map[string]*held{}, byName: map[string]*held{}}
	s.zone.Store(newZone(apex, cfg.Reverse))
	return s, nil
}

// Set says what names there are, all of them. What cannot be a name is left out
// and told in the error; the others count.
func (s *Server) Set(names []Name) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	c := s.zone.Load().change()
	var problems []string
	if len(names) > maxNames {
		problems = append(problems, fmt.Sprintf("%d names, the limit is %d", len(names), maxNames))
		names = names[:maxNames]
	}
	s.sets++
	var changed []*held
	for _, n := range names {
		h, err := s.hold(&c.zone, n)
		if err != nil {
			if len(problems) < maxProblems {
				problems = append(problems, err.Error())
			}
			continue
		}
		if s.have[n.Name] != h {
			changed = append(changed, h)
		}
	}
	s.apply(c, changed)
	if len(problems) > 0 {
		return fmt.Errorf("dns: %s", strings.Join(problems, "; "))
	}
	return nil
}

// held is a name that is in the zone, or will be.
type held struct {
	Name
	name string // canonical
	in   int    // the number of the last Set that gave it
}

// hold returns the name that is in the zone when it is the same, or checks it.
func (s *Server) hold(z *zone, n Name) (*held, error) {
	h := s.have[n.Name]
	if h == nil || !h.equal(n) {
		name, err := z.check(n)
		if err != nil {
			return nil, err
		}
		n.Targets, n.Services = slices.Clone(n.Targets), slices.Clone(n.Services)
		h = &held{Name: n, name: name}
	}
	if other := s.byName[h.name]; other != nil && other.in == s.sets {
		return nil, fmt.Errorf("%q is given twice", n.Name)
	}
	h.in = s.sets
	s.byName[h.name] = h
	return h, nil
}

// maxProblems is how many names' errors are told.
const maxProblems = 10

// apply makes the zone be what the last Set gave, of which changed is new or
// different. All that goes, goes first: an address may change hands.
func (s *Server) apply(c *change, changed []*held) {
	for given, old := range s.have {
		if old.in != s.sets {
			c.remove(old.Name, old.name)
			delete(s.have, given)
			if s.byName[old.name] == old {
				delete(s.byName, old.name)
			}
		}
	}
	for _, h := range changed {
		c.add(h.Name, h.name)
		s.have[h.Name.Name] = h
	}
	s.zone.Store(&c.zone)
}

// Timeouts and bounds of TCP.
const (
	tcpTimeout = 5 * time.Second
	tcpQueries = 128 // on a connection
)

// Run answers on a socket and a listener, either of which may be nil, until ctx
// ends or one of them does. Both are closed then.
func (s *Server) Run(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	var servers []*dns.Server
	if udp != nil {
		servers = append(servers, &dns.Server{PacketConn: udp, Handler: s})
	}
	if tcp != nil {
		servers = append(servers, &dns.Server{Listener: tcp, Handler: s, ReadTimeout: tcpTimeout, WriteTimeout: tcpTimeout,
			IdleTimeout: func() time.Duration { return tcpTimeout }, MaxTCPQueries: tcpQueries})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	errs := make(chan error, len(servers))
	for _, d := range servers {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		all.Go(func() {
			defer cancel()
			defer close(done)
			errs <- d.ActivateAndServe()
		})
		all.Go(func() {
			select {
			case <-started:
			case <-done:
				return
			}
			<-ctx.Done()
			// It fails when the server has ended by itself, and then says why.
			_ = d.Shutdown()
		})
	}
	<-ctx.Done()
	all.Wait()
	close(errs)
	var failed []error
	for err := range errs {
		if !errors.Is(err, net.ErrClosed) {
			failed = append(failed, err)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	return nil
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := s.answer(q, s.scope(w.RemoteAddr()))
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), maxUDP)
		}
	}
	m.Truncate(size)
	// Whoever asked is gone, or asks again.
	_ = w.WriteMsg(m)
}

func (s *Server) scope(asker net.Addr) string {
	if s.cfg.Scope == nil {
		return ""
	}
	var at netip.AddrPort
	switch a := asker.(type) {
	case *net.UDPAddr:
		at = a.AddrPort()
	case *net.TCPAddr:
		at = a.AddrPort()
	}
	if !at.IsValid() {
		return ""
	}
	return s.cfg.Scope(at.Addr().Unmap().WithZone(""))
}

// maxUDP is what passes everywhere without fragments (DNS flag day 2020).
const maxUDP = 1232

// answer is the answer to a message of somebody with that scope.
func (s *Server) answer(q *dns.Msg, scope string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, false)
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
			return m
		}
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
	case q.Question[0].Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
	default:
		s.zone.Load().look(m, q.Question[0], scope, s.turn.Add(1))
	}
	return m
}

// look fills in the answer to a question; turn picks who comes first.
func (z *zone) look(m *dns.Msg, q dns.Question, scope string, turn uint32) {
	name := dns.CanonicalName(q.Name)
	if !z.contains(name) {
		z.lookBack(m, name, q.Qtype, scope)
		return
	}
	m.Authoritative = true
	n, scoped := z.names.get(name), false
	if n == nil && scope != "" {
		n = z.names.get(strings.TrimSuffix(name, z.apex) + dns.CanonicalName(scope) + z.apex)
		scoped = n != nil
	}
	if n == nil {
		m.Rcode, m.Ns = dns.RcodeNameError, z.soa
		return
	}
	switch {
	case q.Qtype == dns.TypeA:
		m.Answer = rotate(n.a, turn)
	case q.Qtype == dns.TypeAAAA:
		m.Answer = rotate(n.aaaa, turn)
	case q.Qtype == dns.TypeSRV:
		m.Answer = rotate(n.srv, turn)
		for _, rr := range m.Answer {
			m.Extra = append(m.Extra, n.extra[rr.(*dns.SRV).Target]...)
		}
	case q.Qtype == dns.TypeSOA && name == z.apex:
		m.Answer = z.soa
	case q.Qtype == dns.TypeNS && name == z.apex:
		m.Answer = z.ns
	}
	if scoped {
		m.Answer = named(m.Answer, name)
	}
	if len(m.Answer) == 0 {
		m.Ns = z.soa
	}
}

// contains says whether a canonical name is the zone's. A dot that is part of a
// label ends none.
func (z *zone) contains(name string) bool {
	above, ok := strings.CutSuffix(name, z.apex)
	return ok && (above == "" || strings.HasSuffix(above, ".") && !strings.HasSuffix(above, `\.`))
}

// named is copies of a name's records as those of another name; they share their
// addresses.
func named(rrs []dns.RR, name string) []dns.RR {
	out := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		switch r := rr.(type) {
		case *dns.A:
			c := *r
			out[i] = &c
		case *dns.AAAA:
			c := *r
			out[i] = &c
		default:
			out[i] = dns.Copy(rr)
		}
		out[i].Header().Name = name
	}
	return out
}

// lookBack answers what name an address has, for addresses of the mesh.
func (z *zone) lookBack(m *dns.Msg, name string, kind uint16, scope string) {
	if !z.mine(name) {
		m.Rcode = dns.RcodeRefused
		return
	}
	m.Authoritative = true
	rrs := z.back.get(name)
	switch {
	case rrs == nil:
		m.Rcode, m.Ns = dns.RcodeNameError, z.soa
	case kind == dns.TypePTR:
		m.Answer = rrs
		host := rrs[0].(*dns.PTR).Ptr
		if short, ok := strings.CutSuffix(host, dns.CanonicalName(scope)+z.apex); ok && scope != "" {
			m.Answer = []dns.RR{&dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: short + z.apex}}
		}
	default:
		m.Ns = z.soa
	}
}

// mine says whether a reverse name is of an address in the reverse zones.
func (z *zone) mine(name string) bool {
	a, ok := addressOf(name)
	if !ok {
		return false
	}
	for _, p := range z.reverse {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// addressOf is the address that a whole reverse name asks about.
func addressOf(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		l := strings.Split(rest, ".")
		if len(l) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(l[3] + "." + l[2] + "." + l[1] + "." + l[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		b.WriteByte(rest[i])
		if i > 0 && rest[i-1] != '.' {
			return netip.Addr{}, false
		}
		if b.Len()%5 == 4 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// rotate returns rrs beginning with another one each turn.
func rotate(rrs []dns.RR, turn uint32) []dns.RR {
	n := len(rrs)
	if n < 2 {
		return rrs
	}
	out := make([]dns.RR, 0, n)
	at := int(turn % uint32(n))
	return append(append(out, rrs[at:]...), rrs[:at]...)
}
