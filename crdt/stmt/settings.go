package stmt

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// DefaultZone is the zone of a network that has no other.
const DefaultZone = "dev.formation.cloud"

// MaxZone is the longest zone in bytes: the longest name below it,
// _65535._tcp.63.<app>.<owner>, leaves that much of the 253 of a domain name.
const MaxZone = 110

// DefaultPrefix4 is where the mesh of a network that says nothing else has its IPv4
// addresses.
var DefaultPrefix4 = netip.MustParsePrefix("10.128.0.0/9")

// A prefix is of a range that no router of the internet knows, and not of
// 192.168.0.0/16, where guests and most homes have their own networks. Each identity
// has 16 addresses to choose from: a /16 has room for 25,000 identities, which makes
// it nearly certain that all find one, and a /14 for 100,000.
var ranges4 = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("100.64.0.0/10"),
}

const longestPrefix4 = 16

// Settings are what holds for a whole network from its birth, beside name and root.
// They are in its ID, so that who knows that knows who tells them wrong, and a
// network with other settings is another network. A field that is zero is as usual.
type Settings struct {
	Prefix4 netip.Prefix `cbor:"prefix4,omitzero" json:"prefix4,omitzero"` // of the mesh's IPv4 addresses
	Zone    string       `cbor:"zone,omitempty" json:"zone,omitempty"`     // that the mesh's names end in
}

// Full is s with every field filled in.
func (s Settings) Full() Settings {
	if s.Prefix4 == (netip.Prefix{}) {
		s.Prefix4 = DefaultPrefix4
	}
	if s.Zone == "" {
		s.Zone = DefaultZone
	}
	return s
}

// Check says whether a network can have these.
func (s Settings) Check() error {
	s = s.Full()
	return errors.Join(checkPrefix4(s.Prefix4), checkZone(s.Zone))
}

// NetworkID is the ID of the network called name under root that has these settings.
func (s Settings) NetworkID(name string, root Key) NetworkID {
	id := NewNetworkID(name, root)
	if s = s.Full(); s == (Settings{}.Full()) {
		return id
	}
	h := sha256.New()
	h.Write([]byte("formation/settings/1\x00"))
	h.Write(id[:])
	h.Write(append(s.Prefix4.Addr().AsSlice(), byte(s.Prefix4.Bits())))
	h.Write([]byte(s.Zone))
	return NetworkID(h.Sum(nil))
}

func checkPrefix4(p netip.Prefix) error {
	inside := func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }
	switch {
	case !p.IsValid() || !slices.ContainsFunc(ranges4, inside):
		return fmt.Errorf("prefix %s is in none of 10.0.0.0/8, 172.16.0.0/12 and 100.64.0.0/10", p)
	case p != p.Masked():
		return fmt.Errorf("prefix %s has host bits; %s is meant", p, p.Masked())
	case p.Bits() > longestPrefix4:
		return fmt.Errorf("prefix %s is too small: at most /%d", p, longestPrefix4)
	}
	return nil
}

// outside are domains about which resolvers ask nobody, or somebody else.
var outside = []string{"local", "localhost", "invalid", "onion", "in-addr.arpa", "ip6.arpa"}

func checkZone(zone string) error {
	labels := strings.Split(zone, ".")
	switch {
	case len(zone) > MaxZone:
		return fmt.Errorf("a zone of %d bytes; at most %d leave room for names", len(zone), MaxZone)
	case len(labels) < 2:
		return fmt.Errorf("zone %q is not two labels or more, as fog.example.org", zone)
	case strings.Trim(labels[len(labels)-1], "0123456789") == "":
		return fmt.Errorf("zone %q ends like an address", zone)
	}
	for _, l := range labels {
		if !isLabel(l) {
			return fmt.Errorf("zone %q: %q is no label of small letters, digits and hyphens", zone, l)
		}
	}
	for _, o := range outside {
		if strings.HasSuffix("."+zone, "."+o) {
			return fmt.Errorf("zone %q: resolvers do not ask for names in %s", zone, o)
		}
	}
	return nil
}

func isLabel(l string) bool {
	return l != "" && len(l) <= 63 && l[0] != '-' && l[len(l)-1] != '-' &&
		strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
