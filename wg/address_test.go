package wg

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func testSpace(t testing.TB, prefix string) Space {
	t.Helper()
	var p4 netip.Prefix
	if prefix != "" {
		p4 = netip.MustParsePrefix(prefix)
	}
	p, err := NewSpace([32]byte{1, 2, 3}, p4)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func identity(n int) []byte { return binary.BigEndian.AppendUint32([]byte("n"), uint32(n)) }

// These are on the wire: another implementation must come to the same.
func TestAddressesOfAnIdentity(t *testing.T) {
	p := testSpace(t, "")
	var b bytes.Buffer
	fmt.Fprintln(&b, p.Prefix6(), p.Prefix4(), p.DNS4())
	for n := range 3 {
		fmt.Fprintln(&b, p.Address6(identity(n)), p.Candidate4(identity(n), 0), p.Candidate4(identity(n), 15))
	}
	const want = `fd5b:995c:5fb7::/48 10.128.0.0/9 10.128.0.53
fd5b:995c:5fb7:12fb:f8b9:626e:bc49:1adf 10.243.230.217 10.218.4.197
fd5b:995c:5fb7:b20e:d10f:2056:e2f8:ec01 10.179.83.245 10.214.66.239
fd5b:995c:5fb7:89b5:33c1:3721:2c7a:4fbb 10.183.224.133 10.169.74.52
`
	if got := b.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPrefixesThatNoMeshCanHave(t *testing.T) {
	for _, prefix := range []string{"fd00::/48", "10.128.0.1/9", "10.0.0.0/7", "0.0.0.0/0", "10.1.2.0/24", "10.1.0.0/23"} {
		if p, err := NewSpace([32]byte{}, netip.MustParsePrefix(prefix)); err == nil {
			t.Errorf("%s made %v", prefix, p)
		}
	}
}

func TestCandidatesAreHostAddressesInThePrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(shortest4, longest4).Draw(t, "bits")
		p, err := NewSpace([32]byte{9}, netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), bits).Masked())
		if err != nil {
			t.Fatal(err)
		}
		id := rapid.SliceOfN(rapid.Byte(), 1, 60).Draw(t, "identity")
		i := rapid.IntRange(0, Candidates-1).Draw(t, "i")
		a := p.Candidate4(id, i)
		last := a.As4()[3]
		if !p.Contains(a) || last == 0 || last == 255 || netip.PrefixFrom(p.Prefix4().Addr(), 24).Contains(a) {
			t.Errorf("candidate %d in %s is %s", i, p.Prefix4(), a)
		}
		if !p.MayClaim(a, id) {
			t.Errorf("%s may not be claimed", a)
		}
		if six := p.Address6(id); !p.Contains(six) || six == p.Address6(append(id, 0)) {
			t.Errorf("IPv6 address %s", six)
		}
	})
}

// Everybody claims, looks at who won, and moves on: everybody ends with an
// address of his own, whatever the order in which claims are seen.
func TestEverybodyFindsAnAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, err := NewSpace([32]byte{7}, netip.MustParsePrefix("10.7.0.0/22")) // 762 addresses
		if err != nil {
			t.Fatal(err)
		}
		n := rapid.IntRange(1, 40).Draw(t, "claimants")
		claims := make([]Claim, n)
		for i := range claims {
			claims[i] = Claim{Identity: identity(i), Admitted: uint64(rapid.IntRange(0, 3).Draw(t, "admitted"))}
			claims[i].Address = p.Candidate4(claims[i].Identity, 0)
		}
		for round := 0; ; round++ {
			won := p.Resolve(claims)
			shuffled := rapid.Permutation(claims).Draw(t, "order")
			for a, i := range p.Resolve(shuffled) {
				if !bytes.Equal(shuffled[i].Identity, claims[won[a]].Identity) {
					t.Fatalf("%s depends on the order", a)
				}
			}
			if len(won) == n {
				return
			}
			if round == Candidates*n {
				t.Fatalf("%d of %d have an address after %d rounds", len(won), n, round)
			}
			for i := range claims {
				a, ok := p.Choose(claims[i].Identity, claims[i].Address, func(a netip.Addr) bool { j, taken := won[a]; return taken && j != i })
				if !ok {
					t.Fatalf("no address is left for %d", i)
				}
				claims[i].Address = a
			}
		}
	})
}

func TestResolve(t *testing.T) {
	p := testSpace(t, "")
	a, b := identity(1), identity(2)
	mine := p.Candidate4(a, 0)
	if won := p.Resolve([]Claim{{mine, b, 0}}); len(won) != 0 {
		t.Errorf("an address that is not a candidate was won: %v", won)
	}
	if won := p.Resolve([]Claim{{mine, b, 0}, {mine, a, 9}}); won[mine] != 1 || len(won) != 1 {
		t.Errorf("somebody without the right to it took an address: %v", won)
	}
	for i := range Candidates {
		if got, ok := p.Choose(a, p.Candidate4(a, i), func(netip.Addr) bool { return false }); !ok || got != p.Candidate4(a, i) {
			t.Errorf("left candidate %d for %s", i, got)
		}
	}
	if got, ok := p.Choose(a, mine, func(netip.Addr) bool { return true }); ok {
		t.Errorf("chose %s, which is taken", got)
	}
}
