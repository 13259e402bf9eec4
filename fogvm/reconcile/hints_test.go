package reconcile

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
)

// bus is a Gossip that keeps what is published.
type bus struct {
	mu       sync.Mutex
	messages [][]byte
}

func (b *bus) Publish(_ context.Context, topic string, msg []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if topic != TopicHint {
		return fmt.Errorf("topic %s", topic)
	}
	b.messages = append(b.messages, msg)
	return nil
}

func (b *bus) Subscribe(context.Context, string, func(context.Context, peer.ID, []byte) bool) error {
	return nil
}

// closedView is a network in which these are admitted as nodes, and have published
// registers in boot epoch 5.
func closedView(t *testing.T, nodes ...byte) *crdt.View {
	t.Helper()
	root := keyOf(100)
	id := stmt.NewNetworkID("closed", stmt.KeyOf(root))
	s := crdt.NewState(id, stmt.KeyOf(root), crdt.NewModel())
	apply := func(raw []byte, err error) {
		if err == nil {
			_, err = s.Apply(raw, time.Time{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range nodes {
		apply(stmt.SignMember(root, id, stmt.MemberBody{Key: stmt.KeyOf(keyOf(n)), Role: stmt.RoleNode}, nil, 1, uint64(i+1)))
		body, err := stmt.Marshal(map[string]int{"cpus": 1})
		if err != nil {
			t.Fatal(err)
		}
		apply(stmt.Sign(keyOf(n), stmt.Statement{Kind: stmt.KindNode, Network: id, Epoch: 5, Seq: 1, Body: body}))
	}
	return s.View()
}

// Of what comes as a hint only the word of a node about a node is heard, once, and
// passed on.
func TestHintsAreJudged(t *testing.T) {
	v := closedView(t, 1, 2, 3)
	now := time.Hour
	var heard []live.Heard
	h := newHints(keyOf(1), &bus{}, func() *crdt.View { return v }, func() time.Duration { return now }, func(e live.Heard) { heard = append(heard, e) })
	sign := func(by byte, net stmt.NetworkID, b stmt.HintBody, epoch, seq uint64) []byte {
		raw, err := stmt.SignHint(keyOf(by), net, b, epoch, seq)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	k := func(n byte) stmt.Key { return stmt.KeyOf(keyOf(n)) }
	suspect := func(n byte) stmt.HintBody { return stmt.HintBody{Peer: k(n), Epoch: 5} }
	good := sign(2, v.Network(), suspect(3), 5, 1)
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	for _, tc := range []struct {
		name string
		from byte
		raw  []byte
		ok   bool
	}{
		{"junk", 3, []byte("junk"), false},
		{"forged", 3, forged, false},
		{"by a neighbour that is no member", 9, good, false},
		{"a suspicion", 3, good, true},
		{"the same again", 2, good, false},
		{"by nobody's member", 2, sign(9, v.Network(), suspect(3), 5, 1), false},
		{"of nobody's member", 2, sign(2, v.Network(), suspect(9), 5, 2), false},
		{"of another network", 2, sign(2, stmt.NewNetworkID("x", stmt.Key{}), suspect(3), 5, 2), false},
		{"of an earlier boot", 2, sign(2, v.Network(), suspect(3), 4, 9), false},
		{"out of order", 2, sign(2, v.Network(), suspect(3), 5, 7), true},
		{"out of order, the earlier", 3, sign(2, v.Network(), suspect(3), 5, 6), true},
		{"a replay of that", 3, sign(2, v.Network(), suspect(3), 5, 6), false},
		{"of a boot not heard of yet", 2, sign(2, v.Network(), suspect(1), 6, 1), true},
		{"a contradiction", 2, sign(3, v.Network(), stmt.HintBody{Peer: k(3), Alive: true, Epoch: 5, Count: 1}, 5, 1), true},
	} {
		before := len(heard)
		if got := h.validate(context.Background(), PeerOf(k(tc.from)), tc.raw); got != tc.ok {
			t.Errorf("%s: passed on: %v", tc.name, got)
		}
		if n := len(heard) - before; (n == 1) != tc.ok {
			t.Errorf("%s: heard %d times", tc.name, n)
		}
	}
	if e := heard[0]; e.From != k(2) || e.Peer != k(3) || e.Alive || e.Incarnation != (live.Incarnation{Epoch: 5}) {
		t.Errorf("heard %+v", e)
	}
}

// One author, and all about one node, are heard no more often than their rates.
func TestHintsAreBounded(t *testing.T) {
	v := closedView(t, 1, 2, 3, 4, 5)
	now := time.Hour
	n := 0
	h := newHints(keyOf(1), &bus{}, func() *crdt.View { return v }, func() time.Duration { return now }, func(live.Heard) { n++ })
	send := func(by, about byte, seq int) {
		raw, err := stmt.SignHint(keyOf(by), v.Network(), stmt.HintBody{Peer: stmt.KeyOf(keyOf(about)), Epoch: 5}, 5, uint64(seq))
		if err != nil {
			t.Fatal(err)
		}
		h.validate(context.Background(), PeerOf(stmt.KeyOf(keyOf(by))), raw)
	}
	for i := range 200 {
		send(2, byte(3+i%3), i+1)
	}
	if n != hintAuthorBurst {
		t.Errorf("%d hints of one author at once, want %d", n, hintAuthorBurst)
	}
	now += 10 * time.Minute
	n = 0
	for i := range 200 {
		send(byte(2+i%3), 5, 1000+i)
	}
	if n != hintSubjectBurst {
		t.Errorf("%d hints about one node at once, want %d", n, hintSubjectBurst)
	}
	now += 10 * time.Minute
	n = 0
	for i := range 3000 { // junk is counted before it is looked at
		h.validate(context.Background(), PeerOf(stmt.KeyOf(keyOf(2))), []byte{byte(i)})
	}
	send(2, 3, 5000)
	if n != 0 {
		t.Error("a neighbour that floods is heard")
	}
}

// Which numbers of an author were seen is known as by remembering all of the
// highest epoch's last 64.
func TestSaid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type at struct{ epoch, seq uint64 }
		var s said
		all := map[at]bool{}
		var top at
		for range rapid.IntRange(1, 60).Draw(t, "hints") {
			a := at{rapid.Uint64Range(1, 3).Draw(t, "epoch"), rapid.Uint64Range(1, 150).Draw(t, "seq")}
			want := !all[a] && (a.epoch > top.epoch || a.epoch == top.epoch && a.seq+64 > top.seq)
			if got := s.news(a.epoch, a.seq); got != want {
				t.Fatalf("%v after %v: news: %v", a, top, got)
			}
			if !want {
				continue
			}
			s.note(a.epoch, a.seq)
			all[a] = true
			if a.epoch > top.epoch || a.epoch == top.epoch && a.seq > top.seq {
				top = a
			}
		}
	})
}

// A node that hears that it is suspected says at once that it is alive, in a higher
// incarnation, and the one that suspected it hears that.
func TestSuspectedNodeContradicts(t *testing.T) {
	v := closedView(t, 1, 2)
	view := func() *crdt.View { return v }
	end := newHub().join(stmt.KeyOf(keyOf(1)))
	b := &bus{}
	p := NewProber(ProberConfig{Self: stmt.KeyOf(keyOf(1)), Key: keyOf(1), Streams: end, View: view, Gossip: b})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var probes sync.WaitGroup
	p.handle(ctx, &probes, time.Hour, live.Tick{}) // learns who there is
	raw, err := stmt.SignHint(keyOf(2), v.Network(), stmt.HintBody{Peer: stmt.KeyOf(keyOf(1)), Epoch: 5}, 5, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !p.hints.validate(ctx, PeerOf(stmt.KeyOf(keyOf(2))), raw) {
		t.Fatal("the suspicion is refused")
	}
	p.handle(ctx, &probes, time.Hour, <-p.events)
	probes.Wait()
	if len(b.messages) != 1 {
		t.Fatalf("%d hints were told", len(b.messages))
	}
	var heard []live.Heard
	other := newHints(keyOf(2), &bus{}, view, func() time.Duration { return time.Hour }, func(e live.Heard) { heard = append(heard, e) })
	if !other.validate(ctx, PeerOf(stmt.KeyOf(keyOf(1))), b.messages[0]) || len(heard) != 1 {
		t.Fatal("the contradiction is refused")
	}
	if e := heard[0]; !e.Alive || e.From != e.Peer || e.Incarnation != (live.Incarnation{Epoch: 5, Count: 1}) {
		t.Errorf("it says %+v", e)
	}
}
