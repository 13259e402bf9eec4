package des

import (
	"slices"

	"github.com/formthefog/formation/sim/chance"
)

// Behind puts nodes behind NATs that cannot be punched: two of them reach each other
// through a relay only, a node that is up and behind none (docs/wire.md).
func (s *Sim) Behind(nodes ...int) {
	if s.net.behind == nil {
		s.net.behind = map[int32]bool{}
	}
	for _, i := range nodes {
		s.net.behind[int32(i)] = true
		s.Seen["a node is behind a NAT"]++
	}
	s.net.relays = func(i int32) bool { return s.nodes[i].up && !s.nodes[i].asleep(s.now) && !s.net.behind[i] }
}

// relayed says whether two nodes need a relay.
func (n *network) relayed(a, b int32) bool { return len(n.behind) > 0 && n.behind[a] && n.behind[b] }

// relay is the node by which two talk that cannot do so directly; false: there is
// none that both reach. A circuit that is gone is replaced in no time.
func (n *network) relay(a, b int32) (int32, bool) {
	total := len(n.side)
	at := int(chance.Draw(n.seed, useRelay, uint64(min(a, b)), uint64(max(a, b))) % uint64(total))
	for k := range total {
		r := int32((at + k) % total)
		if n.relays(r) && n.direct(a, r) && n.direct(r, b) && n.direct(b, r) && n.direct(r, a) {
			return r, true
		}
	}
	return 0, false
}

// direct says whether messages get from one node to another without a relay.
func (n *network) direct(from, to int32) bool {
	return n.side[from] == n.side[to] && (len(n.cut) == 0 || !n.cut[pair{from, to}])
}

// NATs are the nodes that are behind one, in order.
func (s *Sim) NATs() []int {
	var out []int
	for i := range s.net.behind { // any order: sorted below
		out = append(out, int(i))
	}
	slices.Sort(out)
	return out
}
