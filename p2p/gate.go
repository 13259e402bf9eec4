package p2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// gate knows, for each connection, which side admitted which. It runs no
// goroutine and calls nothing while it holds its lock.
//
// The two directions are apart on purpose: as soon as we let a peer in it may
// open streams to us, and we open streams to it only after it said that it let
// us in. So neither side ever has to guess what the other knows already.
type gate struct {
	mu    sync.Mutex
	peers map[peer.ID]*gatePeer
}

// gatePeer exists while it has connections, holders or refs. Its fields are
// guarded by gate.mu, except admit.
type gatePeer struct {
	admit   sync.Mutex        // held around Admission.Admit and Gone, so that they alternate
	conns   map[string]*proof // by connection ID
	refs    int
	holders int           // connections on which Admit let the peer in; see Node.release
	changed chan struct{} // closed and replaced when anything here changes
	last    error         // why the latest connection failed
}

// proof is the state of one connection. Fields are guarded by gate.mu.
type proof struct {
	conn    network.Conn
	judged  bool  // a hello was received, of which there may be one
	in      bool  // we admitted the peer
	out     bool  // the peer admitted us
	client  bool  // it said it is a client
	refusal error // why it will fail, once the peer has been told
	failed  error
	since   time.Time     // when both held
	done    chan struct{} // closed when in and out, or failed
}

func (p *proof) admitted() bool { return p.in && p.out && p.failed == nil }

func newGate() *gate { return &gate{peers: make(map[peer.ID]*gatePeer)} }

// ref returns the peer's entry and keeps it until unref.
func (g *gate) ref(p peer.ID) *gatePeer {
	g.mu.Lock()
	defer g.mu.Unlock()
	gp := g.entry(p)
	gp.refs++
	return gp
}

func (g *gate) unref(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peers[p].refs--
	g.tidy(p)
}

// hold counts one holder more or fewer, and returns how many there are. The
// caller holds a ref and the admit lock.
func (g *gate) hold(p peer.ID, more int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peers[p].holders += more
	return g.peers[p].holders
}

func (g *gate) entry(p peer.ID) *gatePeer {
	gp := g.peers[p]
	if gp == nil {
		gp = &gatePeer{conns: make(map[string]*proof), changed: make(chan struct{})}
		g.peers[p] = gp
	}
	return gp
}

func (g *gate) tidy(p peer.ID) {
	if gp := g.peers[p]; gp != nil && gp.refs == 0 && gp.holders == 0 && len(gp.conns) == 0 {
		delete(g.peers, p)
	}
}

// wake tells waiters, and settles the proof if it is decided.
func (gp *gatePeer) wake(pr *proof) {
	if pr != nil && (pr.admitted() || pr.failed != nil) {
		select {
		case <-pr.done:
		default:
			close(pr.done)
		}
	}
	close(gp.changed)
	gp.changed = make(chan struct{})
}

// add registers a connection; adding one twice returns the first proof. A
// closed one is not added, as its closing may have been told already, and nil.
func (g *gate) add(c network.Conn) *proof {
	g.mu.Lock()
	defer g.mu.Unlock()
	if pr := g.find(c); pr != nil || c.IsClosed() {
		return pr
	}
	gp := g.entry(c.RemotePeer())
	pr := &proof{conn: c, done: make(chan struct{})}
	gp.conns[c.ID()] = pr
	gp.wake(pr)
	return pr
}

// remove forgets a closed connection. It says whether the peer was admitted
// before and is not any more, and whether we had let it in on this connection.
func (g *gate) remove(c network.Conn) (down, wasIn bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := c.RemotePeer()
	gp := g.peers[p]
	if gp == nil {
		return false, false
	}
	pr := gp.conns[c.ID()]
	if pr == nil {
		return false, false
	}
	was := pr.admitted()
	if pr.failed == nil && !was {
		if pr.failed = pr.refusal; pr.failed == nil {
			pr.failed = fmt.Errorf("connection to %s closed before it was admitted", p)
		}
		gp.last = pr.failed
	}
	delete(gp.conns, c.ID())
	gp.wake(pr)
	down = was && gp.best(true) == nil
	g.tidy(p)
	return down, pr.in
}

// claimHello reserves the one hello a connection may present.
func (g *gate) claimHello(c network.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	pr := g.find(c)
	if pr == nil || pr.judged || pr.failed != nil {
		return false
	}
	pr.judged = true
	return true
}

func (g *gate) find(c network.Conn) *proof {
	if gp := g.peers[c.RemotePeer()]; gp != nil {
		return gp.conns[c.ID()]
	}
	return nil
}

// allow records one direction of admission. It reports whether the peer has
// just become admitted, having no other admitted connection, and whether the
// connection is still there to be admitted.
func (g *gate) allow(c network.Conn, in bool, client bool, now time.Time) (up, live bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pr := g.find(c)
	if pr == nil || pr.failed != nil {
		return false, false
	}
	gp := g.peers[c.RemotePeer()]
	before := gp.best(true) != nil
	if in {
		pr.in, pr.client = true, client
	} else {
		pr.out = true
	}
	if pr.admitted() {
		pr.since = now
		gp.last = nil
	}
	gp.wake(pr)
	return !before && pr.admitted(), true
}

// refuse notes why a connection will fail, in case it closes before fail.
func (g *gate) refuse(c network.Conn, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if pr := g.find(c); pr != nil {
		pr.refusal = err
	}
}

// fail settles a connection that will not be admitted. The first error stays,
// and so does an admission.
func (g *gate) fail(c network.Conn, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pr := g.find(c)
	if pr == nil || pr.failed != nil || pr.admitted() {
		return
	}
	if pr.refusal != nil && !errors.Is(err, ErrRefused) {
		err = pr.refusal // the peer, told of it, has closed before us
	}
	pr.failed = err
	gp := g.peers[c.RemotePeer()]
	gp.last = err
	gp.wake(pr)
}

// mayOpen says whether we let the peer in on this connection.
func (g *gate) mayOpen(c network.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	pr := g.find(c)
	return pr != nil && pr.in && pr.failed == nil
}

// knows says whether we let the peer in on any connection.
func (g *gate) knows(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	gp := g.peers[p]
	if gp == nil {
		return false
	}
	for _, pr := range gp.conns {
		if pr.in && pr.failed == nil {
			return true
		}
	}
	return false
}

// best picks the admitted connection to use: direct before relayed, then the
// oldest, so that the choice is stable.
func (gp *gatePeer) best(limited bool) *proof {
	var best *proof
	for _, pr := range gp.conns {
		if !pr.admitted() || pr.conn.IsClosed() || (!limited && pr.conn.Stat().Limited) {
			continue
		}
		if best == nil || better(pr, best) {
			best = pr
		}
	}
	return best
}

func better(a, b *proof) bool {
	if ra, rb := isRelayed(a.conn), isRelayed(b.conn); ra != rb {
		return rb
	}
	if !a.since.Equal(b.since) {
		return a.since.Before(b.since)
	}
	return a.conn.ID() < b.conn.ID()
}

// conn returns an admitted connection to p, or nil.
func (g *gate) conn(p peer.ID, limited bool) network.Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gp := g.peers[p]; gp != nil {
		if pr := gp.best(limited); pr != nil {
			return pr.conn
		}
	}
	return nil
}

// wait blocks until p has an admitted connection, or none that may become one.
// The caller holds a ref, taken before the connection was made, so that the
// reason of a refusal is still known here.
func (g *gate) wait(ctx context.Context, p peer.ID, limited bool) (network.Conn, error) {
	for {
		g.mu.Lock()
		gp := g.peers[p]
		if pr := gp.best(limited); pr != nil {
			g.mu.Unlock()
			return pr.conn, nil
		}
		pending := false
		for _, pr := range gp.conns {
			pending = pending || (pr.failed == nil && !pr.admitted())
		}
		last, changed := gp.last, gp.changed
		g.mu.Unlock()
		if !pending {
			if last != nil {
				return nil, last
			}
			return nil, network.ErrNoConn
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for admission by %s: %w", p, ctx.Err())
		}
	}
}

// admittedPeer is a snapshot of one admitted peer's connections.
type admittedPeer struct {
	id     peer.ID
	best   network.Conn
	conns  []network.Conn
	client bool
	since  time.Time
}

func (g *gate) admitted() []admittedPeer {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []admittedPeer
	for p, gp := range g.peers {
		best := gp.best(true)
		if best == nil {
			continue
		}
		a := admittedPeer{id: p, best: best.conn, client: best.client, since: best.since}
		for _, pr := range gp.conns {
			if pr.admitted() {
				a.conns = append(a.conns, pr.conn)
				if pr.since.Before(a.since) {
					a.since = pr.since
				}
			}
		}
		out = append(out, a)
	}
	return out
}

// isClient says whether an admitted peer is a client.
func (g *gate) isClient(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gp := g.peers[p]; gp != nil {
		if pr := gp.best(true); pr != nil {
			return pr.client
		}
	}
	return false
}
