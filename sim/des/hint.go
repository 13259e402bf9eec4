package des

import "github.com/formthefog/formation/crdt/live"

// hintSize is a signed hint (docs/wire.md).
const hintSize = 240

// rumour is a hint under way, and who has heard it. Its signature is not made: no
// node of the simulator lies.
type rumour struct {
	live.Heard
	seen flood
}

// spread tells everybody a hint.
func (n *node) spread(h live.Hint) {
	r := &rumour{live.Heard{From: n.key, Hint: h}, flood{seen: make([]uint64, (len(n.sim.nodes)+63)/64)}}
	r.seen.mark(n.i)
	n.sim.Seen["a hint was told"]++
	n.passOn(r, -1)
}

func (n *node) passOn(r *rumour, except int32) {
	s := n.sim
	for _, o := range n.neighbours() {
		if o != except {
			s.send(Hints, hintSize, event{kind: evHint, node: o, from: n.i, a: int64(s.index[r.Peer]), b: hintWord(r.Hint), load: r})
		}
	}
}

// hintWord is what a hint says, for the trace.
func hintWord(h live.Hint) int64 {
	w := int64(h.Epoch<<32 | h.Count<<1)
	if h.Alive {
		w |= 1
	}
	return w
}

// hint hears a hint; one that the network damaged would not verify.
func (n *node) hint(e *event) {
	r := e.load.(*rumour)
	if n.sim.net.chance(n.sim.net.Damage, e.from, n.i) || !r.seen.mark(n.i) {
		return
	}
	n.passOn(r, e.from)
	n.step(r.Heard)
}
