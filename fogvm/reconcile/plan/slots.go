package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// nodeOf is the register of a node; nil when it has none.
func (w World) nodeOf(k stmt.Key) *crdt.Node {
	i, ok := slices.BinarySearchFunc(w.Nodes, k, func(n crdt.Node, k stmt.Key) int { return n.Key.Compare(k) })
	if !ok {
		return nil
	}
	return &w.Nodes[i]
}

// leaving says whether a claim's node should hand the slot over: it drains, or
// no longer fits the spec. The disk of a replica that runs the spec as it is now
// is there already, whatever its node has left to offer.
func (w World) leaving(s *crdt.Spec, c crdt.Claim) bool {
	n := w.nodeOf(c.Node)
	if n == nil || n.Draining {
		return true
	}
	if c.StartedAt != 0 && c.SpecGeneration >= s.Generation {
		with := *n
		with.Total.Disk = max(with.Total.Disk, place.Need(*s).Disk)
		n = &with
	}
	return w.barred(n, s) != ""
}

// holds says whether a claim keeps others from claiming its slot.
func (w World) holds(s *crdt.Spec, c crdt.Claim) bool {
	return !w.dead(c.Node) && c.Phase != crdt.ClaimFailed && c.Phase != crdt.ClaimDraining && !halted(s, c) && !w.leaving(s, c)
}

// holders are the claims that hold a slot, the keeper first: the highest
// generation, and of equal ones the best ranked. A claim with a lower
// generation was superseded while its node was away. A node holds one slot of an
// instance, whatever it claims: its lowest.
func (w World) holders(s *crdt.Spec, claims []crdt.Claim, slot int) []crdt.Claim {
	var out []crdt.Claim
	for _, c := range claims {
		if c.Slot == slot && w.holds(s, c) && !w.holdsLower(s, claims, c) {
			out = append(out, c)
		}
	}
	if len(out) < 2 {
		return out
	}
	rank := map[stmt.Key]int{}
	for i := range w.order(s, w.present) {
		rank[w.Nodes[i].Key] = len(rank) + 1
	}
	position := func(c crdt.Claim) int {
		if r, ok := rank[c.Node]; ok {
			return r
		}
		return len(rank) + 1
	}
	slices.SortFunc(out, func(a, b crdt.Claim) int {
		return cmp.Or(cmp.Compare(b.Generation, a.Generation), cmp.Compare(position(a), position(b)), a.Node.Compare(b.Node))
	})
	return out
}

func (w World) holdsLower(s *crdt.Spec, claims []crdt.Claim, c crdt.Claim) bool {
	return slices.ContainsFunc(claims, func(o crdt.Claim) bool {
		return o.Node == c.Node && o.Slot < c.Slot && w.holds(s, o)
	})
}

// Keeps says whether a node is the keeper of a slot of s, for all who hold this
// World's view.
func (w World) Keeps(s *crdt.Spec, node stmt.Key) bool {
	claims := w.Claims[s.ID]
	return slices.ContainsFunc(claims, func(c crdt.Claim) bool {
		if c.Node != node || c.Slot >= s.Replicas {
			return false
		}
		h := w.holders(s, claims, c.Slot)
		return len(h) > 0 && h[0].Node == node
	})
}

// candidates are the nodes that may run s whatever they have free.
func (w World) candidates(s *crdt.Spec) []place.Candidate {
	out := make([]place.Candidate, 0, len(w.Nodes))
	for i := range w.Nodes {
		n := &w.Nodes[i]
		if !w.dead(n.Key) && !n.Draining && w.barred(n, s) == "" {
			out = append(out, candidate(n))
		}
	}
	return out
}

// void says whether a failed claim no longer speaks against its node: the spec
// has changed since.
func void(s *crdt.Spec, c crdt.Claim) bool {
	return c.Phase == crdt.ClaimFailed && c.SpecGeneration < s.Generation
}

// occupied are the nodes that cannot take another slot of s: they have one, or
// failed at one since the spec last changed.
func (w World) occupied(s *crdt.Spec, claims []crdt.Claim) map[stmt.Key]bool {
	out := map[stmt.Key]bool{}
	for _, c := range claims {
		if !w.dead(c.Node) && !void(s, c) {
			out[c.Node] = true
		}
	}
	return out
}

// vacancy is an unheld slot and the nodes that may fill it, in turn.
type vacancy struct {
	slot  int
	turns []stmt.Key
}

// vacancies are the slots that nobody holds. Every turn is a node that could
// take the slot now: nodes that have a slot, failed at one or are full are left
// out, and place.Rank deals the rest so that no two vacancies wait for one node.
func (p *planner) vacancies(s *crdt.Spec, claims []crdt.Claim) []vacancy {
	var out []vacancy
	held := map[stmt.Key]int{}
	for slot := range s.Replicas {
		holders := p.World.holders(s, claims, slot)
		if len(holders) == 0 && p.over(s, slot).why == "" {
			out = append(out, vacancy{slot: slot})
		}
		for _, c := range holders {
			held[c.Node] = slot
		}
	}
	if len(out) == 0 {
		return nil
	}
	occupied := p.World.occupied(s, claims)
	able := func(n *crdt.Node) bool {
		_, holds := held[n.Key]
		return p.World.present(n) && (holds || !occupied[n.Key] && full(n, p.takes(n.Key), s) == "")
	}
	for i := range out {
		for _, k := range p.World.rank(s, out[i].slot, able, held) {
			if !occupied[k] {
				out[i].turns = append(out[i].turns, k)
			}
		}
	}
	return out
}

// since is when a slot became vacant as far as this node knows, and how long
// each turn lasts.
func (p *planner) since(s *crdt.Spec, claims []crdt.Claim, slot int) (at, base, step time.Duration) {
	key := Slot{s.ID, slot}
	var deadAt time.Duration
	died, failed := false, false
	for _, c := range claims {
		if c.Slot != slot {
			continue
		}
		if t, dead := p.World.Dead[c.Node]; dead {
			deadAt, died = max(deadAt, t), true
		}
		failed = failed || (c.Phase == crdt.ClaimFailed && !void(s, c) || halted(s, c)) && !p.World.dead(c.Node)
	}
	if failed {
		at = first(p.Timers.Failed, p.out.Timers.Failed, key, p.Now)
		return at, p.TakeoverDelay, p.TakeoverDelay
	}
	at = first(p.Timers.Empty, p.out.Timers.Empty, key, p.Now)
	if died {
		// The dead may have lost the slot to another long ago: then only the
		// vacancy is news.
		return max(deadAt, at), p.TakeoverDelay, p.TakeoverDelay
	}
	return at, 0, rankStep
}

// observeEmpty keeps the timers of vacant slots going on a node that cannot or
// need not fill one.
func (p *planner) observeEmpty(s *crdt.Spec, claims []crdt.Claim) {
	if !runnable(s) {
		return
	}
	for slot := range s.Replicas {
		if len(p.World.holders(s, claims, slot)) == 0 && p.over(s, slot).why == "" && !p.waits(s, claims, slot) {
			p.since(s, claims, slot)
		}
	}
}

// claimEmpty claims at most one vacant slot whose turn has come, and reports
// whether it did. busy: this node still has a claim on the instance.
func (p *planner) claimEmpty(s *crdt.Spec, claims []crdt.Claim, busy bool) bool {
	var pick *vacancy
	var late bool // a takeover, which the budget counts
	for _, v := range p.vacancies(s, claims) {
		if p.waits(s, claims, v.slot) {
			continue
		}
		at, base, step := p.since(s, claims, v.slot)
		turn := slices.Index(v.turns, p.Self)
		if pick != nil || busy || turn < 0 || !p.accepts(s) {
			continue
		}
		due := at + base + time.Duration(turn)*step
		if base > 0 {
			due = max(due, p.repairDue(true, s.Pack))
		}
		if p.Now < due {
			p.wake(due)
			continue
		}
		pick, late = &v, base > 0
	}
	if pick == nil {
		return false
	}
	if late {
		p.repaired(true, s.Pack)
	}
	p.take(s, claims, pick.slot)
	return true
}

// take claims a slot above all claims that are on it, and runs it.
func (p *planner) take(s *crdt.Spec, claims []crdt.Claim, slot int) {
	c := crdt.Claim{
		Node: p.Self, Instance: s.ID, Owner: s.Owner, Slot: slot, Generation: 1, Phase: crdt.ClaimClaimed,
		Pack: s.Pack, SpecGeneration: s.Generation,
	}
	for _, o := range claims {
		if o.Slot == slot && o.Generation >= c.Generation {
			c.Generation = min(o.Generation+1, crdt.MaxGeneration)
		}
	}
	need := place.Need(*s)
	p.mine = plus(p.mine, need)
	p.promise(VMID(s.ID, slot), need)
	delete(p.out.Timers.Empty, Slot{s.ID, slot})
	delete(p.out.Timers.Failed, Slot{s.ID, slot})
	p.run(s, claims, c)
}

func (p *planner) accepts(s *crdt.Spec) bool { return p.Accepts == nil || p.Accepts(s.Owner) }

// own decides about a claim this node has on s, and reports whether it keeps
// the slot. kept: it already keeps another slot of s.
func (p *planner) own(s *crdt.Spec, claims []crdt.Claim, c crdt.Claim, kept bool) bool {
	switch {
	case kept:
		p.drain(c, "this node runs another replica of the instance")
		return false
	case refusal(s) != "":
		p.drain(c, refusal(s))
		return false
	case !p.World.MayRun(s, p.Self) || !p.accepts(s):
		p.drain(c, "this node may not run it any more")
		return false
	case c.Slot >= s.Replicas:
		p.drain(c, "scaled down")
		return false
	}
	if why := place.OutOfBounds(*s); why != "" && s.Phase != crdt.PhaseStopped {
		return p.refuseChange(s, c, why)
	}
	if over := p.over(s, c.Slot); over.change {
		return p.refuseChange(s, c, over.why)
	} else if over.why != "" {
		p.drain(c, over.why)
		return false
	}
	if c.Phase == crdt.ClaimDraining {
		// Draining was decided on another view; that it no longer holds shows
		// below, where the claim is judged like any other.
		c.Phase = crdt.ClaimLaunching
	}
	if why := p.outvoted(s, c); why != "" {
		p.halt(s, c, why)
		return true
	}
	holders := p.World.holders(s, claims, c.Slot)
	if len(holders) > 0 && holders[0].Node != p.Self {
		return p.surplus(s, c, holders[0])
	}
	if c.Phase == crdt.ClaimFailed && len(holders) == 0 && p.outlived(s, claims, c) {
		p.record(c)
		return true
	}
	if p.onTrial(s, c, holders) {
		return false
	}
	if !p.run(s, claims, c) {
		return false
	}
	if o := &p.out.Claims[len(p.out.Claims)-1]; p.self != nil && p.self.Draining && o.Ready && o.Reason == "" {
		o.Reason = "this node drains: waits for another node to take it"
	}
	return true
}

// surplus decides about a claim that another one supersedes.
func (p *planner) surplus(s *crdt.Spec, c, keeper crdt.Claim) bool {
	if c.Phase == crdt.ClaimFailed && !void(s, c) && !keeper.Ready {
		// The failure stays on record until the slot is served elsewhere, so
		// that nodes which fail alike do not hand the slot round for ever.
		p.record(c)
		return true
	}
	if vm := p.VMs[VMID(c.Instance, c.Slot)]; vm.Ready && !keeper.Ready && s.Phase != crdt.PhaseStopped && !waits(s, keeper) {
		if s.Partition == crdt.PartitionFence {
			p.ask(s, c)
		}
		p.observeVM(&c, vm)
		c.Reason = fmt.Sprintf("hands over to %s", keeper.Node)
		p.out.Claims = append(p.out.Claims, c)
		p.out.VMs = append(p.out.VMs, VM{
			ID: VMID(c.Instance, c.Slot), Slot: Slot{c.Instance, c.Slot}, Pack: c.Pack, Run: true,
			Incarnation: vm.Incarnation, Restart: vm.Restart, Keep: true,
		})
		p.keep[c.Pack] = true
		return true
	}
	p.drain(c, fmt.Sprintf("surplus: %s runs this replica", keeper.Node))
	return false
}

// outlived says whether another live node failed at the slot after this one
// did: that one goes on trying.
func (p *planner) outlived(s *crdt.Spec, claims []crdt.Claim, c crdt.Claim) bool {
	if void(s, c) {
		return false
	}
	return slices.ContainsFunc(claims, func(o crdt.Claim) bool {
		return o.Slot == c.Slot && o.Node != c.Node && o.Phase == crdt.ClaimFailed && !void(s, o) && !p.World.dead(o.Node) &&
			cmp.Or(cmp.Compare(o.Generation, c.Generation), o.Node.Compare(c.Node)) > 0
	})
}

// record keeps a failed claim without its VM.
func (p *planner) record(c crdt.Claim) {
	c.Ready = false
	p.out.Claims = append(p.out.Claims, c)
}
