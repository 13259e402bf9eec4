package des

import (
	"fmt"
	"time"

	"github.com/formthefog/formation/crdt"
)

// forkSample is every how many forks one is held to be what its statements make.
const forkSample = 256

// fork gives a state that is equal to h's and that no node holds.
func (p *pool) fork(h *held) *held {
	p.forks++
	next, err := h.state.Fork(crdt.NewModel())
	if err != nil {
		p.sim.violate("fork: %v", err)
		next = p.anew(h.state.Held())
	}
	if p.sim.cfg.Mutant == LossyFork {
		held := h.state.Held()
		next = p.anew(held[:len(held)-1])
	}
	if p.forks%forkSample == 1 {
		a, b := next.Fingerprint(), p.anew(h.state.Held()).Fingerprint()
		if a != b {
			p.sim.broke(SameStatement, "a fork differs from what its statements make: %s, %s", fmt.Sprint(a)[:8], fmt.Sprint(b)[:8])
		}
	}
	return &held{state: next, past: h.past}
}

// anew builds the state that statements make.
func (p *pool) anew(raws [][]byte) *crdt.State {
	c := p.empty()
	for _, raw := range raws {
		v, err := p.check(raw)
		if err == nil {
			_, err = c.ApplyVerified(v, time.Time{})
		}
		if err != nil {
			p.sim.broke(SameStatement, "a held statement is refused: %v", err)
		}
	}
	return c
}
