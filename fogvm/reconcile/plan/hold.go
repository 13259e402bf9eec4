package plan

import (
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// hold keeps a copy of the instance's pack here when this node is one of those
// that should hold it beside the nodes that run it.
func (p *planner) hold(s *crdt.Spec, claims []crdt.Claim, runs bool) {
	if runs || p.self == nil || !p.accepts(s) || refusal(s) != "" || p.whollyOver(s) {
		return
	}
	for _, k := range p.World.spares(s, claims) {
		if k == p.Self {
			p.spare(s.Pack)
			return
		}
	}
}

// spare keeps a pack here. While nodes are dead, what is missing begins to come
// within the budget only: it may be them that this node stands in for.
func (p *planner) spare(pack string) {
	if bytes, _ := p.cost(pack); bytes > 0 && len(p.World.Dead) > 0 {
		if due := p.repairDue(false, pack); p.Now < due {
			p.keep[pack] = true
			p.wake(due)
			return
		}
		p.repaired(false, pack)
	}
	p.fetch(pack, false)
}

// spares are the nodes that hold a pack without running it: by DESIGN §6
// min(replicas, eligible − replicas) of them, by rendezvous on the CID, so a
// dead builder or shipper loses nothing. Under fence they are the standbys.
func (w World) spares(s *crdt.Spec, claims []crdt.Claim) []stmt.Key {
	// Nodes that are away count: else a spare would let go of the pack at the
	// moment it is needed.
	everybody := w.order(s, func(*crdt.Node) bool { return true })
	run, spare, by := s.Replicas, s.Replicas, s.Pack
	if s.Partition == crdt.PartitionFence {
		// Those who are next in rank hold it: they stand by.
		run, spare, by = 1, max(s.Replicas-1, 1), s.ID
	}
	n := len(firstOf(everybody, run+spare)) - run
	if n <= 0 {
		return nil
	}
	var runs, out []stmt.Key
	for _, c := range claims {
		if !w.dead(c.Node) {
			runs = append(runs, c.Node)
		}
	}
	for i := range w.orderBy(by, s, w.present) {
		if k := w.Nodes[i].Key; !slices.Contains(runs, k) {
			out = append(out, k)
		}
		if len(out) == n {
			break
		}
	}
	return out
}

// WantedHolders is how many nodes should hold a pack completely for the live
// specs that use it.
func (w World) WantedHolders(pack string) int {
	nodes := map[stmt.Key]bool{}
	for i := range w.Instances {
		s := &w.Instances[i]
		if s.Pack != pack {
			continue
		}
		for _, c := range w.Claims[s.ID] {
			if w.holds(s, c) && c.Slot < active(s).Replicas {
				nodes[c.Node] = true
			}
		}
		p := planner{Input: Input{World: w}}
		if p.whollyOver(s) {
			continue
		}
		for _, k := range w.spares(s, w.Claims[s.ID]) {
			nodes[k] = true
		}
	}
	return len(nodes)
}
