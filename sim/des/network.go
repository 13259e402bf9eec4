package des

import (
	"time"

	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/gossip"
	"github.com/formthefog/formation/sim/regions"
)

// NetConfig is how the network behaves. Probabilities are per message.
type NetConfig struct {
	Delay Range // one way, drawn once per pair of nodes
	// Regions has nodes be where a fleet's are, by its weights, and messages take as
	// long as from there to there (package regions), not Delay.
	Regions   bool
	Jitter    float64 // each message takes up to this share longer
	Loss      float64
	Duplicate float64
	Damage    float64 // of gossip: one bit arrives wrong
}

// Class is what a message is for.
type Class uint8

// The classes of messages.
const (
	Probes Class = iota
	Hints
	Gossip
	AntiEntropy
	Leases
	GossipControl // what routers of gossip say to each other
	Classes       // how many there are
)

func (c Class) String() string {
	return [...]string{"probes", "hints", "gossip", "anti-entropy", "leases", "gossip control"}[c]
}

// Traffic is what was sent.
type Traffic struct{ Messages, Bytes uint64 }

// overhead is what is around a message on the wire: IP, UDP and QUIC.
const overhead = 60

type pair struct{ from, to int32 }

// network is who reaches whom, and how fast.
type network struct {
	NetConfig
	seed   uint64
	sent   []tally // by sender: how many draws each of its links has made
	at     []int   // the region of each node
	side   []int32
	sides  int // of the partition
	cut    map[pair]bool
	extra  []time.Duration // what a slow node takes for a message
	total  [Classes]Traffic
	lost   uint64
	behind map[int32]bool   // a NAT
	relays func(int32) bool // who can be one
	ver    uint64           // raised when who reaches whom changes

	ownDice bool // OwnDice
}

func newNetwork(cfg NetConfig, seed uint64) *network {
	return &network{NetConfig: cfg, seed: seed, cut: map[pair]bool{}}
}

func (n *network) add() {
	n.sent = append(n.sent, tally{})
	n.at = append(n.at, regions.Pick(chance.Unit(chance.Draw(n.seed, useRegion, uint64(len(n.at))))))
	n.side = append(n.side, 0)
	n.extra = append(n.extra, 0)
}

func (n *network) reaches(from, to int32) bool {
	if n.relayed(from, to) {
		_, ok := n.relay(from, to)
		return ok
	}
	return n.direct(from, to)
}

// split says whether somebody does not reach everybody.
func (n *network) split() bool { return n.sides > 1 || len(n.cut) > 0 }

// meets says whether two nodes reach each other.
func (n *network) meets(a, b int32) bool { return n.reaches(a, b) && n.reaches(b, a) }

// roll is the next draw of a link.
func (n *network) roll(from, to int32) uint64 {
	if n.ownDice {
		return chance.Draw(n.seed, useLink, thrown.Add(1))
	}
	return chance.Draw(n.seed, useLink, uint64(from), uint64(to), uint64(n.sent[from].next(to)))
}

// least is how long a message takes when nothing holds it up.
func (n *network) least(a, b int32) time.Duration {
	if n.relayed(a, b) {
		if r, ok := n.relay(a, b); ok {
			return n.straight(a, r) + n.straight(r, b)
		}
	}
	return n.straight(a, b)
}

// straight is least without a relay.
func (n *network) straight(a, b int32) time.Duration {
	if n.Regions {
		return regions.RoundTrip(n.at[a], n.at[b]) / 2
	}
	return n.Delay.at(chance.Draw(n.seed, useDelay, uint64(min(a, b)), uint64(max(a, b))))
}

// Region is where a node is; empty when there are no regions.
func (s *Sim) Region(i int) string {
	if !s.net.Regions {
		return ""
	}
	return regions.Of(s.net.at[i]).Name
}

// way is how long a message takes now.
func (n *network) way(from, to int32) time.Duration {
	base := n.least(from, to)
	return base + time.Duration(n.Jitter*chance.Unit(n.roll(from, to))*float64(base)) + n.extra[to]
}

// chance is whether something of probability p happens to a message.
func (n *network) chance(p float64, from, to int32) bool {
	return p > 0 && chance.Unit(n.roll(from, to)) < p
}

func (n *network) count(class Class, size int) {
	n.total[class].Messages++
	n.total[class].Bytes += uint64(size + overhead)
}

// send puts e on its way as a datagram of size bytes: it may get lost or arrive
// twice.
func (s *Sim) send(class Class, size int, e event) {
	n := s.net
	n.count(class, size)
	if !n.reaches(e.from, e.node) || n.chance(n.Loss, e.from, e.node) {
		n.lost++
		return
	}
	e.at = s.now + n.way(e.from, e.node)
	s.push(e)
	if n.chance(n.Duplicate, e.from, e.node) {
		e.at = s.now + n.way(e.from, e.node)
		s.push(e)
	}
}

// streamed is how long size bytes take on a stream, where loss is only delay.
func (s *Sim) streamed(class Class, size int, from, to int32) time.Duration {
	n := s.net
	n.count(class, size)
	d := n.way(from, to)
	wait := gossip.Retry(n.least(from, to))
	for range 8 {
		if !n.chance(n.Loss, from, to) {
			break
		}
		d, wait = d+wait, 2*wait
	}
	return d
}
