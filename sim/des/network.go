package des

import (
	"time"
)

// NetConfig is how the network behaves. Probabilities are per message.
type NetConfig struct {
	Delay     Range   // one way, drawn once per pair of nodes
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
	Classes // how many there are
)

func (c Class) String() string { return [...]string{"probes", "hints", "gossip", "anti-entropy"}[c] }

// Traffic is what was sent.
type Traffic struct{ Messages, Bytes uint64 }

// overhead is what is around a message on the wire: IP, UDP and QUIC.
const overhead = 60

// retransmit is what a loss costs on a stream, beside the way once more.
const retransmit = 200 * time.Millisecond

type pair struct{ from, to int32 }

// network is who reaches whom, and how fast.
type network struct {
	NetConfig
	seed  uint64
	sent  [][]uint32 // per sender and receiver: how many draws its link has made
	side  []int32
	cut   map[pair]bool
	extra []time.Duration // what a slow node takes for a message
	total [Classes]Traffic
	lost  uint64
}

func newNetwork(cfg NetConfig, seed uint64) *network {
	return &network{NetConfig: cfg, seed: seed, cut: map[pair]bool{}}
}

func (n *network) add() {
	n.sent = append(n.sent, nil)
	n.side = append(n.side, 0)
	n.extra = append(n.extra, 0)
}

func (n *network) reaches(from, to int32) bool {
	return n.side[from] == n.side[to] && (len(n.cut) == 0 || !n.cut[pair{from, to}])
}

// roll is the next draw of a link.
func (n *network) roll(from, to int32) uint64 {
	if len(n.sent[from]) <= int(to) {
		n.sent[from] = append(n.sent[from], make([]uint32, int(to)+1-len(n.sent[from]))...)
	}
	n.sent[from][to]++
	return draw(n.seed, useLink, uint64(from), uint64(to), uint64(n.sent[from][to]))
}

// way is how long a message takes now.
func (n *network) way(from, to int32) time.Duration {
	lo, hi := min(from, to), max(from, to)
	base := n.Delay.at(draw(n.seed, useDelay, uint64(lo), uint64(hi)))
	return base + time.Duration(n.Jitter*unit(n.roll(from, to))*float64(base)) + n.extra[to]
}

// chance is whether something of probability p happens to a message.
func (n *network) chance(p float64, from, to int32) bool {
	return p > 0 && unit(n.roll(from, to)) < p
}

// send puts e on its way as a datagram of size bytes: it may get lost or arrive
// twice.
func (s *Sim) send(class Class, size int, e event) {
	n := s.net
	n.total[class].Messages++
	n.total[class].Bytes += uint64(size + overhead)
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
	n.total[class].Messages++
	n.total[class].Bytes += uint64(size + overhead)
	d := n.way(from, to)
	for range 8 {
		if !n.chance(n.Loss, from, to) {
			break
		}
		d += retransmit + n.way(from, to)
	}
	return d
}
