package crdt

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// fakeNet connects replicas in memory. Gossip reaches everyone not cut off,
// unless lossy, when it reaches nobody.
type fakeNet struct {
	mu    sync.Mutex
	ends  map[peer.ID]*fakeEnd
	cut   map[peer.ID]bool
	lossy bool
}

type fakeEnd struct {
	net      *fakeNet
	id       peer.ID
	r        *Replica
	validate func(context.Context, peer.ID, []byte) bool
	handle   func(context.Context, peer.ID, net.Conn)
}

func newFakeNet() *fakeNet {
	return &fakeNet{ends: map[peer.ID]*fakeEnd{}, cut: map[peer.ID]bool{}}
}

func (n *fakeNet) end(key stmt.Key) *fakeEnd {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := &fakeEnd{net: n, id: peer.ID(key.PeerID())}
	n.ends[e.id] = e
	return e
}

func (n *fakeNet) setCut(key stmt.Key, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[peer.ID(key.PeerID())] = cut
}

func (e *fakeEnd) reachable() []*fakeEnd {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	var out []*fakeEnd
	for id, o := range e.net.ends {
		if id != e.id && !e.net.cut[id] && !e.net.cut[e.id] && o.handle != nil {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *fakeEnd) int { return strings.Compare(string(a.id), string(b.id)) })
	return out
}

func (e *fakeEnd) Peers() []peer.ID {
	var out []peer.ID
	for _, o := range e.reachable() {
		out = append(out, o.id)
	}
	return out
}

func (e *fakeEnd) Open(ctx context.Context, p peer.ID, proto string) (net.Conn, error) {
	for _, o := range e.reachable() {
		if o.id == p {
			a, b := net.Pipe()
			go o.handle(context.WithoutCancel(ctx), e.id, b)
			return a, nil
		}
	}
	return nil, fmt.Errorf("%s is not reachable", p)
}

func (e *fakeEnd) Handle(_ string, h func(context.Context, peer.ID, net.Conn)) {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	e.handle = h
}

func (e *fakeEnd) Subscribe(_ context.Context, _ string, validate func(context.Context, peer.ID, []byte) bool) error {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	e.validate = validate
	return nil
}

func (e *fakeEnd) Publish(ctx context.Context, _ string, msg []byte) error {
	e.net.mu.Lock()
	lossy := e.net.lossy
	e.net.mu.Unlock()
	for _, o := range e.reachable() {
		if !lossy && o.validate != nil {
			o.validate(ctx, e.id, msg)
		}
	}
	return nil
}

// hello lets a new replica and those that are there admit one another, as the
// opening of a connection does.
func (n *fakeNet) hello(t *testing.T, w *world, end *fakeEnd, r *Replica) {
	t.Helper()
	admission := map[stmt.Key][]byte{}
	for _, raw := range w.raws {
		if m, err := stmt.CheckMember(raw, w.net, w.root); err == nil && m.Role == stmt.RoleNode && !m.Revoked {
			admission[m.Key] = raw
		}
	}
	n.mu.Lock()
	var others []*Replica
	for _, o := range n.ends {
		if o.r != nil {
			others = append(others, o.r)
		}
	}
	end.r = r
	n.mu.Unlock()
	admit := func(at *Replica, key stmt.Key) {
		if raw := admission[key]; raw != nil {
			if _, _, err := at.Admit(context.Background(), raw, stmt.Key{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, o := range others {
		admit(o, r.key)
		admit(r, o.key)
	}
}

// start opens and runs a replica of w's network in dir; stop ends it.
func start(t *testing.T, w *world, n *fakeNet, name, dir string) (r *Replica, stop func()) {
	t.Helper()
	end := n.end(pub(name))
	r, err := Open(ReplicaConfig{
		Dir: dir, Key: keyOf(name), Network: w.net, Root: w.root, RootKey: keyOf("root"), Engine: NewModel(),
		Gossip: end, Streams: end, SyncInterval: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.hello(t, w, end, r)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: run: %v", name, err)
		}
		n.mu.Lock()
		if n.ends[end.id] == end {
			delete(n.ends, end.id)
		}
		n.mu.Unlock()
	})
	t.Cleanup(stop)
	return r, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func sameViews(rs ...*Replica) func() bool {
	return func() bool {
		want := render(rs[0].View())
		return !slices.ContainsFunc(rs, func(r *Replica) bool { return render(r.View()) != want })
	}
}

// Statements submitted anywhere reach everyone by gossip; what gossip loses, and
// what a node missed while it was cut off, comes by anti-entropy.
func TestReplicasConverge(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lossy=%v", lossy), func(t *testing.T) {
			w, n, ctx := newWorld(t), newFakeNet(), context.Background()
			n.lossy = lossy
			var rs []*Replica
			for i := range 4 {
				name := fmt.Sprintf("n%d", i)
				w.admit(name, stmt.RoleNode)
				r, _ := start(t, w, n, name, t.TempDir())
				rs = append(rs, r)
			}
			w.admit("olga", stmt.RoleOwner)
			if _, err := rs[0].Submit(ctx, w.raws...); err != nil {
				t.Fatal(err)
			}
			for i, r := range rs {
				eventually(t, "membership everywhere", func() bool {
					return r.View().IsMember(r.key, stmt.RoleNode) && r.View().IsMember(pub("olga"), stmt.RoleOwner)
				})
				if err := r.SetNode(ctx, Node{Version: fmt.Sprint(i)}); err != nil {
					t.Fatal(err)
				}
			}
			n.setCut(pub("n3"), true)
			a := w.author("olga", nil)
			id, raws, err := a.Create(Spec{Name: "hello", Replicas: 2})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rs[1].Submit(ctx, raws...); err != nil {
				t.Fatal(err)
			}
			if err := rs[1].SetClaims(ctx, []Claim{{Instance: id, Phase: ClaimClaimed}}); err != nil {
				t.Fatal(err)
			}
			n.setCut(pub("n3"), false)
			eventually(t, "the claim everywhere", func() bool {
				return !slices.ContainsFunc(rs, func(r *Replica) bool { return len(r.View().Claims(id)) != 1 })
			})
			raws, err = a.Delete(id)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rs[2].Submit(ctx, raws...); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the deletion everywhere, and equal views", func() bool {
				return len(rs[3].View().Instances()) == 0 && sameViews(rs...)()
			})
		})
	}
}

// A restart rebuilds the state from disk, takes a higher epoch, and does not say
// again what has not changed.
func TestRestart(t *testing.T) {
	w, n, ctx, dir := newWorld(t), newFakeNet(), context.Background(), t.TempDir()
	w.admit("n1", stmt.RoleNode)
	w.admit("olga", stmt.RoleOwner)
	id, raws, err := w.author("olga", nil).Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	r, stop := start(t, w, n, "n1", dir)
	if _, err := r.Submit(ctx, append(w.raws, raws...)...); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r.cfg); err == nil {
		t.Fatal("a directory in use is opened twice")
	}
	two := []Claim{{Instance: id, Slot: 0, Phase: ClaimRunning}, {Instance: id, Slot: 1, Phase: ClaimRunning}}
	if err := r.SetClaims(ctx, two); err != nil {
		t.Fatal(err)
	}
	if err := r.SetNode(ctx, Node{Version: "1"}); err != nil {
		t.Fatal(err)
	}
	before, size := render(r.View()), r.Stats().LogBytes
	if err := r.SetClaims(ctx, two); err != nil || r.Stats().LogBytes != size {
		t.Fatalf("the same claims again are written again (%v)", err)
	}
	stop()

	r, stop = start(t, w, n, "n1", dir)
	if got := render(r.View()); got != before {
		t.Fatalf("after restart:%s", diffLines(before, got))
	}
	if err := r.SetClaims(ctx, two[:1]); err != nil {
		t.Fatal(err)
	}
	if err := r.SetNode(ctx, Node{Version: "1"}); err != nil {
		t.Fatal(err)
	}
	v := r.View()
	if c := v.Claims(id); len(c) != 1 || c[0].Slot != 0 || c[0].Epoch != 1 {
		t.Fatalf("claims after restart: %+v", c)
	}
	if node, _ := v.Node(pub("n1")); node.Epoch != 2 {
		t.Fatalf("node register of epoch %d after restart, want 2", node.Epoch)
	}
	stop()
}

// A node that lost its disk takes an epoch above what its peers remember of it,
// so that it is heard, and its forgotten claims become tombstones.
func TestLostDisk(t *testing.T) {
	w, n, ctx := newWorld(t), newFakeNet(), context.Background()
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	w.admit("olga", stmt.RoleOwner)
	id, raws, err := w.author("olga", nil).Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	all := append(w.raws, raws...)
	keep, _ := start(t, w, n, "n2", t.TempDir())
	dir := t.TempDir()
	for range 3 {
		r, stop := start(t, w, n, "n1", dir)
		if _, err := r.Submit(ctx, all...); err != nil {
			t.Fatal(err)
		}
		if err := r.SetNode(ctx, Node{Version: "old"}); err != nil {
			t.Fatal(err)
		}
		if err := r.SetClaims(ctx, []Claim{{Instance: id, Phase: ClaimRunning}}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the peer has the claim", func() bool { return len(keep.View().ClaimsBy(pub("n1"))) == 1 })
		stop()
	}

	n.setCut(pub("n1"), true)
	r, _ := start(t, w, n, "n1", t.TempDir())
	if _, err := r.Submit(ctx, all...); err != nil {
		t.Fatal(err)
	}
	if err := r.SetNode(ctx, Node{Version: "new"}); err != nil { // epoch 1: the peers hold 3
		t.Fatal(err)
	}
	if err := r.SetClaims(ctx, nil); err != nil {
		t.Fatal(err)
	}
	n.setCut(pub("n1"), false)
	eventually(t, "the peer hears the new life of n1", func() bool {
		node, ok := keep.View().Node(pub("n1"))
		return ok && node.Version == "new" && node.Epoch == 4 && len(keep.View().ClaimsBy(pub("n1"))) == 0
	})
}

// Watch gives the current view first and then, sooner or later, the latest.
func TestWatch(t *testing.T) {
	w, n := newWorld(t), newFakeNet()
	r, _ := start(t, w, n, "n1", t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	ch := r.Watch(ctx)
	if v := <-ch; len(v.Members()) != 0 {
		t.Fatal("the first view is not the current one")
	}
	for i := range 20 {
		if _, err := r.Submit(context.Background(), w.admit(fmt.Sprintf("m%d", i), stmt.RoleNode)); err != nil {
			t.Fatal(err)
		}
	}
	last := uint64(0)
	for v := range ch {
		if v.Version() < last {
			t.Fatal("an older view after a newer one")
		}
		if last = v.Version(); len(v.Members()) == 20 {
			break
		}
	}
	cancel()
	for range ch { // closed once ctx has ended
	}
}

// The log is rewritten when most of it is superseded, and loses nothing by it.
func TestCompaction(t *testing.T) {
	w, n, ctx, dir := newWorld(t), newFakeNet(), context.Background(), t.TempDir()
	r, stop := start(t, w, n, "n1", dir)
	if _, err := r.Submit(ctx, w.admit("n1", stmt.RoleNode)); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 6000)
	for i := range 400 {
		body, err := encodeNode(Node{Version: fmt.Sprint(i), Region: big}, mark{})
		if err != nil {
			t.Fatal(err)
		}
		raw := w.register("n1", stmt.KindNode, 1, uint64(i+1), body, nil)
		if _, err := r.merge("", [][]byte{raw}, testNow); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a compacted log", func() bool { return r.Stats().LogBytes < compactAbove })
	before := render(r.View())
	stop()
	r, stop = start(t, w, n, "n1", dir)
	defer stop()
	if got := render(r.View()); got != before {
		t.Fatalf("after compaction:%s", diffLines(before, got))
	}
}

// A few sessions make any two replicas equal, whatever each held.
func TestAntiEntropy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := history(t, false)
		states := []*State{w.state(), w.state()}
		for _, raw := range w.raws {
			which := rapid.IntRange(0, 2).Draw(t, "who has it")
			for i, s := range states {
				if which == i || which == 2 {
					_, _ = s.Apply(raw, time.Time{})
				}
			}
		}
		// A statement that waited for another is offered in the session after
		// the one that brought the other, so that chains take a few.
		equal := func() bool { return digest(states[0].index().items) == digest(states[1].index().items) }
		for n := 0; n == 0 || !equal(); n++ {
			if err := converse(states[0], states[1]); err != nil || n > 10 {
				t.Fatalf("session %d: %v %s", n, err, diffIndex(states[0], states[1]))
			}
		}
		ref := w.state()
		applyAll(ref, w.raws)
		for i, s := range states {
			if got, want := render(s.View()), render(ref.View()); got != want {
				t.Fatalf("state %d:%s", i, diffLines(want, got))
			}
		}
	})
}

// converse holds one session between two states.
func converse(a, b *State) error {
	ca, cb := net.Pipe()
	side := func(s *State, c net.Conn) *aeSession {
		return &aeSession{rw: c, idx: s.index(), touch: func(int) {}, apply: func(raws [][]byte) error {
			applyAll(s, raws)
			return nil
		}}
	}
	sb := side(b, cb)
	done := make(chan error, 1)
	go func() {
		err := sb.respond()
		cb.Close()
		done <- err
	}()
	_, err := side(a, ca).initiate()
	ca.Close()
	if rerr := <-done; err == nil {
		err = rerr
	}
	return err
}

// An empty peer gets everything in one go; equal peers exchange one frame each.
func TestAntiEntropyCost(t *testing.T) {
	w := newWorld(t)
	for i := range 300 {
		w.admit(fmt.Sprintf("m%d", i), stmt.RoleNode)
	}
	full, empty := w.state(), w.state()
	applyAll(full, w.raws)
	size := 0
	for _, raw := range w.raws {
		size += len(raw)
	}
	moved := countBytes(t, empty, full)
	if len(empty.index().items) != 300 {
		t.Fatalf("the empty peer has %d of 300", len(empty.index().items))
	}
	if float64(moved) > 1.35*float64(size) {
		t.Errorf("%d bytes moved for %d of statements (%.2f)", moved, size, float64(moved)/float64(size))
	}
	if moved := countBytes(t, empty, full); moved > 200 {
		t.Errorf("%d bytes moved between equals", moved)
	}
	t.Logf("%d bytes for %d of statements", moved, size)
}

func countBytes(t *testing.T, a, b *State) int {
	t.Helper()
	ca, cb := net.Pipe()
	cc := &countConn{Conn: ca}
	side := func(s *State, c net.Conn) *aeSession {
		return &aeSession{rw: c, idx: s.index(), touch: func(int) {}, apply: func(raws [][]byte) error { applyAll(s, raws); return nil }}
	}
	sb := side(b, cb)
	done := make(chan error, 1)
	go func() { done <- sb.respond() }()
	if _, err := side(a, cc).initiate(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return cc.n
}

type countConn struct {
	net.Conn
	n int
}

func (c *countConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n += n
	return n, err
}

func (c *countConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n += n
	return n, err
}

// deafEnd is one that cannot be subscribed to.
type deafEnd struct {
	fakeEnd
	err error
}

func (e *deafEnd) Subscribe(context.Context, string, func(context.Context, peer.ID, []byte) bool) error {
	return e.err
}

// Who is told to end while it begins ends in order; that nothing can be heard is an
// error else.
func TestRunEndsWhileItBegins(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		fail bool
	}{{over, false}, {t.Context(), true}} {
		r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: stmt.NewNetworkID("deaf", stmt.Key{}), Engine: NewModel(), Gossip: &deafEnd{err: net.ErrClosed}}, newMemFS(1))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Run(c.ctx); (err != nil) != c.fail {
			t.Errorf("told to end %v: %v", c.ctx.Err() != nil, err)
		}
	}
}
