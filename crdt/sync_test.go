package crdt

import (
	"context"
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
		s := &aeSession{rw: c, touch: func() {}}
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
		if err := s.send(aeFrame{Differ: make([]byte, (1<<f.Bits+7)/8), Cut: true}); err != nil {
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
	if err := r.syncWith(context.Background(), p); err != nil {
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
		s := &aeSession{rw: a, touch: func() {}, idx: w.state().index()}
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
	if !d.begin("a", 2) || d.begin("a", 2) || !d.begin("b", 2) || d.begin("c", 2) {
		t.Error("not one a peer, and two in all")
	}
	d.end("a")
	if !d.begin("c", 2) {
		t.Error("no room after one has ended")
	}
}
