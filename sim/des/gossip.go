package des

import (
	"bytes"
	"iter"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/gossip"
)

// gossipBatch is how many statements one message carries (crdt).
const gossipBatch = 64

// damaged is a copy of a batch that has a wrong bit.
type damaged struct {
	*batch
	bit uint64
}

func (*batch) class() Class { return Gossip }
func (*batch) event() kind  { return evGossip }

func (n *node) publish(b batch) {
	n.speak(&b, b.size)
	if n.sim.cfg.Mutant == TellsTwice {
		n.speak(&b, b.size)
	}
}

// hear takes statements in, and passes on what was news.
func (b *batch) hear(n *node, from int32) bool {
	out := n.sim.spoiltMerge(*b, n.receive(*b))
	for i, err := range out.errs {
		if n.sim.lied(from, b.vs[i]) {
			continue
		}
		if err != nil && !crdt.Transient(err) {
			n.sim.broke(Believed, "%v: an honest statement is refused: %v", n, err)
			return false
		}
	}
	if len(out.news) > 0 {
		n.sim.firsts++
	} else if n.sim.nodes[from].liar {
		n.sim.Seen["a replayed statement was nothing new"]++
	}
	return len(out.news) > 0 || n.sim.cfg.Mutant == TellsTwice
}

// gossip receives a message of statements.
func (n *node) gossip(e *event) {
	switch m := e.load.(type) {
	case damaged:
		n.spoilt(m)
	case forged:
		n.suspect(m)
	case gossip.Packet:
		n.sim.mesh.Handle(n.sim.now, m)
	}
}

// spoilt receives a message with one wrong bit: nothing of it may be believed.
func (n *node) spoilt(d damaged) {
	raw := bytes.Clone(d.vs[0].Statement().Raw)
	bit := d.bit % uint64(8*len(raw))
	raw[bit/8] ^= 1 << (bit % 8)
	if v, err := stmt.Check(raw, n.sim.network); err == nil {
		n.sim.broke(Refused, "%v: believes a damaged %s statement", n, v.Statement().Kind)
	}
	n.sim.Seen["a damaged message was refused"]++
}

// given is what one side of an anti-entropy session got from the other.
type given struct {
	batch
	done  bool          // the session is over, and was well
	began time.Duration // by the clock of who initiated it
}

// synchronise holds a session with a peer: peer, or one it is connected to when it is
// -1, which is then asked again after SyncInterval.
func (n *node) synchronise(peer int32) {
	s := n.sim
	if peer < 0 {
		n.after(s.cfg.SyncInterval/2+time.Duration(n.rng.Int64N(int64(s.cfg.SyncInterval))), evSync, -1, 0, nil)
		most := s.mesh.Degree(n.i)
		if most == 0 {
			n.byItself()
			return
		}
		peer = s.mesh.Peer(n.i, n.rng.IntN(most))
	}
	if s.cfg.Mutant == AsksNobody && n.ready {
		return
	}
	p := s.nodes[peer]
	if !p.up || p.asleep(s.now) || !s.net.reaches(n.i, peer) || !s.net.reaches(peer, n.i) {
		if alone := s.now - n.lonely; alone >= giveUpAfter || alone >= aloneAfter && n.alone() {
			n.byItself()
		} else if !n.ready {
			n.after(time.Second, evSync, int64(peer), 0, nil)
		}
		return
	}
	var toPeer, toUs []stmt.Verified
	var way time.Duration
	frames := func(size int, from, to int32) { way += s.streamed(AntiEntropy, size, from, to) }
	if n.h == p.h {
		// Equal states: what a session would find out, in its two frames.
		frames(equalFrame, n.i, peer)
		frames(equalFrame, peer, n.i)
	} else {
		toUs, toPeer = s.converse(n, p, frames)
	}
	if len(toPeer) > 0 {
		s.push(event{at: s.now + way, node: peer, from: n.i, kind: evGive, a: int64(len(toPeer)), load: &given{batch: newBatch(toPeer)}})
	}
	s.push(event{at: s.now + way, node: n.i, from: peer, kind: evGive, a: int64(len(toUs)), load: &given{batch: newBatch(toUs), done: true, began: n.bootTime()}})
}

// equalFrame is a frame with a count and a digest.
const equalFrame = 46

// alone says whether nobody that n is connected to, or remembers, can be reached.
func (n *node) alone() bool {
	away := func(o int32) bool { return !n.sim.nodes[o].up || !n.sim.net.reaches(n.i, o) }
	for k := range n.sim.mesh.Degree(n.i) {
		if !away(n.sim.mesh.Peer(n.i, k)) {
			return false
		}
	}
	return !slices.ContainsFunc(n.links, func(o int32) bool { return !away(o) })
}

// byItself has n decide without anybody to ask.
func (n *node) byItself() {
	n.fresh = n.bootTime()
	n.synced()
}

func (n *node) synced() {
	if !n.ready {
		n.ready = true
		n.plan()
	}
}

// give receives what a session brought, in the messages' size already paid for.
func (n *node) give(e *event) {
	g := e.load.(*given)
	if len(g.vs) > 0 {
		out := n.receive(g.batch)
		n.sim.Seen["statements repaired by anti-entropy"] += len(out.news)
	}
	if g.done {
		n.fresh = max(n.fresh, g.began)
	}
	if g.done && g.began >= n.woke {
		n.synced()
	}
}

// converse runs one anti-entropy session between what a and b hold, a being the
// initiator, and says what each has for the other.
func (s *Sim) converse(a, b *node, frame func(size int, from, to int32)) (forA, forB []stmt.Verified) {
	collect := func(to *[]stmt.Verified) func([][]byte) error {
		return func(raws [][]byte) error {
			for _, raw := range raws {
				v, err := s.pool.check(raw)
				if err != nil {
					return err
				}
				*to = append(*to, v)
			}
			return nil
		}
	}
	var there, back bytes.Buffer
	var answer error
	over := false // a says no more
	resume, stop := iter.Pull(func(yield func(struct{}) bool) {
		rw := &side{in: &there, out: &back, wait: func() bool { return !over && yield(struct{}{}) }}
		rw.sent = func(size int) { frame(size, b.i, a.i) }
		_, answer = b.h.state.Converse(rw, false, collect(&forB))
	})
	defer stop()
	rw := &side{in: &back, out: &there, wait: func() bool {
		_, more := resume()
		return more || back.Len() > 0
	}}
	rw.sent = func(size int) { frame(size, a.i, b.i) }
	if _, err := a.h.state.Converse(rw, true, collect(&forA)); err != nil {
		s.violate("anti-entropy of %v with %v: %v", a, b, err)
	}
	over = true
	resume()
	if answer != nil {
		s.violate("anti-entropy of %v with %v: the answer: %v", a, b, answer)
	}
	return forA, forB
}
