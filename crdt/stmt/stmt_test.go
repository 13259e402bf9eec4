package stmt

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func priv(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

var (
	root    = KeyOf(priv("root"))
	testNet = NewNetworkID("test", root)
	now     = time.Unix(1_750_000_000, 0)
)

func TestKeyForms(t *testing.T) {
	// What libp2p's peer.IDFromPublicKey gives for this key.
	b, err := hex.DecodeString("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
	if err != nil {
		t.Fatal(err)
	}
	k := Key(b)
	if got := k.String(); got != "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq" {
		t.Errorf("peer ID %s", got)
	}
	std, url := base64.StdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b)
	for _, s := range []string{k.String(), hex.EncodeToString(b), std, url} {
		if got, err := ParseKey(s); err != nil || got != k {
			t.Errorf("ParseKey(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "12D3Koo", k.String()[:51], k.String() + "1", "Qm" + k.String(), hex.EncodeToString(b)[1:], strings.Repeat("x", 1000)} {
		if _, err := ParseKey(s); !errors.Is(err, ErrKey) {
			t.Errorf("ParseKey(%.60q) = %v, want ErrKey", s, err)
		}
	}
	if got, err := KeyOfPeerID(k.PeerID()); err != nil || got != k {
		t.Errorf("KeyOfPeerID: %v %v", got, err)
	}
}

func TestNetworkID(t *testing.T) {
	if s := testNet.Short(); len(s) != 16 || s != strings.ToLower(s) {
		t.Errorf("Short() = %q", s)
	}
	if testNet == NewNetworkID("test", Key{}) || testNet == NewNetworkID("tes", root) {
		t.Error("other networks have the same ID")
	}
}

// What one signs the other verifies, and any changed bit is refused.
func TestSignVerify(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body, err := Marshal(rapid.MapOf(rapid.String(), rapid.SliceOf(rapid.Byte())).Draw(t, "body"))
		if err != nil {
			t.Fatal(err)
		}
		s := Statement{
			Kind: KindNode, Network: testNet, Epoch: rapid.Uint64().Draw(t, "epoch"), Seq: rapid.Uint64().Draw(t, "seq"),
			Time: rapid.Int64Range(0, MaxTime).Draw(t, "time"), Body: body, Via: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "via"),
		}
		raw, err := Sign(priv("a"), s)
		if errors.Is(err, ErrTooLarge) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify(raw, testNet)
		if err != nil {
			t.Fatal(err)
		}
		if got.Author != KeyOf(priv("a")) || got.Epoch != s.Epoch || got.Seq != s.Seq || got.Time != s.Time || !bytes.Equal(got.Body, body) || !bytes.Equal(got.Via, s.Via) {
			t.Fatalf("got %+v", got)
		}
		i := rapid.IntRange(0, len(raw)*8-1).Draw(t, "bit")
		raw[i/8] ^= 1 << (i % 8)
		if _, err := Verify(raw, testNet); err == nil {
			t.Fatalf("bit %d flipped, and it verifies", i)
		}
	})
}

// The marshaller makes canonical bytes, and only those are canonical: decoding
// and encoding again gives the same.
func TestCanonical(t *testing.T) {
	for _, tt := range []struct{ name, hex, err string }{
		{"small int", "17", ""},
		{"int in two bytes", "1818", ""},
		{"int longer than needed", "1817", "head longer"},
		{"int longer than needed, 2", "190018", "head longer"},
		{"int longer than needed, 4", "1a0000ffff", "head longer"},
		{"int longer than needed, 8", "1b00000000ffffffff", "head longer"},
		{"least int", "3b7fffffffffffffff", ""},
		{"below the least int", "3b8000000000000000", "integer below"},
		{"false true null", "83f4f5f6", ""},
		{"undefined", "f7", "simple value"},
		{"float", "fb3ff8000000000000", "simple value"},
		{"half float", "f93c00", "simple value"},
		{"tag", "c000", "tag"},
		{"cid tag", "d82a4101", "tag"},
		{"indefinite bytes", "5f4101ff", "indefinite"},
		{"indefinite array", "9f01ff", "indefinite"},
		{"map", "a2616101616202", ""},
		{"map, longer key last", "a2616201626161 02", ""},
		{"map out of order", "a2616202616101", "out of order"},
		{"map, length first", "a262616101616202", "out of order"},
		{"map, key twice", "a2616101616102", "out of order"},
		{"map, int key", "a10101", "no text"},
		{"map, one key short", "a26161 01", "cut short"},
		{"bad UTF-8", "61ff", "UTF-8"},
		{"string cut short", "6261", "cut short"},
		{"array that lies about its length", "9affffffff", "cut short"},
		{"bytes that lie", "5b7fffffffffffffff", "cut short"},
		{"rest", "0000", "after the value"},
		{"empty", "", "cut short"},
		{"deep", strings.Repeat("81", MaxNesting) + "01", ""},
		{"too deep", strings.Repeat("81", MaxNesting+1) + "01", "nested"},
		{"too deep by an empty array", strings.Repeat("81", MaxNesting) + "80", "nested"},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(tt.hex, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		switch err := CheckCanonical(b); {
		case tt.err == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.err != "" && (!errors.Is(err, ErrEncoding) || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	body, _ := Marshal(map[string]int{"a": 1})
	sign := func(change func(*payload)) []byte {
		p := payload{Kind: "node", Network: testNet, Author: KeyOf(priv("a")), Body: body}
		change(&p)
		b, err := encMode.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return appendEnvelope(b, ed25519.Sign(priv("a"), signedBytes(Kind(p.Kind), b)))
	}
	for _, tt := range []struct {
		name   string
		change func(*payload)
		want   error
	}{
		{"nothing wrong", func(*payload) {}, nil},
		{"another network", func(p *payload) { p.Network = NetworkID{1} }, ErrNetwork},
		{"another's name", func(p *payload) { p.Author = KeyOf(priv("b")) }, ErrSignature},
		{"no author", func(p *payload) { p.Author = Key{} }, ErrShape},
		{"no kind", func(p *payload) { p.Kind = "" }, ErrShape},
		{"strange kind", func(p *payload) { p.Kind = "no\x00de" }, ErrShape},
		{"body no map", func(p *payload) { p.Body = Raw{0x01} }, ErrShape},
		{"time before 1970", func(p *payload) { p.Time = -1 }, ErrShape},
		{"time after 2100", func(p *payload) { p.Time = MaxTime + 1 }, ErrShape},
		{"too many dependencies", func(p *payload) {
			for i := range MaxDeps + 1 {
				p.Deps = append(p.Deps, ID{byte(i)})
			}
		}, ErrTooLarge},
		{"dependencies unsorted", func(p *payload) { p.Deps = []ID{{2}, {1}} }, ErrShape},
		{"too large", func(p *payload) { p.Via = make([]byte, MaxStatement) }, ErrTooLarge},
	} {
		_, err := Verify(sign(tt.change), testNet)
		if !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	t.Run("one kind is not another", func(t *testing.T) {
		p, _ := encMode.Marshal(payload{Kind: "node", Network: testNet, Author: KeyOf(priv("a")), Body: body})
		raw := appendEnvelope(p, ed25519.Sign(priv("a"), signedBytes("claim", p)))
		if _, err := Verify(raw, testNet); !errors.Is(err, ErrSignature) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a key of a wrong length", func(t *testing.T) {
		var m MemberBody
		b, _ := Marshal(map[string]any{"key": []byte{1, 2, 3}})
		if err := Unmarshal(b, &m); err == nil {
			t.Error("padded")
		}
	})
	t.Run("unknown fields are kept", func(t *testing.T) {
		p, _ := Marshal(map[string]any{"k": "node", "n": testNet[:], "a": root[:], "b": map[string]int{}, "new": 7})
		raw := appendEnvelope(p, ed25519.Sign(priv("root"), signedBytes("node", p)))
		s, err := Verify(raw, testNet)
		if err != nil || !bytes.Equal(s.Raw, raw) {
			t.Errorf("%v", err)
		}
	})
}

func testTicket(t testing.TB) Ticket {
	seed := priv("invite").Seed()
	invite, err := NewInvite(priv("root"), testNet, seed, InviteBody{Roles: []Role{RoleNode, RoleOwner}, Expires: now.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	return Ticket{
		Name: "test", Root: root, Bootstrap: []string{"/ip4/127.0.0.1/tcp/4001/p2p/" + root.String()},
		InviteSeed: seed, Invite: invite, BasePublishers: []Key{root},
	}
}

func TestTicket(t *testing.T) {
	ticket := testTicket(t)
	text := ticket.String()
	got, err := ParseTicket(" " + text[:40] + "\n" + text[40:] + "\n")
	if err != nil || fmt.Sprint(got) != fmt.Sprint(ticket) {
		t.Fatalf("%v\n%v\n%v", err, got, ticket)
	}
	for i := range len(text) {
		c := byte('A')
		if text[i] == c {
			c = 'B'
		}
		if _, err := ParseTicket(text[:i] + string(c) + text[i+1:]); !errors.Is(err, ErrTicket) {
			t.Fatalf("character %d mistyped: %v", i, err)
		}
	}
	joiner := KeyOf(priv("joiner"))
	raw, err := got.Join(joiner, RoleNode, now)
	if err != nil {
		t.Fatal(err)
	}
	m, err := CheckMember(raw, testNet, root)
	if err != nil || m.Key != joiner || m.Role != RoleNode || m.Invite != KeyOf(priv("invite")) || m.Expires != now.Add(time.Hour).Unix() {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := got.Join(joiner, RoleNode, now.Add(2*time.Hour)); !errors.Is(err, ErrExpired) {
		t.Errorf("after the invite's end: %v", err)
	}
	if _, err := got.Join(joiner, RoleOperator, now); !errors.Is(err, ErrTicket) {
		t.Errorf("for a role the invite does not give: %v", err)
	}
	if _, err := CheckMember(raw, testNet, KeyOf(priv("other root"))); !errors.Is(err, ErrAuthority) {
		t.Errorf("under another root: %v", err)
	}
	open := Ticket{Name: "open", Bootstrap: ticket.Bootstrap}
	if got, err := ParseTicket(open.String()); err != nil || !got.Root.IsZero() {
		t.Errorf("open network: %v %v", got, err)
	}
	forged := ticket
	forged.InviteSeed = priv("thief").Seed()
	if _, err := ParseTicket(forged.String()); !errors.Is(err, ErrTicket) {
		t.Errorf("an invite for another key: %v", err)
	}
}

func TestMemberStatements(t *testing.T) {
	k := KeyOf(priv("k"))
	invite := testTicket(t)
	named := func(node string, ops ...string) []byte {
		var keys []Key
		for _, o := range ops {
			keys = append(keys, KeyOf(priv(o)))
		}
		raw, err := SignOperators(priv(node), testNet, keys)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	body := func(keys ...Key) []byte {
		b, err := Marshal(OperatorBody{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := Sign(priv("k"), Statement{Kind: KindOperator, Network: testNet, Body: b})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	op, other := KeyOf(priv("op")), KeyOf(priv("other"))
	low, high := op, other
	if low.Compare(high) > 0 {
		low, high = high, low
	}
	out := MemberBody{Key: k, Role: RoleNode, Revoked: true}
	for _, tt := range []struct {
		name string
		by   string
		via  []byte
		m    MemberBody
		want error
	}{
		{"admission", "root", nil, MemberBody{Key: k, Role: RoleNode}, nil},
		{"by invite", "invite", invite.Invite, MemberBody{Key: k, Role: RoleOwner}, nil},
		{"revocation", "root", nil, MemberBody{Key: k, Revoked: true}, nil},
		{"wildcard", "root", nil, MemberBody{Role: RoleOwner, AnyOwner: true}, nil},
		{"by a stranger", "k", nil, MemberBody{Key: k, Role: RoleNode}, ErrAuthority},
		{"by a stranger with an invite", "k", invite.Invite, MemberBody{Key: k, Role: RoleNode}, ErrAuthority},
		{"revocation by invite", "invite", invite.Invite, MemberBody{Key: k, Revoked: true}, ErrAuthority},
		{"wildcard by invite", "invite", invite.Invite, MemberBody{Role: RoleOwner, AnyOwner: true}, ErrAuthority},
		{"a role the invite does not give", "invite", invite.Invite, MemberBody{Key: k, Role: RoleOperator}, ErrAuthority},
		{"wildcard for nodes", "root", nil, MemberBody{Role: RoleNode, AnyOwner: true}, ErrShape},
		{"no key", "root", nil, MemberBody{Role: RoleNode}, ErrShape},
		{"no role", "root", nil, MemberBody{Key: k}, ErrShape},
		{"revocation by an operator", "op", named("k", "other", "op", "op"), out, nil},
		{"by another's operator", "op", named("k", "other"), out, ErrAuthority},
		{"by an operator of another node", "op", named("j", "op"), out, ErrAuthority},
		{"by an operator, of every role", "op", named("k", "op"), MemberBody{Key: k, Revoked: true}, ErrAuthority},
		{"by an operator, of an owner", "op", named("k", "op"), MemberBody{Key: k, Role: RoleOwner, Revoked: true}, ErrAuthority},
		{"admission by an operator", "op", named("k", "op"), MemberBody{Key: k, Role: RoleNode}, ErrAuthority},
		{"wildcard by an operator", "op", named("k", "op"), MemberBody{Role: RoleOwner, AnyOwner: true, Revoked: true}, ErrAuthority},
		{"revocation with an invite of the root's", "invite", invite.Invite, out, ErrAuthority},
		{"operators out of order", "op", body(high, low), out, ErrShape},
		{"no operators", "op", body(), out, ErrShape},
		{"too many operators", "op", body(slices.Repeat([]Key{op}, MaxOperators+1)...), out, ErrShape},
		{"an operator's word alone", "op", nil, out, ErrAuthority},
	} {
		raw, err := SignMember(priv(tt.by), testNet, tt.m, tt.via, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := CheckMember(raw, testNet, root); !errors.Is(err, tt.want) || (tt.want == nil && err != nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestSession(t *testing.T) {
	client, server := KeyOf(priv("client")), KeyOf(priv("server"))
	raw, err := SignSession(priv("owner"), testNet, SessionBody{Client: client, Server: server, Expires: now.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	device, err := SignSession(priv("device"), testNet, SessionBody{Client: client, Server: server, Owner: KeyOf(priv("owner")), Expires: now.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	if by, owner, _, err := CheckSession(device, testNet, client, server, now); err != nil || owner != KeyOf(priv("owner")) || by != KeyOf(priv("device")) {
		t.Fatalf("by a device: %s for %s, %v", by, owner, err)
	}
	if _, owner, _, err := CheckSession(raw, testNet, client, server, now); err != nil || owner != KeyOf(priv("owner")) {
		t.Errorf("%v %v", owner, err)
	}
	for name, tt := range map[string]struct {
		client, server Key
		now            time.Time
		want           error
	}{
		"another client": {server, server, now, ErrAuthority},
		"another server": {client, client, now, ErrAuthority},
		"too late":       {client, server, now.Add(time.Hour), ErrExpired},
		"too long":       {client, server, now.Add(-48 * time.Hour), ErrAuthority},
	} {
		if _, _, _, err := CheckSession(raw, testNet, tt.client, tt.server, tt.now); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestHello(t *testing.T) {
	h := Hello{Member: []byte("m"), Session: []byte("s")}
	b, err := EncodeHello(h)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeHello(b); err != nil || string(got.Member) != "m" || string(got.Session) != "s" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := DecodeHello(make([]byte, MaxHello+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := EncodeHello(Hello{Member: make([]byte, MaxHello)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	ticket := testTicket(f)
	raw, err := ticket.Join(root, RoleNode, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(ticket.Invite)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Peek(b, testNet); err == nil {
			// What is read by hand is what the decoder of the library reads.
			var p payload
			if err := Unmarshal(s.payload, &p); err != nil {
				t.Fatalf("read, but does not decode: %v", err)
			}
			want := Statement{
				Kind: Kind(p.Kind), Network: p.Network, Author: p.Author, Epoch: p.Epoch, Seq: p.Seq, Time: p.Time,
				Deps: p.Deps, Via: p.Via, Body: p.Body, ID: s.ID, Raw: b, payload: s.payload, sig: s.sig,
			}
			if fmt.Sprintf("%+v", *s) != fmt.Sprintf("%+v", want) {
				t.Fatalf("read %+v, decoded %+v", *s, want)
			}
			// And what is written by hand is what the library writes.
			again, err := encMode.Marshal(p)
			if got := s.appendPayload(nil); err != nil || !bytes.Equal(got, again) {
				t.Fatalf("written %x, want %x (%v)", got, again, err)
			}
		}
		s, err := Verify(b, testNet)
		if err != nil {
			return
		}
		if len(b) > MaxStatement || s.ID == (ID{}) {
			t.Fatalf("accepted: %+v", s)
		}
		_, _ = MemberOf(s, root) // must not panic
	})
}

// payload is what the signed map is, in the words of the library: the model of
// what is read and written by hand.
type payload struct {
	Kind    string    `cbor:"k"`
	Network NetworkID `cbor:"n"`
	Author  Key       `cbor:"a"`
	Epoch   uint64    `cbor:"e,omitempty"`
	Seq     uint64    `cbor:"s,omitempty"`
	Time    int64     `cbor:"t,omitempty"`
	Deps    []ID      `cbor:"d,omitempty"`
	Via     []byte    `cbor:"v,omitempty"`
	Body    Raw       `cbor:"b"`
}

// Bytes that pass the check are those that a decoder and encoder reproduce.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"a2616101616202", "83f4f5f6", "3b7fffffffffffffff", "a0", "81a16161a0"} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxStatement || CheckCanonical(b) != nil {
			return
		}
		var v any
		if err := decMode.Unmarshal(b, &v); err != nil {
			if strings.Contains(err.Error(), "overflow") {
				return // an integer above 2^63 does not fit an any
			}
			t.Fatalf("canonical, but does not decode: %v", err)
		}
		again, err := encMode.Marshal(v)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x encodes again as %x (%v)", b, again, err)
		}
	})
}

// Fields accepts the maps that pass the check, and finds in them what a decoder
// finds.
func FuzzFields(f *testing.F) {
	for _, s := range []string{"a2616101616202", "a0", "a1616181820102", "a2616203616101", "8101", "a161614161", "a1616162c3a9"} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxStatement {
			return
		}
		found := map[string]Raw{}
		err := Fields(b, func(key, value []byte) error {
			found[string(key)] = value
			_, _ = Uint(value)
			if s, err := Text(value); err == nil {
				var want string
				if err := Unmarshal(value, &want); err != nil || s != want {
					t.Fatalf("text %q of %x, decoded %q (%v)", s, value, want, err)
				}
			}
			var list, decoded []Raw
			if Elements(value, func(v []byte) error { list = append(list, v); return nil }) == nil {
				if err := Unmarshal(value, &decoded); err != nil || !slices.EqualFunc(list, decoded, sameRaw) {
					t.Fatalf("elements %x of %x, decoded %x (%v)", list, value, decoded, err)
				}
			}
			return nil
		})
		var want map[string]Raw
		wrong := Unmarshal(b, &want)
		if isMap := len(b) > 0 && b[0]>>5 == majorMap; (err == nil) != (wrong == nil && isMap) {
			t.Fatalf("%x: %v, decoder %v", b, err, wrong)
		}
		if err == nil && !maps.EqualFunc(found, want, sameRaw) {
			t.Fatalf("%x: found %x, decoded %x", b, found, want)
		}
	})
}

func sameRaw(a, b Raw) bool { return bytes.Equal(a, b) }

func FuzzTicket(f *testing.F) {
	f.Add(testTicket(f).String())
	f.Add("form1AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		ticket, err := ParseTicket(s)
		if err != nil {
			if !errors.Is(err, ErrTicket) {
				t.Fatalf("error %v does not wrap ErrTicket", err)
			}
			return
		}
		if _, err := ParseTicket(ticket.String()); err != nil {
			t.Fatalf("does not parse again: %v", err)
		}
	})
}

func FuzzHello(f *testing.F) {
	b, err := EncodeHello(Hello{Member: []byte("m"), Session: []byte("s")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHello(b); err == nil {
			if _, err := EncodeHello(h); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzPeekOperators(f *testing.F) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	raw, err := SignOperators(key, testNet, []Key{{1}, {2}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := PeekOperators(b, testNet, KeyOf(key))
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > MaxOperators || !slices.IsSortedFunc(keys, Key.Compare) || keys[0].IsZero() {
			t.Fatalf("keys %v", keys)
		}
	})
}
