package des

import "github.com/formthefog/formation/crdt/live"

// hintSize is a signed hint (docs/wire.md).
const hintSize = 240

// rumour is a hint under way. Its signature is not made: no node of the simulator lies
// in one.
type rumour struct{ live.Heard }

func (*rumour) class() Class { return Hints }
func (*rumour) event() kind  { return evHint }

func (r *rumour) hear(n *node, _ int32) bool {
	n.step(r.Heard)
	return true
}

// spread tells everybody a hint.
func (n *node) spread(h live.Hint) {
	n.sim.Seen["a hint was told"]++
	n.speak(&rumour{live.Heard{From: n.key, Hint: h}}, hintSize)
}
