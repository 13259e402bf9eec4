package crdt

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// keyOf returns a fixed private key by name.
func keyOf(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func pub(name string) stmt.Key { return stmt.KeyOf(keyOf(name)) }

// seeded is a deterministic source of actors and devices.
func seeded(n uint64) io.Reader {
	var seed [32]byte
	seed[0], seed[1] = byte(n), byte(n>>8)
	return rand.NewChaCha8(seed)
}

var testNow = time.Unix(1_750_000_000, 0)

// world makes statements of a private network by what people do in it.
type world struct {
	t       interface{ Fatalf(string, ...any) }
	net     stmt.NetworkID
	root    stmt.Key
	authors uint64
	seq     uint64
	raws    [][]byte
	most    quotas // of its states
}

func newWorld(t interface{ Fatalf(string, ...any) }) *world {
	root := pub("root")
	return &world{t: t, net: stmt.NewNetworkID("test", root), root: root, most: standard}
}

func (w *world) must(raw []byte, err error) []byte {
	if err != nil {
		w.t.Fatalf("statement: %v", err)
	}
	w.raws = append(w.raws, raw)
	return raw
}

func (w *world) member(m stmt.MemberBody) []byte {
	w.seq++
	return w.must(stmt.SignMember(keyOf("root"), w.net, m, nil, 1, w.seq))
}

func (w *world) admit(name string, role stmt.Role) []byte {
	return w.member(stmt.MemberBody{Key: pub(name), Role: role})
}

// disown takes a node out by the word of an operator whom it has named.
func (w *world) disown(op, node string) []byte {
	via, err := stmt.SignOperators(keyOf(node), w.net, []stmt.Key{pub(op), pub("another")})
	if err != nil {
		w.t.Fatalf("operators: %v", err)
	}
	return w.must(stmt.SignMember(keyOf(op), w.net, stmt.MemberBody{Key: pub(node), Role: stmt.RoleNode, Revoked: true}, via, 0, 0))
}

func (w *world) author(name string, raws [][]byte) *Author { return w.delegate(name, name, raws) }

// delegate is an author of owner's with the key of name.
func (w *world) delegate(name, owner string, raws [][]byte) *Author {
	w.authors++
	a, err := newAuthor(keyOf(name), pub(owner), w.net, raws, seeded(w.authors))
	if err != nil {
		w.t.Fatalf("author: %v", err)
	}
	a.Now = func() time.Time { return testNow }
	return a
}

func (w *world) register(name string, kind stmt.Kind, epoch, seq uint64, body []byte, err error) []byte {
	if err != nil {
		w.t.Fatalf("body: %v", err)
	}
	return w.must(stmt.Sign(keyOf(name), stmt.Statement{Kind: kind, Network: w.net, Epoch: epoch, Seq: seq, Body: body}))
}

func (w *world) node(name string, epoch, seq uint64, n Node) []byte {
	return w.floored(name, epoch, seq, n, mark{})
}

// floored is a node register that voids the claims before floor.
func (w *world) floored(name string, epoch, seq uint64, n Node, floor mark) []byte {
	body, err := encodeNode(n, floor)
	return w.register(name, stmt.KindNode, epoch, seq, body, err)
}

func (w *world) claim(name string, epoch, seq uint64, c Claim, gone bool) []byte {
	body, err := encodeClaim(c, gone)
	return w.register(name, stmt.KindClaim, epoch, seq, body, err)
}

func (w *world) base(name string, seq uint64, base string) []byte {
	body, err := stmt.Marshal(stmt.BaseBody{Name: base, CID: testPack})
	return w.register(name, stmt.KindBase, 0, seq, body, err)
}

func (w *world) state() *State {
	s := NewState(w.net, w.root, NewModel())
	s.most = w.most
	return s
}

// render writes everything a View says.
func render(v *View) string {
	var b strings.Builder
	line := func(what string, x any) {
		j, err := json.Marshal(x)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(&b, "%s %s\n", what, j)
	}
	for _, s := range v.Instances() {
		line("instance", s)
		for _, c := range v.Claims(s.ID) {
			line("  claim", c)
		}
		for _, c := range v.Secrets(s.ID) {
			line("  secret", c)
		}
	}
	for _, n := range v.Nodes() {
		line("node", n)
		line("  claims", v.ClaimsBy(n.Key))
	}
	for _, k := range v.Members() {
		q, bounded := v.Quota(k)
		line("member", fmt.Sprint(k, v.Roles(k), v.Revoked(k), v.OperatorOf(k), q, bounded))
	}
	for _, o := range []string{"olga", "otto"} {
		line("devices", v.Devices(pub(o)))
	}
	line("any", v.AnyOwner())
	line("bases", v.Bases())
	return b.String()
}

// applyAll applies raws in order, ignoring what a merge may answer.
func applyAll(s *State, raws [][]byte) {
	for _, raw := range raws {
		_, _ = s.Apply(raw, time.Time{})
	}
}

// shuffled returns raws in a random order, some of them twice.
func shuffled(t *rapid.T, raws [][]byte) [][]byte {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
	var out [][]byte
	for _, i := range rng.Perm(len(raws)) {
		out = append(out, raws[i])
		if rng.IntN(4) == 0 {
			out = append(out, raws[rng.IntN(len(raws))])
		}
	}
	return out
}

// history draws what a few people do at once: owners on several devices that
// see each other's work only sometimes, nodes that claim, boot again and are
// revoked, and a root that admits, revokes and opens the door. With withdraw it
// also takes membership back from keys that may get it again.
func history(t *rapid.T, withdraw bool) *world {
	w := newWorld(t)
	owners, nodes := []string{"olga", "otto"}, []string{"n1", "n2", "n3"}
	for _, n := range nodes {
		w.admit(n, stmt.RoleNode)
	}
	w.admit("olga", stmt.RoleOwner)
	invite, err := stmt.NewInvite(keyOf("root"), w.net, keyOf("invite").Seed(), stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode, stmt.RoleOwner}, Expires: testNow.Unix()})
	if err != nil {
		t.Fatalf("invite: %v", err)
	}
	authors := map[string][]*Author{}
	for _, o := range owners {
		authors[o] = []*Author{w.author(o, nil), w.author(o, nil), w.delegate("dee", o, nil)}
	}
	var ids []string
	epoch, floors := map[string]uint64{}, map[string]mark{}
	for range rapid.IntRange(1, 40).Draw(t, "steps") {
		owner := rapid.SampledFrom(owners).Draw(t, "owner")
		node := rapid.SampledFrom(nodes).Draw(t, "node")
		dev := rapid.IntRange(0, 2).Draw(t, "device")
		a := authors[owner][dev]
		w.seq++
		switch rapid.IntRange(0, 18).Draw(t, "what") {
		case 16, 17:
			d := Device{Key: pub(rapid.SampledFrom([]string{"phone", "laptop", "ci"}).Draw(t, "key")), Name: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name")}
			change := func() ([][]byte, error) { return a.SetDevice(d) }
			if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
				change = func() ([][]byte, error) { return a.RemoveDevice(d.Key) }
			}
			raws, err := change()
			if err != nil && !errors.Is(err, ErrNotOwner) && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) {
				t.Fatalf("device: %v", err)
			}
			w.raws = append(w.raws, raws...)
		case 0, 1:
			id, raws, err := a.Create(Spec{Name: fmt.Sprintf("app-%d", len(ids)), Replicas: 2, Delegates: []stmt.Key{pub("dee")}})
			if dev == 2 && errors.Is(err, ErrNotOwner) {
				continue
			}
			if err != nil {
				t.Fatalf("create: %v", err)
			}
			ids, w.raws = append(ids, id), append(w.raws, raws...)
		case 2, 3, 4, 5:
			mine := a.Instances()
			if len(mine) == 0 {
				continue
			}
			id := mine[rapid.IntRange(0, len(mine)-1).Draw(t, "instance")].ID
			n := rapid.IntRange(0, 5).Draw(t, "n")
			raws, err := a.Set(id, func(s *Spec) {
				s.Replicas = n
				if n > 2 {
					s.Env = map[string]string{fmt.Sprint("K", n): fmt.Sprint(n)}
				}
				if n == 4 && dev < 2 {
					s.Delegates = []stmt.Key{pub("dan"), pub("dee")}[n%2+dev:]
				}
			})
			if dev == 2 && (errors.Is(err, ErrNotOwner) || errors.Is(err, stmt.ErrAuthority)) {
				continue
			}
			if err != nil {
				t.Fatalf("set: %v", err)
			}
			w.raws = append(w.raws, raws...)
		case 6:
			if mine := a.Instances(); len(mine) > 0 && dev < 2 {
				raws, err := a.Delete(mine[rapid.IntRange(0, len(mine)-1).Draw(t, "instance")].ID)
				if err != nil {
					t.Fatalf("delete: %v", err)
				}
				w.raws = append(w.raws, raws...)
			}
		case 7, 8: // the device sees all there is, as a new run of the CLI
			authors[owner][dev] = w.delegate([]string{owner, owner, "dee"}[dev], owner, w.raws)
		case 9:
			if rapid.Bool().Draw(t, "reboot") {
				epoch[node]++
			}
			if rapid.Bool().Draw(t, "floor") { // it only rises
				floors[node] = mark{Epoch: epoch[node], Seq: max(w.seq-uint64(rapid.IntRange(0, 20).Draw(t, "below")), floors[node].Seq)}
			}
			w.floored(node, epoch[node], w.seq, Node{Version: fmt.Sprint(w.seq), Total: Resources{CPUs: 4}}, floors[node])
		case 10, 11:
			if len(ids) > 0 {
				w.claim(node, epoch[node], w.seq, Claim{
					Instance: rapid.SampledFrom(ids).Draw(t, "claimed"), Slot: rapid.IntRange(0, 1).Draw(t, "slot"),
					Owner: pub(owner), Phase: ClaimRunning, Reason: fmt.Sprint(w.seq),
				}, rapid.Bool().Draw(t, "gone"))
			}
		case 12:
			quota := stmt.Quota{Instances: rapid.IntRange(0, 3).Draw(t, "quota")}
			switch rapid.IntRange(0, 5).Draw(t, "root") {
			case 0:
				w.member(stmt.MemberBody{AnyOwner: true, Role: stmt.RoleOwner, Quota: quota, Revoked: withdraw && rapid.Bool().Draw(t, "off")})
			case 4:
				w.member(stmt.MemberBody{Key: pub(owner), Role: stmt.RoleOwner, Quota: quota})
			case 1:
				w.member(stmt.MemberBody{Key: pub(node), Revoked: true})
			case 2:
				if withdraw {
					w.member(stmt.MemberBody{Key: pub("invite"), Revoked: true})
				}
			case 3:
				w.member(stmt.MemberBody{Key: pub(node), Role: stmt.RoleNode, Operator: pub("op")})
			case 5:
				w.disown(rapid.SampledFrom([]string{"op", "olga"}).Draw(t, "operator"), node)
			}
		case 14, 15:
			if mine := a.Instances(); len(mine) > 0 && dev < 2 {
				w.drawSecret(t, a, mine[rapid.IntRange(0, len(mine)-1).Draw(t, "instance")].ID)
			}
		case 18:
			w.base(rapid.SampledFrom([]string{"n1", "olga"}).Draw(t, "publisher"), w.seq, rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "base"))
		case 13:
			w.must(stmt.SignMember(keyOf("invite"), w.net, stmt.MemberBody{Key: pub(owner), Role: stmt.RoleOwner}, invite, 0, 0))
		}
	}
	return w
}

// diffLines says which lines one of two texts has alone.
func diffLines(want, got string) string {
	var out strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, l := range w {
		if !slices.Contains(g, l) {
			out.WriteString("\n- " + l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			out.WriteString("\n+ " + l)
		}
	}
	return out.String()
}

// diffIndex says which statements one of two states holds alone.
func diffIndex(a, b *State) string {
	var out strings.Builder
	one := func(what string, x, y *State) {
		for _, it := range x.index().items {
			if _, ok := y.index().byID[it.ID]; !ok {
				st, err := stmt.Peek(it.raws[0], x.network)
				fmt.Fprintf(&out, "\n%s: %s epoch %d seq %d by %s %x (%v)", what, st.Kind, st.Epoch, st.Seq, st.Author, st.Body, err)
			}
		}
	}
	one("only in order", a, b)
	one("only shuffled", b, a)
	return out.String()
}

// create makes an instance of an owner with what it says of it.
func (w *world) create(owner string) (id string, raws [][]byte, err error) {
	id, raws, err = w.author(owner, nil).Create(Spec{Name: "app", Replicas: 1})
	w.raws = append(w.raws, raws...)
	return id, raws, err
}
