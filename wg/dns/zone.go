package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// TTL is for how long others may keep an answer, in seconds, also that there is
// none: a replica that has died is gone from everywhere this long after.
const TTL = 5

// Name is what a name of the zone means.
type Name struct {
	// Name is relative to the zone, without a dot at its end: "hello", "0.hello".
	Name     string
	Targets  []Target
	Services []Service
}

// Target is a machine that a name leads to.
type Target struct {
	// Host is the machine's own name, relative to the zone, to which its addresses
	// lead back and which SRV records give. Empty: it has none.
	Host    string
	Addr4   netip.Addr // zero: none
	Addr6   netip.Addr // zero: none
	Healthy bool       // others are named to nobody
}

// Service is a port of a name's targets: an SRV record at Label.Name, where Label
// is like "_ssh._tcp".
type Service struct {
	Label string
	Port  uint16
}

// Bounds of a zone.
const (
	maxNames   = 100_000
	maxTargets = 64 // of a name
)

// zone is what is answered; it never changes.
type zone struct {
	apex    string // canonical
	reverse []netip.Prefix
	soa     []dns.RR
	ns      []dns.RR
	names   map[string]*node // by canonical name; parents of names are there too
	back    map[string][]dns.RR
}

// node is a name's records; a name without any exists all the same.
type node struct {
	a, aaaa, srv []dns.RR
	extra        map[string][]dns.RR // addresses of the hosts that srv names
}

// newZone builds a zone. What cannot be a name is left out and told in the error;
// the rest counts.
func newZone(apex string, reverse []netip.Prefix, names []Name) (*zone, error) {
	z := &zone{apex: apex, reverse: reverse, names: map[string]*node{apex: {}}, back: map[string][]dns.RR{}}
	z.soa = []dns.RR{&dns.SOA{Hdr: header(apex, dns.TypeSOA), Ns: "ns." + apex, Mbox: "nobody.invalid.", Serial: 1, Refresh: TTL, Retry: TTL, Expire: TTL, Minttl: TTL}}
	z.ns = []dns.RR{&dns.NS{Hdr: header(apex, dns.TypeNS), Ns: "ns." + apex}}
	var problems []string
	if len(names) > maxNames {
		problems = append(problems, fmt.Sprintf("%d names, the limit is %d", len(names), maxNames))
		names = names[:maxNames]
	}
	for _, n := range names {
		if err := z.add(n); err != nil && len(problems) < 10 {
			problems = append(problems, err.Error())
		}
	}
	if len(problems) > 0 {
		return z, fmt.Errorf("dns: %s", strings.Join(problems, "; "))
	}
	return z, nil
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: TTL}
}

// absolute is the canonical form of a name relative to the zone.
func (z *zone) absolute(name string) (string, error) {
	full := dns.CanonicalName(name + "." + z.apex)
	if _, ok := dns.IsDomainName(full); !ok || name == "" || strings.HasSuffix(name, ".") || strings.ContainsAny(name, `\ `) {
		return "", fmt.Errorf("%.80q is no name", name)
	}
	return full, nil
}

func (z *zone) add(n Name) error {
	name, err := z.absolute(n.Name)
	if err != nil {
		return err
	}
	if z.names[name] != nil && !z.names[name].empty() {
		return fmt.Errorf("%q is given twice", n.Name)
	}
	at := z.exist(name)
	healthy := slices.DeleteFunc(slices.Clone(n.Targets), func(t Target) bool { return !t.Healthy })
	for _, t := range healthy[:min(len(healthy), maxTargets)] {
		a, aaaa := addresses(name, t)
		at.a, at.aaaa = append(at.a, a...), append(at.aaaa, aaaa...)
		z.leadBack(t)
	}
	for _, s := range n.Services {
		if err := z.serve(name, s, healthy); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) empty() bool { return len(n.a)+len(n.aaaa)+len(n.srv) == 0 }

// exist makes a name and its parents exist.
func (z *zone) exist(name string) *node {
	n := z.names[name]
	if n == nil {
		n = &node{}
		z.names[name] = n
	}
	for at, end := dns.NextLabel(name, 0); !end && name[at:] != z.apex; at, end = dns.NextLabel(name, at) {
		if z.names[name[at:]] == nil {
			z.names[name[at:]] = &node{}
		}
	}
	return n
}

func addresses(name string, t Target) (a, aaaa []dns.RR) {
	if t.Addr4.Is4() {
		a = []dns.RR{&dns.A{Hdr: header(name, dns.TypeA), A: t.Addr4.AsSlice()}}
	}
	if t.Addr6.Is6() {
		aaaa = []dns.RR{&dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: t.Addr6.AsSlice()}}
	}
	return a, aaaa
}

// leadBack makes the addresses of a target lead to its host name.
func (z *zone) leadBack(t Target) {
	host, err := z.absolute(t.Host)
	if err != nil {
		return // it has none
	}
	for _, a := range []netip.Addr{t.Addr4, t.Addr6} {
		if !a.IsValid() {
			continue
		}
		// The error is of what is no address.
		if rev, err := dns.ReverseAddr(a.String()); err == nil {
			z.back[rev] = []dns.RR{&dns.PTR{Hdr: header(rev, dns.TypePTR), Ptr: host}}
		}
	}
}

// serve adds the SRV records of a service.
func (z *zone) serve(name string, s Service, targets []Target) error {
	full := dns.CanonicalName(s.Label + "." + name)
	if _, ok := dns.IsDomainName(full); !ok || !strings.HasPrefix(s.Label, "_") || strings.Count(s.Label, ".") != 1 {
		return fmt.Errorf("%.80q is no service", s.Label)
	}
	at := z.exist(full)
	at.extra = map[string][]dns.RR{}
	for _, t := range targets {
		host, err := z.absolute(t.Host)
		if err != nil {
			continue
		}
		at.srv = append(at.srv, &dns.SRV{Hdr: header(full, dns.TypeSRV), Weight: 1, Port: s.Port, Target: host})
		a, aaaa := addresses(host, t)
		at.extra[host] = append(a, aaaa...)
	}
	return nil
}
