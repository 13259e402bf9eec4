package crdt

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// vector is one example of docs/wire.md for a second implementation.
type vector struct {
	Name   string `json:"name"`
	Author string `json:"author_seed,omitempty"` // Ed25519 seed, hex
	ID     string `json:"id,omitempty"`          // statement ID, hex
	Bytes  string `json:"bytes"`                 // hex, or text of a ticket
}

type vectorFile struct {
	Network string   `json:"network"` // name "test" under the root key
	Root    string   `json:"root"`
	Short   string   `json:"short"`
	Vectors []vector `json:"vectors"`
}

const vectorPath = "testdata/vectors.json"

// The vectors in testdata are what this version writes; -rewrite makes them
// anew, which is a change of the wire format and needs a reason.
func TestVectors(t *testing.T) {
	want, err := json.MarshalIndent(makeVectors(t), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *rewrite {
		if err := os.WriteFile(vectorPath, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(vectorPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs from what this version writes (see -rewrite)", vectorPath)
	}
}

func makeVectors(t *testing.T) vectorFile {
	w := newWorld(t)
	f := vectorFile{Network: hex.EncodeToString(w.net[:]), Root: w.root.String(), Short: w.net.Short()}
	add := func(name, author string, raw []byte) {
		st, err := stmt.Verify(raw, w.net)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.Vectors = append(f.Vectors, vector{
			Name: name, Author: hex.EncodeToString(keyOf(author).Seed()), ID: st.ID.String(), Bytes: hex.EncodeToString(raw),
		})
	}
	plain := func(name string, b []byte) {
		f.Vectors = append(f.Vectors, vector{Name: name, Bytes: hex.EncodeToString(b)})
	}
	must := func(raw []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	invite := must(stmt.NewInvite(keyOf("root"), w.net, keyOf("invite").Seed(), stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode}, Expires: testNow.Unix()}))
	bounded := must(stmt.NewInvite(keyOf("root"), w.net, keyOf("invite").Seed(), stmt.InviteBody{
		Roles: []stmt.Role{stmt.RoleOwner}, Expires: testNow.Unix(), Quota: stmt.Quota{Instances: 4, Replicas: 8, CPUs: 16, Memory: 8 << 30, Disk: 1 << 40},
	}))
	ticket := stmt.Ticket{Name: "test", Root: w.root, Bootstrap: []string{"/ip4/192.0.2.1/tcp/51820"}, InviteSeed: keyOf("invite").Seed(), Invite: invite}
	add("invite", "root", invite)
	add("invite with a quota", "root", bounded)
	f.Vectors = append(f.Vectors, vector{Name: "ticket", Bytes: ticket.String()})
	settings := stmt.Settings{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Zone: "fog.example.org"}
	settled := settings.NetworkID("test", w.root)
	plain("network ID with a prefix and a zone", settled[:])
	f.Vectors = append(f.Vectors, vector{Name: "ticket with a prefix and a zone", Bytes: stmt.Ticket{Name: "test", Root: w.root, Settings: settings}.String()})
	member := must(ticket.Join(pub("n1"), stmt.RoleNode, testNow.Add(-time.Hour)))
	add("member by invite", "invite", member)
	add("member by the root", "root", w.admit("olga", stmt.RoleOwner))
	add("member with a quota", "root", w.member(stmt.MemberBody{Key: pub("olga"), Role: stmt.RoleOwner, Quota: stmt.Quota{Instances: 3}}))
	add("revocation", "root", w.member(stmt.MemberBody{Key: pub("eve"), Revoked: true}))
	operators, err := stmt.SignOperators(keyOf("n1"), w.net, []stmt.Key{pub("op")})
	add("operators of a node", "n1", must(operators, err))
	add("revocation by an operator", "op", must(stmt.SignMember(keyOf("op"), w.net, stmt.MemberBody{Key: pub("n1"), Role: stmt.RoleNode, Revoked: true}, operators, 0, 0)))
	add("any owner", "root", w.member(stmt.MemberBody{AnyOwner: true, Role: stmt.RoleOwner}))
	a := w.author("olga", nil)
	id, raws, err := a.Create(Spec{
		Name: "hello", Pack: testPack, Replicas: 2, VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30,
		Env: map[string]string{"A": "1"}, Expose: []string{"8080/tcp"}, Operators: []stmt.Key{pub("n1")},
		Partition: PartitionFence, Voters: []stmt.Key{pub("n1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	add("owner page", "olga", raws[0])
	add("spec root", "olga", raws[1])
	set, err := a.Set(id, func(s *Spec) { s.Replicas, s.Env = 3, nil })
	if err != nil {
		t.Fatal(err)
	}
	add("spec change", "olga", set[0])
	dw := newWorld(t)
	_, droot, err := dw.author("olga", nil).Create(Spec{Name: "shared", Delegates: []stmt.Key{pub("dee")}})
	if err != nil {
		t.Fatal(err)
	}
	dset, err := dw.delegate("dee", "olga", droot).Set(mustInstance(t, droot, dw), func(s *Spec) { s.Replicas = 2 })
	if err != nil {
		t.Fatal(err)
	}
	add("spec root with a delegate", "olga", droot[1])
	add("spec change by a delegate", "dee", dset[0])
	secret, err := a.SetSecret(id, Secret{Name: "DB_PASSWORD", Env: true, Sum: [32]byte{1}, Box: []byte("age ciphertext"), To: []stmt.Key{pub("n1")}})
	if err != nil {
		t.Fatal(err)
	}
	add("secret", "olga", secret[0])
	gone, err := a.RemoveSecret(id, "DB_PASSWORD")
	if err != nil {
		t.Fatal(err)
	}
	add("secret removed", "olga", gone[0])
	add("node", "n1", w.node("n1", 1, 1, Node{
		Addrs: []string{"/ip4/192.0.2.1/tcp/51820"}, Total: Resources{4, 8 << 30, 100 << 30}, Labels: map[string]string{"disk": "ssd"}, Accel: "kvm",
	}))
	add("node on the mesh", "n1", newWorld(t).node("n1", 1, 1, Node{
		Operators: operators, MeshKey: pub("mesh"), Address4: netip.MustParseAddr("10.129.2.3"),
	}))
	add("node with a floor", "n1", newWorld(t).floored("n1", 2, 7, Node{}, mark{Epoch: 2, Seq: 4}))
	claim := Claim{Instance: id, Owner: pub("olga"), Slot: 1, Generation: 1, Phase: ClaimRunning, Ready: true, Pack: testPack, SpecGeneration: 2, StartedAt: 1_750_000_000}
	add("claim", "n1", w.claim("n1", 1, 2, claim, false))
	add("claim tombstone", "n1", w.claim("n1", 1, 3, claim, true))
	add("base", "root", must(stmt.SignBase(keyOf("root"), w.net, stmt.BaseBody{Name: "debian:12", CID: "bafyreia"}, 1, 1)))
	add("hint: suspicion", "n1", must(stmt.SignHint(keyOf("n1"), w.net, stmt.HintBody{Peer: pub("n2"), Epoch: 4, Count: 1}, 2, 1)))
	add("hint: contradiction", "n2", must(stmt.SignHint(keyOf("n2"), w.net, stmt.HintBody{Peer: pub("n2"), Alive: true, Epoch: 4, Count: 2}, 4, 1)))
	session := must(stmt.SignSession(keyOf("olga"), w.net, stmt.SessionBody{Client: pub("client"), Server: pub("n1"), Expires: testNow.Unix()}))
	add("session", "olga", session)
	phone, err := newWorld(t).author("olga", nil).SetDevice(Device{Key: pub("phone"), Name: "phone", MeshKey: pub("mesh")})
	if err != nil {
		t.Fatal(err)
	}
	add("owner page of devices", "olga", phone[0])
	own, err := newWorld(t).author("olga", nil).SetDevice(Device{Key: pub("n1"), Name: "attic", Node: true})
	if err != nil {
		t.Fatal(err)
	}
	add("owner page with a node", "olga", own[0])
	add("session of a device", "phone", must(stmt.SignSession(keyOf("phone"), w.net, stmt.SessionBody{Client: pub("client"), Server: pub("n1"), Expires: testNow.Unix(), Owner: pub("olga")})))
	plain("hello", must(stmt.EncodeHello(stmt.Hello{Member: member, Session: session})))
	plain("gossip message", must(encodeGossip([][]byte{raws[0], raws[1]})))
	plain("log", appendFrame(appendFrame([]byte(logMagic), raws[0]), raws[1]))
	one, two := w.state(), w.state()
	applyAll(one, w.raws)
	applyAll(two, raws)
	for i, b := range transcript(t, one, two) {
		plain([]string{"anti-entropy, initiator says", "anti-entropy, responder says"}[i], b)
	}
	return f
}

// mustInstance is the instance of a root, the second of two statements.
func mustInstance(t *testing.T, raws [][]byte, w *world) string {
	t.Helper()
	st, err := stmt.Peek(raws[1], w.net)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := decodeSpec(st)
	if err != nil {
		t.Fatal(err)
	}
	return b.instance(st.Author).String()
}

// transcript holds one session and returns what each side said.
func transcript(t testing.TB, a, b *State) [2][]byte {
	ca, cb := net.Pipe()
	var said [2]bytes.Buffer
	side := func(s *State, c net.Conn, said *bytes.Buffer) *aeSession {
		return &aeSession{rw: tee{c, said}, idx: s.index(), touch: func(int) {}, apply: func([][]byte) error { return nil }}
	}
	done := make(chan error, 1)
	go func() { done <- side(b, cb, &said[1]).respond() }()
	if _, err := side(a, ca, &said[0]).initiate(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return [2][]byte{said[0].Bytes(), said[1].Bytes()}
}

type tee struct {
	net.Conn
	said *bytes.Buffer
}

func (t tee) Write(b []byte) (int, error) {
	t.said.Write(b)
	return t.Conn.Write(b)
}
