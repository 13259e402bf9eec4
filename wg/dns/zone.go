package dns

import (
	"hash/maphash"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// TTL is for how long others may keep an answer, in seconds, also that there is
// none: a replica that has died is gone from everywhere this long after.
const TTL = 5

// Name is what a name of the zone means. One without targets is there, and leads
// nowhere.
type Name struct {
	// Name is relative to the zone, without a dot at its end: "hello", "0.hello".
	Name     string
	Targets  []Target
	Services []Service
}

func (n Name) equal(o Name) bool {
	return n.Name == o.Name && slices.Equal(n.Targets, o.Targets) && slices.Equal(n.Services, o.Services)
}

// Target is a machine that a name leads to.
type Target struct {
	// Host is the machine's own name, relative to the zone, which SRV records give.
	// The addresses of the name that is its own target's Host lead back to it.
	// Empty: it has none.
	Host  string
	Addr4 netip.Addr // zero: none
	Addr6 netip.Addr // zero: none
}

// Service is a port of a name's targets: an SRV record at Label.Name, where Label
// is like "_ssh._tcp".
type Service struct {
	Label string
	Port  uint16
}

// Bounds of a zone.
const (
	maxNames    = 100_000
	maxTargets  = 64 // of a name
	maxServices = 64 // of a name
)

// zone is what is answered; it never changes. The next one shares with it what is
// the same.
type zone struct {
	apex    string // canonical
	reverse []netip.Prefix
	soa     []dns.RR
	ns      []dns.RR
	names   table[*node]    // by canonical name; parents of names are there too
	back    table[[]dns.RR] // by canonical reverse name
}

// node is a name's records; a name without any exists all the same, and so does a
// name that others are below.
type node struct {
	a, aaaa, srv []dns.RR
	extra        map[string][]dns.RR // addresses of the hosts that srv names
	own          bool                // it has been given, by itself or as a service
	below        int                 // how many names are right below it
}

func newZone(apex string, reverse []netip.Prefix) *zone {
	z := &zone{apex: apex, reverse: reverse}
	z.soa = []dns.RR{&dns.SOA{Hdr: header(apex, dns.TypeSOA), Ns: "ns." + apex, Mbox: "nobody.invalid.", Serial: 1, Refresh: TTL, Retry: TTL, Expire: TTL, Minttl: TTL}}
	z.ns = []dns.RR{&dns.NS{Hdr: header(apex, dns.TypeNS), Ns: "ns." + apex}}
	e := edit[*node]{table: &z.names}
	e.set(apex, &node{own: true})
	return z
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: TTL}
}

// table is a map in parts, so that a change copies one of them.
type table[V any] [256]map[string]V

var seed = maphash.MakeSeed()

func part(key string) uint8 { return uint8(maphash.String(seed, key)) }

func (t *table[V]) get(key string) V { return t[part(key)][key] }

// edit changes a table whose parts are somebody else's too.
type edit[V any] struct {
	table *table[V]
	mine  [256]bool // the part is a copy
}

func (e *edit[V]) part(key string) map[string]V {
	i := part(key)
	if !e.mine[i] {
		e.mine[i] = true
		fresh := make(map[string]V, len(e.table[i])+1)
		for k, v := range e.table[i] {
			fresh[k] = v
		}
		e.table[i] = fresh
	}
	return e.table[i]
}

func (e *edit[V]) get(key string) V    { return e.table.get(key) }
func (e *edit[V]) set(key string, v V) { e.part(key)[key] = v }
func (e *edit[V]) remove(key string)   { delete(e.part(key), key) }
