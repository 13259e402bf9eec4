package des

import (
	"time"

	"github.com/formthefog/formation/sim/gossip"
)

// carrier is what package gossip takes the simulated network for.
type carrier struct{ *Sim }

// Send puts a packet on a stream, where what is lost comes later. One that arrives with
// a wrong bit is none of the router's.
func (c carrier) Send(p gossip.Packet, size int) (time.Duration, bool) {
	s := c.Sim
	class := GossipControl
	if p.Kind == gossip.Payload {
		class = p.Msgs[0].Load.(spoken).class()
	}
	if !s.net.meets(p.From, p.To) {
		s.net.count(class, size)
		s.net.lost++
		return 0, false
	}
	d := s.streamed(class, size, p.From, p.To)
	if p.Kind == gossip.Payload && s.net.chance(s.net.Damage, p.From, p.To) {
		if b, ok := p.Msgs[0].Load.(*batch); ok {
			s.push(event{
				at: s.now + d, kind: evGossip, node: p.To, from: p.From, a: int64(len(b.vs)),
				load: damaged{b, s.net.roll(p.From, p.To)},
			})
		}
		return 0, false
	}
	return s.now + d, true
}

// At has a packet arrive.
func (c carrier) At(at time.Duration, p gossip.Packet) {
	e := event{at: at, node: p.To, from: p.From, a: int64(p.Kind), b: int64(len(p.Msgs)), load: p}
	switch p.Kind {
	case gossip.Beat:
		e.kind, e.life = evBeat, c.nodes[p.To].life
	case gossip.Payload:
		e.kind = p.Msgs[0].Load.(spoken).event()
		if c.cfg.Mutant == HearsLate {
			e.at += 100 * time.Millisecond
		}
	default:
		e.kind = evControl
	}
	c.push(e)
}

// Deliver gives a node what it has not heard yet.
func (c carrier) Deliver(from, to int32, m *gossip.Message) bool {
	return m.Load.(spoken).hear(c.nodes[to], from)
}

// Near is the least that a packet takes.
func (c carrier) Near(a, b int32) time.Duration { return c.net.least(a, b) }

// spoken is something that is spread by gossip.
type spoken interface {
	class() Class
	event() kind
	// hear has a node take it in, and says whether it passes it on.
	hear(n *node, from int32) bool
}

// speak spreads something of a size from n.
func (n *node) speak(what spoken, size int) {
	n.sim.mesh.Publish(n.sim.now, n.i, &gossip.Message{Load: what, Size: size})
}

// speakTo tells it some nodes, connected or not.
func (n *node) speakTo(what spoken, size int, to []int32) {
	n.sim.mesh.PublishTo(n.sim.now, n.i, &gossip.Message{Load: what, Size: size}, to)
}
