package wg

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Candidates is how many IPv4 addresses an identity may claim, one after the
// other. With 100,000 identities in 10.128.0.0/9 none needed more than three
// (simulated).
const Candidates = 16

// DefaultPrefix4 is where a mesh's IPv4 addresses are, unless it says otherwise.
var DefaultPrefix4 = netip.MustParsePrefix("10.128.0.0/9")

// An IPv4 prefix is at least as long as the private network 10.0.0.0/8, and
// leaves room for some networks of 256 addresses beside the reserved one.
const (
	shortest4 = 8
	longest4  = 22
)

// Space is the addresses of one mesh. Its methods are pure.
type Space struct {
	network [32]byte
	prefix4 netip.Prefix
	prefix6 netip.Prefix
}

// NewSpace makes the address space of the network with that ID. prefix4 is /8 to /22; the
// zero Prefix is [DefaultPrefix4].
func NewSpace(network [32]byte, prefix4 netip.Prefix) (Space, error) {
	if prefix4 == (netip.Prefix{}) {
		prefix4 = DefaultPrefix4
	}
	switch {
	case !prefix4.Addr().Is4():
		return Space{}, fmt.Errorf("wg: %s is not an IPv4 prefix", prefix4)
	case prefix4 != prefix4.Masked():
		return Space{}, fmt.Errorf("wg: %s has host bits; %s is meant", prefix4, prefix4.Masked())
	case prefix4.Bits() < shortest4 || prefix4.Bits() > longest4:
		return Space{}, fmt.Errorf("wg: prefix %s: want /%d to /%d", prefix4, shortest4, longest4)
	}
	s := Space{network: network, prefix4: prefix4}
	sum := s.hash("formation/formnet/1", nil)
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:])
	s.prefix6 = netip.PrefixFrom(netip.AddrFrom16(a), 48)
	return s, nil
}

// Prefix6 is the /48 of the mesh: fd, and 40 bits of a hash of the network's ID,
// as RFC 4193 wants them random.
func (s Space) Prefix6() netip.Prefix { return s.prefix6 }

// Prefix4 is where the mesh's IPv4 addresses are.
func (s Space) Prefix4() netip.Prefix { return s.prefix4 }

// Contains says whether a may be somebody's address in the mesh.
func (s Space) Contains(a netip.Addr) bool { return s.prefix4.Contains(a) || s.Prefix6().Contains(a) }

// Address6 is the IPv6 address of an identity: 80 bits of a hash, so that a
// million identities collide with a probability below 10⁻¹².
func (s Space) Address6(identity []byte) netip.Addr {
	a := s.Prefix6().Addr().As16()
	sum := s.hash("formation/formnet6/1", identity)
	copy(a[6:], sum[:])
	return netip.AddrFrom16(a)
}

// Candidate4 is the i-th IPv4 address that an identity may claim, i below
// [Candidates]. The first 256 addresses of the prefix, and those that end in 0
// or 255, are nobody's candidates.
func (s Space) Candidate4(identity []byte, i int) netip.Addr {
	sum := s.hash("formation/formnet4/1", append(slices.Clone(identity), byte(i)))
	h := binary.BigEndian.Uint64(sum[:])
	nets := uint64(1)<<(24-s.prefix4.Bits()) - 1
	base := binary.BigEndian.Uint32(s.prefix4.Addr().AsSlice())
	at := base + uint32(1+h%nets)<<8 + uint32(1+h/nets%254)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, at)))
}

// DNS4 is the address at which every node of the mesh answers for itself
// questions about names: .53 of the reserved first 256.
func (s Space) DNS4() netip.Addr {
	a := s.prefix4.Addr().As4()
	a[3] = 53
	return netip.AddrFrom4(a)
}

// MayClaim says whether a is one of the identity's candidates.
func (s Space) MayClaim(a netip.Addr, identity []byte) bool {
	for i := range Candidates {
		if s.Candidate4(identity, i) == a {
			return true
		}
	}
	return false
}

// hash is of domain ‖ 00 ‖ network ‖ identity.
func (s Space) hash(domain string, identity []byte) [sha256.Size]byte {
	b := append([]byte(domain), 0)
	b = append(b, s.network[:]...)
	return sha256.Sum256(append(b, identity...))
}

// Claim is somebody's wish for an IPv4 address.
type Claim struct {
	Address  netip.Addr
	Identity []byte
	// Admitted orders claimants by when the network's root let them in, lower
	// first. It must not be anything that a claimant can choose: identities can
	// be made until one hashes to an address that is wanted (minutes of one core).
	Admitted uint64
}

// Resolve gives each address to one of its claimants, by its index in claims:
// of those that may claim it the one that was admitted first, of equal ones the
// one with the lowest hash. The order of claims does not matter. Who gets
// nothing moves on to its next candidate.
func (s Space) Resolve(claims []Claim) map[netip.Addr]int {
	won := make(map[netip.Addr]int, len(claims))
	for i, c := range claims {
		if !s.MayClaim(c.Address, c.Identity) {
			continue
		}
		if j, taken := won[c.Address]; !taken || s.before(c, claims[j]) {
			won[c.Address] = i
		}
	}
	return won
}

func (s Space) before(a, b Claim) bool {
	if c := cmp.Compare(a.Admitted, b.Admitted); c != 0 {
		return c < 0
	}
	x, y := s.hash("formation/formnet4/tie/1", a.Identity), s.hash("formation/formnet4/tie/1", b.Identity)
	return bytes.Compare(x[:], y[:]) < 0
}

// Choose returns the address that an identity should claim: the one it has, as
// long as nobody else won it, else its first candidate that is not taken. ok is
// false when all are. Who has lost an address to an earlier member moves; who
// holds one is not moved by another's wish alone, as taken says who won.
func (s Space) Choose(identity []byte, has netip.Addr, taken func(netip.Addr) bool) (a netip.Addr, ok bool) {
	if s.MayClaim(has, identity) && !taken(has) {
		return has, true
	}
	for i := range Candidates {
		if a := s.Candidate4(identity, i); !taken(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
