package des

import (
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// spares is how many states that nobody holds any more are kept: most of what some node
// comes to hold is what others have just left behind, and a few statements more.
const spares = 16

// maxSaid is from how many statements since the beginning on a state is made from what
// it holds.
const maxSaid = 4096

// leave keeps a state that nobody holds, to be made another.
func (p *pool) leave(h *held) {
	if !h.rooted || len(h.said) > maxSaid || h.state.Pending() > 0 || len(p.sim.nodes) < shareFrom {
		return
	}
	h.world = nil
	p.spare = append(p.spare[max(0, len(p.spare)-spares+1):], h)
}

// fork gives a state that is equal to h's and that no node holds: one that was left
// behind, with what it lacks, or else one that is made anew.
func (p *pool) fork(h *held) *held {
	if next := p.revive(h); next != nil {
		return next
	}
	return &held{state: p.copy(h.state), rooted: h.rooted, said: slices.Clone(h.said)}
}

// revive makes the latest state that is kept and has no statement that h has not equal
// to it. Equal is what both hold, and not only that they were told the same.
func (p *pool) revive(h *held) *held {
	if !h.rooted || len(p.spare) == 0 || h.state.Pending() > 0 {
		return nil
	}
	has := make(map[stmt.ID]bool, len(h.said))
	for _, v := range h.said {
		has[v.Statement().ID] = true
	}
	for i := len(p.spare) - 1; i >= 0; i-- {
		old := p.spare[i]
		if len(old.said) > len(h.said) || slices.ContainsFunc(old.said, func(v stmt.Verified) bool { return !has[v.Statement().ID] }) {
			continue
		}
		p.spare = slices.Delete(p.spare, i, i+1)
		for _, v := range old.said {
			delete(has, v.Statement().ID)
		}
		for _, v := range h.said {
			if has[v.Statement().ID] {
				_, _ = old.state.ApplyVerified(v, time.Time{}) // seen below
			}
		}
		if old.state.Fingerprint() != h.state.Fingerprint() || old.state.Pending() > 0 {
			return nil
		}
		p.revived++
		return &held{state: old.state, rooted: true, said: slices.Clone(h.said), past: old.past}
	}
	return nil
}
