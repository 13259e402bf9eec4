package mesh

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
)

func keyOf(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func pub(name string) stmt.Key { return stmt.KeyOf(keyOf(name)) }

// meshKey is a WireGuard public key, and as claims say it.
func meshKey(name string) stmt.Key { return stmt.Key([]byte(fmt.Sprintf("%-32.32s", name))) }
func text(k stmt.Key) string       { return base64.StdEncoding.EncodeToString(k[:]) }

// world is a swarm: what its people say, and a node of it that knows it all.
type world struct {
	t     *testing.T
	seq   uint64
	host  *crdt.Replica
	node  map[string]*crdt.Replica // by name, each with what it says itself
	olga  *crdt.Author
	id    string
	admit map[string][]byte
}

const netName = "test"

var netID = stmt.NewNetworkID(netName, pub("root"))

func open(t *testing.T, c crdt.ReplicaConfig) *crdt.Replica {
	c.Dir, c.Network, c.Engine = t.TempDir(), netID, crdt.NewModel()
	r, err := crdt.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// newWorld has olga run an instance of two replicas, on nodes one and two, with a
// laptop; otto, another owner, has one too.
func newWorld(t *testing.T) *world {
	w := &world{t: t, node: map[string]*crdt.Replica{}, admit: map[string][]byte{}}
	w.host = open(t, crdt.ReplicaConfig{Key: keyOf("one"), Root: pub("root")})
	for _, name := range []string{"one", "two", "three"} {
		w.node[name] = open(t, crdt.ReplicaConfig{Key: keyOf(name)})
		w.member(stmt.MemberBody{Key: pub(name), Role: stmt.RoleNode})
	}
	for _, name := range []string{"olga", "otto"} {
		w.member(stmt.MemberBody{Key: pub(name), Role: stmt.RoleOwner})
	}
	w.olga = w.author("olga")
	id, raws, err := w.olga.Create(crdt.Spec{Name: "app", Replicas: 2})
	w.all(raws, err)
	w.id = id
	w.all(w.olga.SetDevice(crdt.Device{Key: pub("laptop"), Name: "laptop", MeshKey: meshKey("laptop")}))
	w.claim("one", crdt.Claim{Slot: 0, MeshKey: text(meshKey("guest-one"))})
	w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("guest-two"))})
	return w
}

func (w *world) author(name string) *crdt.Author {
	a, err := crdt.NewAuthor(keyOf(name), netID, w.host.OwnerStatements(pub(name)))
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// all has the swarm hear what somebody says.
func (w *world) all(raws [][]byte, err error) [][]byte {
	w.t.Helper()
	if err == nil {
		_, err = w.host.Submit(context.Background(), raws...)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return raws
}

func (w *world) member(m stmt.MemberBody) []byte {
	w.t.Helper()
	w.seq++
	raw, err := stmt.SignMember(keyOf("root"), netID, m, nil, 1, w.seq)
	return w.all([][]byte{raw}, err)[0]
}

// says is what a node claims from now on of olga's instance, unpublished.
func (w *world) says(node string, c crdt.Claim) []byte {
	w.t.Helper()
	if c.Instance == "" {
		c.Instance = w.id
	}
	c.Owner, c.Phase, c.Ready = pub("olga"), crdt.ClaimRunning, true
	if err := w.node[node].SetClaims(context.Background(), []crdt.Claim{c}); err != nil {
		w.t.Fatal(err)
	}
	raws := w.node[node].ClaimStatements(c.Instance)
	return raws[len(raws)-1]
}

func (w *world) claim(node string, c crdt.Claim) []byte {
	raw := w.says(node, c)
	return w.all([][]byte{raw}, nil)[0]
}

func (w *world) pin() Pin {
	return Pin{Network: netName, Root: pub("root"), Owner: pub("olga"), Node: pub("one"), Instance: w.id}
}

// round tells a Verifier all that the host knows, and some more.
func (w *world) round(v *Verifier, more ...[]byte) (refused []error) {
	for _, raw := range slices.Concat(w.host.MeshStatements(pub("olga")), more) {
		if err := v.Tell(raw); err != nil {
			refused = append(refused, err)
		}
	}
	v.End(false)
	return refused
}

// rendered is parties as text.
func rendered(ps []policy.Party) string {
	var out []string
	for _, p := range ps {
		n := p.Name
		if p.Device.IsZero() {
			n = fmt.Sprintf("%s/%d", p.Name, p.Slot)
		}
		out = append(out, n+"="+strings.TrimSpace(string(p.Key[:])))
	}
	return strings.Join(out, " ")
}

// forged is raw with another key's signature, or in another's name with none.
func forged(t *testing.T, raw []byte, by string) []byte {
	t.Helper()
	st, err := stmt.Verify(raw, netID)
	if err != nil {
		t.Fatal(err)
	}
	if by == "" {
		out := slices.Clone(raw)
		out[len(out)-1] ^= 1
		return out
	}
	st.Author = stmt.Key{}
	out, err := stmt.Sign(keyOf(by), *st)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
