package crdt

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// hostile adds a member whose sessions handle answers.
func (n *fakeNet) hostile(w *world, name string, handle func(c net.Conn)) peer.ID {
	w.admit(name, stmt.RoleNode)
	e := n.end(pub(name))
	e.Handle("", func(_ context.Context, _ peer.ID, c net.Conn) {
		defer c.Close()
		handle(c)
	})
	return e.id
}

// Members that never answer do not keep a node from one that does.
func TestSilentPeers(t *testing.T) {
	w, n, ctx := newWorld(t), newFakeNet(), context.Background()
	n.lossy = true
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		n.hostile(w, name, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	}
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	good, _ := start(t, w, n, "n1", t.TempDir())
	if _, err := good.Submit(ctx, w.raws...); err != nil {
		t.Fatal(err)
	}
	r, _ := start(t, w, n, "n2", t.TempDir())
	eventually(t, "what the honest peer holds", func() bool { return len(r.View().Members()) == 7 })
}

// A peer that always says there is more, and brings nothing, is asked once.
func TestEndlessRounds(t *testing.T) {
	w, n := newWorld(t), newFakeNet()
	rounds := make(chan struct{}, 100)
	p := n.hostile(w, "eve", func(c net.Conn) {
		rounds <- struct{}{}
		s := &aeSession{rw: c, touch: func(int) {}}
		if _, err := s.receive(); err != nil {
			return
		}
		if err := s.send(aeFrame{Count: 1, Digest: make([]byte, 32)}); err != nil {
			return
		}
		f, err := s.receive()
		if err != nil {
			return
		}
		if err := s.send(aeFrame{Differ: make([]byte, (1<<f.Bits+7)/8)}); err != nil {
			return
		}
		if _, err := s.receive(); err != nil {
			return
		}
		if err := s.send(aeFrame{Cut: true}); err != nil {
			return
		}
		for f.More = true; f.More && err == nil; {
			f, err = s.receive()
		}
		_ = s.send(aeFrame{})
	})
	w.admit("n1", stmt.RoleNode)
	end := n.end(pub("n1"))
	r, err := Open(ReplicaConfig{Dir: t.TempDir(), Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Streams: end})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Submit(context.Background(), w.raws...); err != nil {
		t.Fatal(err)
	}
	if err := r.syncWith(context.Background(), p, r.asking.begin(p, 1, func() {})); err != nil {
		t.Fatal(err)
	}
	if len(rounds) != 1 {
		t.Errorf("%d rounds", len(rounds))
	}
}

// Sessions are held with members only, in both directions, and end for a peer
// that is revoked.
func TestSessionsAreForMembers(t *testing.T) {
	w, n, ctx := newWorld(t), newFakeNet(), context.Background()
	w.admit("n1", stmt.RoleNode)
	r, _ := start(t, w, n, "n1", t.TempDir())
	asked := make(chan struct{}, 100)
	eve := n.end(pub("eve"))
	eve.Handle("", func(_ context.Context, _ peer.ID, c net.Conn) {
		asked <- struct{}{}
		c.Close()
	})
	serves := func() bool {
		a, b := net.Pipe()
		go r.serve(ctx, eve.id, b)
		s := &aeSession{rw: a, touch: func(int) {}, idx: w.state().index()}
		defer a.Close()
		if err := s.send(aeFrame{Count: 1, Digest: make([]byte, 32)}); err != nil {
			return false
		}
		_, err := s.receive()
		return err == nil
	}
	if serves() || len(asked) > 0 {
		t.Error("a session with a peer that is no member")
	}
	if _, err := r.Submit(ctx, w.admit("eve", stmt.RoleNode)); err != nil {
		t.Fatal(err)
	}
	if !serves() {
		t.Error("a member is not served")
	}
	eventually(t, "the member is asked", func() bool { return len(asked) > 0 })
	if _, err := r.Submit(ctx, w.member(stmt.MemberBody{Key: pub("eve"), Revoked: true})); err != nil {
		t.Fatal(err)
	}
	if serves() {
		t.Error("a revoked peer is served")
	}
}

func TestNewcomers(t *testing.T) {
	now := testNow
	n := newcomers{}
	peers := []peer.ID{"a", "b"}
	if got := n.due(peers, now); !slices.Equal(got, peers) {
		t.Fatalf("due %v", got)
	}
	n.started("a", now) // there was no room for b
	if got := n.due(peers, now); !slices.Equal(got, []peer.ID{"b"}) {
		t.Errorf("due %v, want the one that was not started", got)
	}
	now = now.Add(time.Minute)
	if got := n.due(peers, now); !slices.Equal(got, []peer.ID{"b", "a"}) {
		t.Errorf("due %v, want the one with fewer sessions first", got)
	}
	for range len(newcomerDelays) {
		n.started("a", now)
		now = now.Add(time.Minute)
	}
	if got := n.due(peers, now); slices.Contains(got, "a") {
		t.Errorf("due %v after all its sessions", got)
	}
}

func TestDialogues(t *testing.T) {
	var d dialogues
	begin := func(p peer.ID, most int) *dialogue { return d.begin(p, most, func() {}) }
	a := begin("a", 2)
	if a == nil || begin("a", 2) != nil || begin("b", 2) == nil || begin("c", 2) != nil {
		t.Error("not one a peer, and two in all")
	}
	d.end(a)
	if begin("c", 2) == nil {
		t.Error("no room after one has ended")
	}
}

// When all sessions are taken, the peer that has had the most time makes room for
// one that had less, and its session ends; one that brings news does not count.
func TestDialoguesAreShared(t *testing.T) {
	var d dialogues
	stopped := map[peer.ID]int{}
	begin := func(p peer.ID) *dialogue { return d.begin(p, 2, func() { stopped[p]++ }) }
	slow, good := begin("slow"), begin("good")
	slow.began, good.began = slow.began.Add(-2*ahead), good.began.Add(-time.Hour)
	d.credit(good, int(time.Hour/perNews))
	if begin("new") == nil || stopped["slow"] != 1 || stopped["good"] != 0 {
		t.Fatalf("stopped %v, want the slow one", stopped)
	}
	d.end(slow) // its goroutine ends later, and no other session with it
	if len(d.with) != 2 || d.with["new"] == nil {
		t.Fatalf("%d sessions", len(d.with))
	}
	if begin("slow") != nil {
		t.Error("the slow one is back at once, for another that had less time")
	}
	if s := begin("newest"); s != nil || stopped["new"] != 0 {
		t.Error("a session ends for a peer that had about as much time")
	}
}

// Members that stall, more than there are sessions, do not keep a node from one
// that answers, whoever begins.
func TestColludingPeers(t *testing.T) {
	w, n, ctx := newWorld(t), newFakeNet(), context.Background()
	n.lossy = true
	var stalling []peer.ID
	for i := range 3 * maxSessions {
		stalling = append(stalling, n.hostile(w, fmt.Sprint("eve", i), func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }))
	}
	w.admit("n1", stmt.RoleNode)
	r, _ := start(t, w, n, "n1", t.TempDir())
	if _, err := r.Submit(ctx, w.raws...); err != nil {
		t.Fatal(err)
	}
	for _, p := range stalling[:maxSessions] { // they ask, and say nothing then
		a, b := net.Pipe()
		defer a.Close()
		go r.serve(ctx, p, b)
	}
	eventually(t, "every session is taken", func() bool {
		r.serving.mu.Lock()
		defer r.serving.mu.Unlock()
		return len(r.serving.with) == maxSessions
	})
	for _, d := range []*dialogues{&r.serving, &r.asking} { // as if they had for a while
		d.mu.Lock()
		for p := range d.with {
			d.used[p] = used{2 * ahead, time.Now()}
		}
		d.mu.Unlock()
	}
	w.admit("n2", stmt.RoleNode)
	if _, err := r.Submit(ctx, w.raws...); err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	go r.serve(ctx, peer.ID(pub("n2").PeerID()), b)
	empty := w.state()
	s := &aeSession{rw: a, idx: empty.index(), touch: func(int) {}, apply: func(raws [][]byte) error { applyAll(empty, raws); return nil }}
	if _, err := s.initiate(); err != nil || len(empty.View().Members()) != len(stalling)+2 {
		t.Fatalf("an honest peer is not served: %v, %d members", err, len(empty.View().Members()))
	}
}
