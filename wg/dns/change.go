package dns

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// change makes a zone out of another.
type change struct {
	zone
	names edit[*node]
	back  edit[[]dns.RR]
}

func (z *zone) change() *change {
	c := &change{zone: *z}
	c.names.table, c.back.table = &c.zone.names, &c.zone.back
	return c
}

// absolute is the canonical form of a name relative to the zone; those of services
// are made here only.
func (z *zone) absolute(name string) (string, error) {
	full := dns.CanonicalName(name + "." + z.apex)
	if _, ok := dns.IsDomainName(full); !ok || name == "" || name[0] == '_' || strings.HasSuffix(name, ".") || strings.ContainsAny(name, `\ `) {
		return "", fmt.Errorf("%.80q is no name", name)
	}
	return full, nil
}

// check says what is wrong with a name; it returns it canonical and absolute.
func (z *zone) check(n Name) (string, error) {
	name, err := z.absolute(n.Name)
	if err != nil {
		return "", err
	}
	if len(n.Targets) > maxTargets || len(n.Services) > maxServices {
		return "", fmt.Errorf("%q has %d targets and %d services, the limits are %d and %d", n.Name, len(n.Targets), len(n.Services), maxTargets, maxServices)
	}
	seen := make(map[string]bool, len(n.Services))
	for _, s := range n.Services {
		label := dns.CanonicalName(s.Label)
		if _, ok := dns.IsDomainName(label + name); !ok || !strings.HasPrefix(label, "_") || strings.Count(label, ".") != 2 || strings.ContainsAny(label, `\ `) {
			return "", fmt.Errorf("%.80q is no service", s.Label)
		}
		if seen[label] {
			return "", fmt.Errorf("service %q of %q is given twice", s.Label, n.Name)
		}
		seen[label] = true
	}
	return name, nil
}

// add adds a name that was checked and is not there.
func (c *change) add(n Name, name string) {
	at := node{own: true}
	for _, t := range n.Targets {
		a, aaaa := addresses(name, t)
		at.a, at.aaaa = append(at.a, a...), append(at.aaaa, aaaa...)
	}
	c.give(name, at)
	c.leadBack(n, name)
	for _, s := range n.Services {
		full := dns.CanonicalName(s.Label + "." + name)
		at := node{own: true, extra: map[string][]dns.RR{}}
		for _, t := range n.Targets {
			if host, err := c.absolute(t.Host); err == nil {
				at.srv = append(at.srv, &dns.SRV{Hdr: header(full, dns.TypeSRV), Weight: 1, Port: s.Port, Target: host})
				a, aaaa := addresses(host, t)
				at.extra[host] = append(a, aaaa...)
			} // else it has none
		}
		c.give(full, at)
	}
}

// remove removes a name that was added.
func (c *change) remove(n Name, name string) {
	for _, s := range n.Services {
		c.take(dns.CanonicalName(s.Label + "." + name))
	}
	for _, rev := range c.reversed(n, name) {
		if rrs := c.back.get(rev); rrs != nil && rrs[0].(*dns.PTR).Ptr == name {
			c.back.remove(rev)
		}
	}
	c.take(name)
}

// give makes a name have what at has, and its parents exist.
func (c *change) give(name string, at node) {
	if old := c.names.get(name); old != nil {
		at.below = old.below
		c.names.set(name, &at)
		return
	}
	c.names.set(name, &at)
	for up := parent(name); ; up = parent(up) {
		next := node{below: 1}
		old := c.names.get(up)
		if old != nil {
			next = *old
			next.below++
		}
		c.names.set(up, &next)
		if old != nil {
			return
		}
	}
}

// take takes from a name what it was given; it and its parents are gone when
// nothing else keeps them.
func (c *change) take(name string) {
	next := node{below: c.names.get(name).below}
	for next.below == 0 && !next.own {
		c.names.remove(name)
		name = parent(name)
		next = *c.names.get(name)
		next.below--
	}
	c.names.set(name, &next)
}

// parent is the name above; below the apex every name has one.
func parent(name string) string {
	at, _ := dns.NextLabel(name, 0)
	return name[at:]
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

// leadBack makes the addresses of a machine's own name lead back to it; the last
// who has an address keeps it.
func (c *change) leadBack(n Name, name string) {
	for _, rev := range c.reversed(n, name) {
		c.back.set(rev, []dns.RR{&dns.PTR{Hdr: header(rev, dns.TypePTR), Ptr: name}})
	}
}

// reversed is the reverse names of those addresses.
func (c *change) reversed(n Name, name string) (out []string) {
	for _, t := range n.Targets {
		if host, err := c.absolute(t.Host); err != nil || host != name {
			continue
		}
		for _, a := range []netip.Addr{t.Addr4, t.Addr6} {
			// The error is of what is no address.
			if rev, err := dns.ReverseAddr(a.String()); err == nil {
				out = append(out, rev)
			}
		}
	}
	return out
}
