package plan

import (
	"cmp"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// handovers says for each node that drains which one of the slots it serves is
// next to be served elsewhere, so that a node is emptied one replica at a time,
// each ready elsewhere before the next one starts. A slot that nobody can take,
// or whose new replica does badly, holds up no other.
func (p *planner) handovers() map[stmt.Key]Slot {
	if p.World.brief != nil && !p.World.brief.drains {
		return nil
	}
	served := map[stmt.Key][]crdt.Claim{}
	specs := map[string]*crdt.Spec{}
	for i := range p.World.Nodes {
		if n := &p.World.Nodes[i]; n.Draining && !p.World.dead(n.Key) {
			served[n.Key] = nil
		}
	}
	if len(served) == 0 {
		return nil
	}
	for i := range p.World.Instances {
		s := active(&p.World.Instances[i])
		specs[s.ID] = s
		for _, c := range p.World.Claims[s.ID] {
			if list, drains := served[c.Node]; drains && c.Ready && c.Slot < s.Replicas && runnable(s) {
				served[c.Node] = append(list, c)
			}
		}
	}
	out := map[stmt.Key]Slot{}
	for node, claims := range served { // any order: each by itself
		slices.SortFunc(claims, func(a, b crdt.Claim) int {
			return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot))
		})
		for _, c := range claims {
			if p.handsOver(specs[c.Instance], c.Slot) {
				out[node] = Slot{c.Instance, c.Slot}
				break
			}
		}
	}
	return out
}

// handsOver says whether a slot of a draining node is on its way to another, or
// could be.
func (p *planner) handsOver(s *crdt.Spec, slot int) bool {
	claims := p.World.Claims[s.ID]
	if h := p.World.holders(s, claims, slot); len(h) > 0 {
		return !h[0].Ready && h[0].Phase != crdt.ClaimUnhealthy
	}
	return slices.ContainsFunc(p.vacancies(s, claims), func(v vacancy) bool { return v.slot == slot && len(v.turns) > 0 })
}

// waits says whether a vacant slot is served by a node that drains and hands
// another one over first.
func (p *planner) waits(s *crdt.Spec, claims []crdt.Claim, slot int) bool {
	return slices.ContainsFunc(claims, func(c crdt.Claim) bool {
		next, drains := p.handing[c.Node]
		return drains && c.Slot == slot && c.Ready && next != (Slot{s.ID, slot})
	})
}
