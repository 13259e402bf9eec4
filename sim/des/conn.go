package des

import (
	"slices"
	"time"

	"github.com/formthefog/formation/sim/chance"
)

// Connections: who may gossip with whom, as package p2p makes them. A node dials up to
// wantPeers of those that were there before it, remembers them, dials anew whom it lost,
// and finds others as long as it has too few.
const (
	wantPeers = 16               // p2p
	idleAfter = 30 * time.Second // a connection over which nothing comes ends then (QUIC)
	maxRedial = 30 * time.Second // the longest wait between two attempts
	attempts  = 6                // to reach one of those it remembers
	findTries = 8                // nodes that are looked at to find a further one
)

// soon is when a node dials, and looks for peers, after it starts or loses some.
var soon = Range{100 * time.Millisecond, time.Second}

// anybody is whom a node dials that looks for any further peer.
const anybody = -1

// draws has n choose whom it dials, among those before it: who comes later changes
// nothing for them.
func (n *node) draws() {
	s := n.sim
	rng := chance.Stream(s.cfg.Seed, useMesh, uint64(n.i))
	for range min(wantPeers, int(n.i)) {
		for {
			o := int32(rng.IntN(int(n.i)))
			if !slices.Contains(n.links, o) {
				n.links = append(n.links, o)
				s.nodes[o].links = append(s.nodes[o].links, n.i)
				break
			}
		}
	}
}

// appear begins a life among the others. Those whose connections to an earlier one have
// not ended yet find out now, as its keys are gone.
func (n *node) appear(settled bool) {
	s := n.sim
	for _, o := range n.former {
		s.mesh.Disconnect(s.now, n.i, o)
	}
	n.former = nil
	s.mesh.Up(s.now, n.i)
	for _, o := range n.links {
		if !settled {
			n.after(soon.draw(n.rng), evDial, int64(o), 0, nil)
		} else if s.nodes[o].up {
			// Of two the later one has dialled.
			s.mesh.Connect(s.now, max(n.i, o), min(n.i, o))
		}
	}
}

// vanish ends a life without a word: the others notice by silence.
func (n *node) vanish() {
	s, life := n.sim, n.life
	n.former = s.mesh.Peers(n.i)
	s.mesh.Down(n.i)
	s.Do(idleAfter, func() {
		if n.life != life || n.up {
			return
		}
		for _, o := range n.former {
			s.mesh.Disconnect(s.now, n.i, o)
			s.nodes[o].refill()
		}
		n.former = nil
	})
}

// refill has n look for a further peer if it has few.
func (n *node) refill() {
	if n.up && !n.seeking && n.sim.mesh.Degree(n.i) < min(wantPeers, len(n.sim.nodes)-1) {
		n.seeking = true
		n.after(soon.draw(n.rng), evDial, anybody, 0, nil)
	}
}

// dial tries to connect to a peer.
func (n *node) dial(peer int32, tries int64) {
	s := n.sim
	if s.cfg.Mutant == NeverReunites && s.Seen["heal"] > 0 {
		return
	}
	if peer == anybody {
		n.find(tries)
		return
	}
	switch {
	case s.mesh.Connected(n.i, peer) && s.mesh.Connected(peer, n.i):
	case s.nodes[peer].up && !s.nodes[peer].asleep(s.now) && s.net.meets(n.i, peer):
		s.mesh.Connect(s.now, n.i, peer)
	case tries+1 < attempts:
		n.after(n.backOff(tries), evDial, int64(peer), tries+1, nil)
	}
}

func (n *node) backOff(tries int64) time.Duration {
	wait := min(soon.Max<<min(tries, 10), maxRedial)
	return Range{wait / 2, wait * 3 / 2}.draw(n.rng)
}

// find looks for a further peer among all there are, as the DHT has them.
func (n *node) find(tries int64) {
	s := n.sim
	n.seeking = false
	for range findTries {
		o := int32(n.rng.IntN(len(s.nodes)))
		if o != n.i && s.nodes[o].up && !s.nodes[o].asleep(s.now) && s.net.meets(n.i, o) && !s.mesh.Connected(n.i, o) {
			s.mesh.Connect(s.now, n.i, o)
			n.refill()
			return
		}
	}
	if s.mesh.Degree(n.i) < min(wantPeers, len(s.nodes)-1) {
		n.seeking = true
		n.after(n.backOff(tries), evDial, anybody, tries+1, nil)
	}
}

// rewired notes that who reaches whom has changed. Connections over which nothing comes
// any more end after a while.
func (s *Sim) rewired() {
	s.net.ver++
	if !s.net.split() {
		s.whole = s.now
		return
	}
	var apart []pair
	for _, n := range s.nodes {
		for k := range s.mesh.Degree(n.i) {
			if o := s.mesh.Peer(n.i, k); n.i < o && !s.net.meets(n.i, o) {
				apart = append(apart, pair{n.i, o})
			}
		}
	}
	s.Do(idleAfter, func() {
		for _, p := range apart {
			if !s.net.meets(p.from, p.to) {
				s.mesh.Disconnect(s.now, p.from, p.to)
				s.nodes[p.from].refill()
				s.nodes[p.to].refill()
			}
		}
	})
}

// reunite has nodes that cannot reach each other, and will now, find each other again
// within a while, and compare what they hold.
func (s *Sim) reunite() {
	for _, n := range s.nodes {
		if !n.up {
			continue
		}
		for _, o := range n.links {
			if !s.net.meets(n.i, o) {
				d := time.Duration(n.rng.Int64N(int64(redial)))
				n.after(d, evDial, int64(o), 0, nil)
				n.after(d+soon.Min, evSync, int64(o), 0, nil)
			}
		}
	}
}
