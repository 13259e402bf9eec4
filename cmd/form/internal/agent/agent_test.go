package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// shortDir is a folder with a path that a socket's may begin with.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// forged is a statement with another's signature.
func forged(t *testing.T, raw []byte, by string) []byte {
	t.Helper()
	st, err := stmt.Verify(raw, netID)
	if err != nil {
		t.Fatal(err)
	}
	st.Author = stmt.Key{}
	out, err := stmt.Sign(keyOf(by), *st)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// broken is a statement with a signature that is none.
func broken(raw []byte) []byte {
	out := slices.Clone(raw)
	out[len(out)-1] ^= 1
	return out
}

// A node can be silent, and cannot make anybody a peer.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, w *world, s *Testimony)
		want   string
		err    error
	}{
		{"as it is", func(*testing.T, *world, *Testimony) {}, "app/0@one app/1@two", nil},
		{"silence", func(_ *testing.T, _ *world, s *Testimony) { s.Statements = nil }, "", ErrUnlisted},
		{"another root", func(_ *testing.T, _ *world, s *Testimony) { s.Root = pub("mallory") }, "", ErrRoot},
		{"an open network", func(_ *testing.T, _ *world, s *Testimony) { s.Root = stmt.Key{} }, "", ErrRoot},
		{"a network of the same root", func(_ *testing.T, _ *world, s *Testimony) { s.Name = "another" }, "", ErrRoot},
		{"a stranger's claim", func(_ *testing.T, w *world, s *Testimony) {
			s.Statements = append(s.Statements, w.says("three", 0, func(c *crdt.Claim) { c.Generation = 9 }))
		}, "app/0@one app/1@two", nil},
		{"a stranger admitted by itself", func(t *testing.T, w *world, s *Testimony) {
			raw, err := stmt.SignMember(keyOf("three"), netID, stmt.MemberBody{Key: pub("three"), Role: stmt.RoleNode}, nil, 1, 99)
			if err != nil {
				t.Fatal(err)
			}
			s.Statements = append(s.Statements, raw, w.says("three", 0, func(c *crdt.Claim) { c.Generation = 9 }))
		}, "app/0@one app/1@two", nil},
		{"a claim in another node's name", func(t *testing.T, w *world, s *Testimony) {
			s.Statements = append(s.Statements, broken(w.says("two", 0, func(c *crdt.Claim) { c.Generation = 9 })))
		}, "app/0@one app/1@two", nil},
		{"a claim signed by another", func(t *testing.T, w *world, s *Testimony) {
			s.Statements = append(s.Statements, forged(t, w.says("two", 0, func(c *crdt.Claim) { c.Generation = 9 }), "mallory"))
		}, "app/0@one app/1@two", nil},
		{"no statement at all", func(_ *testing.T, _ *world, s *Testimony) {
			s.Statements = append(s.Statements, nil, []byte("{}"), make([]byte, stmt.MaxStatement+1))
		}, "app/0@one app/1@two", nil},
		{"more than anybody needs", func(_ *testing.T, _ *world, s *Testimony) {
			s.Statements = append(s.Statements, make([][]byte, maxStatements)...)
		}, "", errAny},
		{"a replica withheld", func(_ *testing.T, w *world, s *Testimony) {
			s.Statements = slices.DeleteFunc(s.Statements, func(raw []byte) bool {
				st, err := stmt.Verify(raw, netID)
				return err == nil && st.Kind == stmt.KindClaim && st.Author == pub("two")
			})
		}, "app/0@one", nil},
		{"the laptop is removed", func(_ *testing.T, w *world, s *Testimony) {
			w.all(w.author().RemoveDevice(pub("laptop")))
			*s = w.testimony()
		}, "", ErrUnlisted},
		{"the laptop has another key", func(_ *testing.T, w *world, s *Testimony) {
			w.all(w.author().SetDevice(crdt.Device{Key: pub("laptop"), MeshKey: stmt.Key{5}}))
			*s = w.testimony()
		}, "", ErrUnlisted},
		{"a node is taken out", func(_ *testing.T, w *world, s *Testimony) {
			w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true})
			*s = w.testimony()
		}, "app/0@one", nil},
		{"the instance is deleted", func(_ *testing.T, w *world, s *Testimony) {
			w.all(w.author().Delete(w.id))
			*s = w.testimony()
		}, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			s := w.testimony()
			c.change(t, w, &s)
			known, err := Judge(w.identity(), w.laptop.PublicKey(), w.space, s)
			var got []string
			for _, p := range known.Peers {
				name := map[stmt.Key]string{pub("one"): "one", pub("two"): "two", pub("three"): "three"}[p.Node]
				got = append(got, fmt.Sprintf("%s/%d@%s", p.Name, p.Slot, name))
			}
			if text := strings.Join(got, " "); text != c.want {
				t.Errorf("peers %q, want %q", text, c.want)
			}
			if c.err == errAny && err == nil || c.err != errAny && !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
		})
	}
}

// A node that says it is the owner's is a peer when the owner or the root says so
// too, and not by its own word, whatever a host adds.
func TestNodesOfTheOwner(t *testing.T) {
	w := newWorld(t)
	w.admit("three", stmt.RoleNode)
	registers := map[string][]byte{}
	for _, n := range []string{"one", "two", "three"} {
		by, err := stmt.SignOperators(keyOf(n), netID, []stmt.Key{pub("olga")})
		if err != nil {
			t.Fatal(err)
		}
		key := w.guests["two"].PublicKey() // three's is that of two's guest
		if n != "three" {
			key = privateKey(t).PublicKey()
		}
		node := crdt.Node{Operators: by, MeshKey: stmt.Key(key)}
		state := crdt.NewState(netID, pub("root"), crdt.NewModel())
		out, err := crdt.NewRegisters(keyOf(n), netID, 1).Node(state, node)
		if err != nil {
			t.Fatal(err)
		}
		registers[n] = out[0].Statement().Raw
		w.all([][]byte{registers[n]}, nil)
	}
	names := map[stmt.Key]string{pub("one"): "one", pub("two"): "two", pub("three"): "three"}
	is := func(when, want string) {
		t.Helper()
		s := w.testimony()
		for _, raw := range registers { // a hostile host tells more than it should
			s.Statements = append(s.Statements, raw)
		}
		known, err := Judge(w.identity(), w.laptop.PublicKey(), w.space, s)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range known.Peers {
			text := p.String()
			if p.IsNode() {
				text = "node " + names[p.Node]
				if found, ok := find(known.Peers, Target{Node: p.Node}); !ok || found.Key != p.Key || p.Host != peer.ID(p.Node.PeerID()) {
					t.Errorf("%s: %s is found as %v, %v", when, text, found, ok)
				}
			}
			got = append(got, text)
		}
		slices.Sort(got)
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: %s, want %s", when, text, want)
		}
	}
	is("by their own word", "app/0, app/1")
	w.all(w.author().SetDevice(crdt.Device{Key: pub("one"), Node: true}))
	is("one by the owner's", "app/0, app/1, node one")
	w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Operator: pub("olga")})
	is("two by the root's", "app/0, app/1, node one, node two")
	w.all(w.author().SetDevice(crdt.Device{Key: pub("three"), Node: true}))
	is("of two with one key the node has it", "app/0, node one, node three, node two")
	w.all(w.author().RemoveDevice(pub("one")))
	w.all(w.author().RemoveDevice(pub("three")))
	is("with the owner's word taken back", "app/0, app/1, node two")
	w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Operator: pub("otto")})
	is("with the root's word for another", "app/0, app/1")
}

// Settings of the network that a node makes up are not those of its ID.
func TestJudgeSettings(t *testing.T) {
	w := newWorld(t)
	id := w.identity()
	for _, s := range []stmt.Settings{{Zone: "mallory.example.org"}, {Prefix4: netip.MustParsePrefix("100.64.0.0/10")}} {
		id.Settings = s
		if known, err := Judge(id, w.laptop.PublicKey(), w.space, w.testimony()); !errors.Is(err, ErrRoot) || len(known.Peers) > 0 {
			t.Errorf("%+v: %v, %v", s, known.Peers, err)
		}
	}
}

// Who tells the past brings nobody back.
func TestTheOldTestimony(t *testing.T) {
	w := newWorld(t)
	judge := func(s Testimony) (Roster, error) { return Judge(w.identity(), w.laptop.PublicKey(), w.space, s) }
	old := w.testimony()
	known, err := judge(old)
	if err != nil || len(known.Peers) != 2 {
		t.Fatal(known.Peers, err)
	}
	w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true})
	for _, s := range []Testimony{w.testimony(), old, old} {
		if known, err = judge(s.After(known)); err != nil || len(known.Peers) != 1 || known.Peers[0].Node != pub("one") {
			t.Fatalf("with a node taken out: %v, %v", known.Peers, err)
		}
	}
	w.all(w.author().RemoveDevice(pub("laptop")))
	for _, s := range []Testimony{w.testimony(), old} {
		if known, err = judge(s.After(known)); !errors.Is(err, ErrUnlisted) || len(known.Peers) > 0 {
			t.Fatalf("with the laptop removed: %v, %v", known.Peers, err)
		}
	}
}

var errAny = errors.New("any error")

// A peer's address is what its identity makes it, whatever a claim says of it.
func TestAddresses(t *testing.T) {
	w := newWorld(t)
	w.all([][]byte{w.says("two", 1, func(c *crdt.Claim) {
		c.Generation, c.Address6 = 2, w.address("one", 0).String()
		c.Address = w.space.Candidate4(identity("one", w.id, 0), 0).String()
	})}, nil)
	known, err := Judge(w.identity(), w.laptop.PublicKey(), w.space, w.testimony())
	peers := known.Peers
	if err != nil || len(peers) != 2 {
		t.Fatal(peers, err)
	}
	if p := peers[1]; p.Address6 != w.address("two", 1) || p.Address4.IsValid() {
		t.Errorf("it has the addresses %s and %s", p.Address6, p.Address4)
	}
	a4 := w.space.Candidate4(identity("one", w.id, 0), 0)
	if p := peers[0]; p.Address4 != a4 || p.Endpoint != "203.0.113.7:51820" {
		t.Errorf("the honest one has %s, at %s", p.Address4, p.Endpoint)
	}
	for _, c := range []struct {
		t    Target
		want int // -1: nobody
	}{
		{Target{Instance: w.id}, 0}, {Target{Instance: w.id, Slot: 1}, 1}, {Target{Instance: w.id, Slot: 2}, -1},
		{Target{Instance: w.id, Slot: 1, Node: pub("two")}, 1}, {Target{Instance: w.id, Slot: 1, Node: pub("one")}, -1},
		{Target{Address: a4}, 0}, {Target{Address: w.address("two", 1)}, 1}, {Target{Address: netip.MustParseAddr("10.128.9.9")}, -1},
		{Target{Instance: w.id, Slot: 1, Address: w.address("two", 1)}, 1}, {Target{Instance: w.id, Slot: 1, Address: a4}, -1},
		{Target{}, -1}, {Target{Instance: "x"}, -1},
	} {
		p, ok := find(peers, c.t)
		if ok != (c.want >= 0) || ok && p.Key != peers[c.want].Key {
			t.Errorf("%+v is %s/%d, %v", c.t, p.Name, p.Slot, ok)
		}
	}
}

// The whole way: a form's bytes go by the agent's socket, WireGuard, the carrier
// and a host to a guest and back, for several forms at once.
func TestReachAndDial(t *testing.T) {
	w := newWorld(t)
	host := w.machine("one", 0)
	host.serve(t, 8080, w.address("one", 0), " from one")
	s := &swarm{w: w, machines: map[peer.ID]*machine{peer.ID(pub("one").PeerID()): host}}
	socket, _ := w.agent(s, time.Hour)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	begun := time.Now()
	const forms = 8
	errs := make(chan error, forms)
	for i := range forms {
		go func() {
			errs <- echo(ctx, socket, Target{Instance: w.id, Node: pub("one")}, 8080, strings.Repeat(fmt.Sprint(i), 100_000), " from one")
		}()
	}
	for range forms {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d connections and 1.6 MB by a fresh agent in %s", forms, time.Since(begun))
	// What listens on IPv4 alone is reached too.
	host.serve(t, 8084, w.address4("one", 0), " by IPv4")
	if err := echo(ctx, socket, Target{Instance: w.id}, 8084, "hello", " by IPv4"); err != nil {
		t.Error(err)
	}
	p, err := Reach(ctx, socket, Target{Address: w.address("one", 0)}, false)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := p.Dial(ctx, 81); !errors.Is(err, ErrRefused) {
		t.Errorf("a port on which nothing listens: %v, %v", c, err)
	}
	status, err := StatusOf(ctx, socket)
	if err != nil || len(status.Peers) != 2 || status.Peers[0].Handshake == nil || status.Peers[0].Received < 800_000 || status.Peers[1].Handshake != nil {
		t.Errorf("status %+v, %v", status, err)
	}
	if p, err := Reach(ctx, socket, Target{Instance: "nobody"}, false); !errors.Is(err, ErrNoPeer) {
		t.Errorf("nobody is reached: %v, %v", p, err)
	}
	// A host that cannot be reached costs its form the time that it has.
	short, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	if p, err := Reach(short, socket, Target{Instance: w.id, Slot: 1}, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a dead host is reached: %v, %v", p, err)
	}
	// What a node says that proves nothing changes nothing.
	s.set(nil, Testimony{Name: "mallory's", Root: pub("mallory")})
	if err := echo(ctx, socket, Target{Instance: w.id}, 8080, "still", " from one"); err != nil {
		t.Error(err)
	}
	s.set(errors.New("no node answers"), Testimony{})
	if err := echo(ctx, socket, Target{Instance: w.id}, 8080, "still", " from one"); err != nil {
		t.Error(err)
	}
}

func echo(ctx context.Context, socket string, to Target, port uint16, text, word string) error {
	p, err := Reach(ctx, socket, to, false)
	if err != nil {
		return err
	}
	c, err := p.Dial(ctx, port)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, text)
		sent <- errors.Join(err, c.(*net.UnixConn).CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if string(got) != text+word {
		return fmt.Errorf("%d bytes came back of %d", len(got), len(text)+len(word))
	}
	return nil
}

// An agent that nobody asks ends by itself, one that is told to at once.
func TestAgentEnds(t *testing.T) {
	w := newWorld(t)
	s := &swarm{w: w}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, ended := w.agent(s, time.Millisecond)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	socket, ended := w.agent(s, time.Hour)
	if _, err := StatusOf(ctx, socket); err != nil {
		t.Error(err)
	}
	if err := Stop(ctx, socket); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := StatusOf(ctx, socket); err == nil {
		t.Error("an agent that has ended answers")
	}
}

// The socket is hostile territory to whoever gets it wrong, and to nobody else.
func TestWrongRequests(t *testing.T) {
	w := newWorld(t)
	socket, _ := w.agent(&swarm{w: w}, time.Hour)
	for name, c := range map[string]struct{ say, want string }{
		"another version": {`{"version":2,"op":"status"}`, "another version"},
		"no such request": {`{"version":1,"op":"sing"}`, "no such request"},
		"dial at once":    {`{"version":1,"op":"dial","port":22}`, "no such request"},
		"no JSON":         {`hello`, ""},
		"too long":        {strings.Repeat("x", maxLine+2), ""},
	} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.say+"\n"); err != nil {
			t.Fatal(name, err)
		}
		got, _ := io.ReadAll(conn) // a line that is too long is cut by a reset
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(got), c.want) || (c.want == "") != (len(got) == 0) {
			t.Errorf("%s: %q", name, got)
		}
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
}

// There is one agent of a device; who finds a dead one's socket takes its place.
func TestPlace(t *testing.T) {
	w := newWorld(t)
	dir := shortDir(t)
	env := func(string) string { return dir }
	p, err := PlaceOf(w.identity(), env)
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Listen()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.Listen(); !errors.Is(err, ErrTaken) {
		t.Errorf("a second agent: %v, %v", again, err)
	}
	other := w.identity()
	other.Device = pub("phone")
	if o, err := PlaceOf(other, env); err != nil || o.Socket() == p.Socket() {
		t.Errorf("another device has the place %s, %v", o.Socket(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Socket(), nil, 0o600); err != nil { // a dead agent's
		t.Fatal(err)
	}
	if l, err = p.Listen(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "form"), 0o770); err != nil {
		t.Fatal(err)
	}
	if p, err := PlaceOf(w.identity(), env); err == nil {
		t.Errorf("a folder that others may write: %s", p.Socket())
	}
	deep := filepath.Join(dir, strings.Repeat("x", maxSocket))
	if p, err := PlaceOf(w.identity(), func(string) string { return deep }); err != nil || len(p.Socket()) > maxSocket || strings.HasPrefix(p.Socket(), deep) {
		t.Errorf("a long path: %s, %v", p.Socket(), err)
	}
}

// Of many forms that find no agent one starts it, and all use it.
func TestEnsureStartsOne(t *testing.T) {
	w := newWorld(t)
	p := w.place()
	ctx, cancel := context.WithCancel(context.Background())
	started := 0
	ended := make(chan error, 1)
	start := func(context.Context) error {
		started++
		l, err := p.Listen()
		if err != nil {
			return err
		}
		m := w.mesh(&swarm{w: w})
		go func() { ended <- Serve(ctx, m, l, time.Hour) }()
		return nil
	}
	errs := make(chan error)
	for range 8 {
		go func() { errs <- p.Ensure(ctx, start) }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if started != 1 {
		t.Errorf("started %d times", started)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Start tells a program what to do, and what it says on its way.
func TestStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	log := filepath.Join(dir, "sub", "log")
	sh := func(script string) error {
		return Start(ctx, []string{"/bin/sh", "-c", script}, map[string]string{"a": "b"}, log)
	}
	if err := sh(`read -r x <&0; echo "$x" > ` + filepath.Join(dir, "told") + `; echo ready; echo hello >&2`); err != nil {
		// read fails without a newline, and has read all the same.
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "told")); err != nil || strings.TrimSpace(string(b)) != `{"a":"b"}` {
		t.Errorf("it was told %q, %v", b, err)
	}
	for script, want := range map[string]string{"echo no device": "no device", "exit 3": "ended at once"} {
		if err := sh(script); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", script, err, want)
		}
	}
	if err := Start(ctx, []string{filepath.Join(dir, "none")}, nil, log); err == nil {
		t.Error("a program that is not there has started")
	}
	var b strings.Builder
	if err := Ready(&b, errors.New("a\nb")); err != nil || b.String() != "a; b\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	var launch struct{ A string }
	if err := Launched(strings.NewReader(`{"a":"b"}`), &launch); err != nil || launch.A != "b" {
		t.Errorf("%+v, %v", launch, err)
	}
	if err := Launched(strings.NewReader(strings.Repeat(" ", maxLaunch+1)), &launch); err == nil {
		t.Error("it is told without bound")
	}
}
