package reconcile

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/wg"
)

// crowded is a mesh of few addresses, where claims meet.
func crowded(t *testing.T) *GuestMesh {
	space, err := wg.NewSpace([32]byte{1}, netip.MustParsePrefix("10.0.0.0/22"))
	if err != nil {
		t.Fatal(err)
	}
	return &GuestMesh{Space: space, Endpoint: func() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:51820") }}
}

func TestAddressesOfGuests(t *testing.T) {
	m := crowded(t)
	self, other := stmt.Key{1}, stmt.Key{2}
	mine := policy.Party{Node: self, Instance: "app", Slot: 0}.Identity()
	first, second := m.Space.Candidate4(mine, 0).String(), m.Space.Candidate4(mine, 1).String()
	// thief is a claim by another node that may have our first candidate too.
	thief := crdt.Claim{Node: other}
	for i := 0; thief.Instance == ""; i++ {
		name := "x" + strings.Repeat("y", i)
		if m.Space.MayClaim(m.Space.Candidate4(mine, 0), (policy.Party{Node: other, Instance: name}).Identity()) {
			thief.Instance, thief.Address = name, first
		}
	}
	late := map[stmt.Key]uint64{other: 1}
	early := map[stmt.Key]uint64{self: 1}
	for _, tt := range []struct {
		name   string
		has    string
		others []crdt.Claim
		nodes  []crdt.Node
		ranks  map[stmt.Key]uint64
		want   string
	}{
		{"nobody else", "", nil, nil, nil, first},
		{"it has one", second, nil, nil, nil, second},
		{"it has what nobody may give it", "10.0.3.77", nil, nil, nil, first},
		{"it has no address", "app", nil, nil, nil, first},
		{"another was admitted earlier", first, []crdt.Claim{thief}, nil, early, second},
		{"another was admitted later", first, []crdt.Claim{thief}, nil, late, first},
		{"another claims what it may not", "", []crdt.Claim{{Node: other, Instance: "zzz", Slot: 7, Address: first}}, nil, early, first},
		{"a node claims what it may not", "", nil, []crdt.Node{{Key: other, Address4: netip.MustParseAddr(first)}}, early, first},
	} {
		w := plan.World{Claims: map[string][]crdt.Claim{}, Nodes: tt.nodes}
		for _, c := range tt.others {
			w.Claims[c.Instance] = append(w.Claims[c.Instance], c)
		}
		claims := []crdt.Claim{
			{Node: self, Instance: "app", MeshKey: "key", Address: tt.has},
			{Node: self, Instance: "db", Address: "10.0.1.1", Address6: "fd00::1", Endpoint: "192.0.2.9:1"}, // its guest is not up
		}
		m.address(func(k stmt.Key) uint64 { return tt.ranks[k] }, w, self, claims)
		c := claims[0]
		if c.Address != tt.want || c.Address6 != m.Space.Address6(mine).String() || c.Endpoint != "192.0.2.1:51820" {
			t.Errorf("%s: %s, %s, %s; want %s", tt.name, c.Address, c.Address6, c.Endpoint, tt.want)
		}
		if d := claims[1]; d.Address+d.Address6+d.Endpoint != "" {
			t.Errorf("%s: a guest without a key is at %+v", tt.name, d)
		}
	}
	none := []crdt.Claim{{Node: self, Instance: "app", MeshKey: "key", Address: first, Address6: "fd00::1", Endpoint: "192.0.2.1:1"}}
	(*GuestMesh)(nil).address(nil, plan.World{}, self, none)
	if c := none[0]; c.MeshKey+c.Address+c.Address6+c.Endpoint != "" {
		t.Errorf("without a mesh: %+v", c)
	}
}

// The guests of one node never get one address twice.
func TestAddressesOfOneNodeDiffer(t *testing.T) {
	m := crowded(t)
	m.Endpoint = func() netip.AddrPort { return netip.AddrPort{} }
	var claims []crdt.Claim
	for i := range 200 {
		claims = append(claims, crdt.Claim{Instance: "app", Slot: i % 64, Node: stmt.Key{1}, MeshKey: "key"})
		claims[i].Instance += strings.Repeat("x", i/64)
	}
	for range 2 { // what is chosen once stays
		before := map[int]string{}
		for i, c := range claims {
			before[i] = c.Address
		}
		m.address(func(stmt.Key) uint64 { return 0 }, plan.World{}, stmt.Key{1}, claims)
		seen := map[string]bool{}
		for i, c := range claims {
			if c.Address == "" || seen[c.Address] || before[i] != "" && before[i] != c.Address || c.Endpoint != "" {
				t.Fatalf("%d: %+v, had %s", i, c, before[i])
			}
			seen[c.Address] = true
		}
	}
}
