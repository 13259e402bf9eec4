package des

import (
	"math/rand/v2"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// Corrupt has a node lie from now on: it runs nothing, decides nothing, and says
// what the methods here have it say. It goes on to answer, to pass on and to
// compare what it holds: who says nothing is only dead.
func (s *Sim) Corrupt(i int) {
	n := s.nodes[i]
	n.liar = true
	for _, v := range n.vms { // any order: all of them
		v.run, v.downAt, v.until = false, 0, 0
	}
	s.Seen["a node lies"]++
}

// Honest are the nodes that are up, awake and do not lie.
func (s *Sim) Honest() []int {
	return slices.DeleteFunc(s.Reachable(), func(i int) bool { return s.nodes[i].liar })
}

// lied says whether a message is of, or about what was said by, one that lies.
func (s *Sim) lied(from int32, v stmt.Verified) bool {
	i, isNode := s.index[v.Statement().Author]
	return s.nodes[from].liar || isNode && s.nodes[i].liar
}

// say has a liar tell some of the others.
func (n *node) say(vs []stmt.Verified, to []int32) {
	if len(vs) == 0 || !n.up {
		return
	}
	b := newBatch(vs)
	n.merge(b)
	n.speakTo(&b, b.size, to)
}

// own are statements of n; making them fails only by what n said before.
func (n *node) own(vs []stmt.Verified, err error) []stmt.Verified {
	if err != nil {
		n.sim.violate("%v, which lies: %v", n, err)
	}
	for _, v := range vs {
		n.sim.pool.learn(v)
	}
	return vs
}

// Equivocate has a liar tell one half of those it gossips with one thing of itself,
// and the other half another, both by the same number.
func (s *Sim) Equivocate(i int, a, b crdt.Resources) {
	n := s.nodes[i]
	node := n.register()
	node.Total = a
	one := n.own(n.regs.Node(n.h.state, node))
	node.Total = b
	other := n.own(crdt.NewRegisters(n.priv, s.network, 0).Node(n.h.state, node))
	if len(one) == 0 || len(other) == 0 {
		return
	}
	first, second := one[len(one)-1].Statement(), other[len(other)-1].Statement()
	raw, err := stmt.Sign(n.priv, stmt.Statement{
		Kind: second.Kind, Network: s.network, Epoch: first.Epoch, Seq: first.Seq, Body: second.Body,
	})
	var twin stmt.Verified
	if err == nil {
		twin, err = s.pool.check(raw)
	}
	if err != nil {
		s.violate("%v, which lies: %v", n, err)
		return
	}
	peers := s.mesh.Peers(n.i)
	half := len(peers) / 2
	n.say(one, peers[:half])
	n.say([]stmt.Verified{twin}, peers[half:])
	s.Seen["a node equivocated"]++
}

// Boast has a liar offer more than it has.
func (s *Sim) Boast(i int, total crdt.Resources) {
	n := s.nodes[i]
	node := n.register()
	node.Total = total
	n.say(n.own(n.regs.Node(n.h.state, node)), s.mesh.Peers(n.i))
	s.Seen["a node boasted"]++
}

// Usurp has a liar say that it runs these slots, by the latest claim on each.
func (s *Sim) Usurp(i int, slots []plan.Slot) {
	n := s.nodes[i]
	v := n.view().view
	var claims []crdt.Claim
	for _, slot := range slots {
		spec, lives := v.Instance(slot.Instance)
		if !lives {
			continue
		}
		c := crdt.Claim{
			Instance: slot.Instance, Owner: spec.Owner, Slot: slot.Slot, Generation: 1, Phase: crdt.ClaimRunning, Ready: true,
			Pack: spec.Pack, Accel: "kvm", SpecGeneration: spec.Generation, StartedAt: wall, ReadyAt: wall,
		}
		for _, o := range v.Claims(slot.Instance) {
			if o.Slot == slot.Slot && o.Node != n.key {
				c.Generation = max(c.Generation, min(o.Generation+1, crdt.MaxGeneration))
			}
		}
		claims = append(claims, c)
	}
	for vs := range slices.Chunk(n.own(n.regs.Claims(n.h.state, claims)), gossipBatch) {
		n.say(vs, s.mesh.Peers(n.i))
	}
	s.Seen["a node usurped"]++
}

// Replay has a liar say again what it once heard.
func (s *Sim) Replay(i, count int, rng *rand.Rand) {
	n := s.nodes[i]
	log := n.disk.log()
	var vs []stmt.Verified
	for range min(count, len(log)) {
		vs = append(vs, log[rng.IntN(len(log))])
	}
	for part := range slices.Chunk(vs, gossipBatch) {
		n.say(part, s.mesh.Peers(n.i))
	}
	s.Seen["a node replayed"]++
}
