package des

import (
	"bytes"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/chance"
)

// held is a state that one or more nodes hold. It changes only while a single
// node does.
type held struct {
	id    uint64
	users int
	state *crdt.State
	print stmt.ID
	world *worldView // of the View; nil until asked for
	past  *worldView // the last one that was asked for
}

// pool keeps equal states once. Nodes that hold the same statements share them,
// so that a thousand nodes fit in memory; one that learns something more gets a
// fork, or joins those that have learnt the same.
type pool struct {
	sim     *Sim
	last    uint64
	byID    map[uint64]*held
	byPrint map[stmt.ID]*held
	steps   map[step]outcome
	made    map[stmt.ID]stmt.Verified // every statement of this run
	byRaw   map[*byte]stmt.Verified   // the same by the first byte of Raw
	forks   int
}

// shareFrom is how many nodes it takes until looking for equal states is worth it.
const shareFrom = 64

// step is a state and a list of statements, by what names them.
type step struct {
	from uint64
	what stmt.ID
}

type outcome struct {
	to   uint64
	news []stmt.Verified
	errs []error
}

func newPool(s *Sim) *pool {
	return &pool{
		sim: s, byID: map[uint64]*held{}, byPrint: map[stmt.ID]*held{}, steps: map[step]outcome{},
		made: map[stmt.ID]stmt.Verified{}, byRaw: map[*byte]stmt.Verified{},
	}
}

// batch is statements that travel together.
type batch struct {
	name stmt.ID // of the list
	vs   []stmt.Verified
	size int
}

func newBatch(vs []stmt.Verified) batch {
	b := batch{vs: vs}
	for i, v := range vs {
		st := v.Statement()
		h := chance.Draw(uint64(i))
		for j := range st.ID {
			b.name[j] ^= st.ID[j] ^ byte(h>>(8*(j%8)))
		}
		b.size += len(st.Raw) + 4
	}
	return b
}

// learn remembers a statement that was verified.
func (p *pool) learn(v stmt.Verified) {
	st := v.Statement()
	p.byRaw[&st.Raw[0]], p.made[st.ID] = v, v
}

// check verifies bytes, those of a known statement once.
func (p *pool) check(raw []byte) (stmt.Verified, error) {
	if v, ok := p.byRaw[&raw[0]]; ok {
		return v, nil
	}
	st, err := stmt.Peek(raw, p.sim.network)
	if err != nil {
		return stmt.Verified{}, err
	}
	if v, ok := p.made[st.ID]; ok && bytes.Equal(v.Statement().Raw, raw) {
		return v, nil
	}
	v, err := stmt.Check(raw, p.sim.network)
	if err == nil {
		p.learn(v)
	}
	return v, err
}

// hold gives the state of these statements.
func (p *pool) hold(vs []stmt.Verified) *held {
	h := &held{state: p.empty()}
	for _, v := range vs {
		_, _ = h.state.ApplyVerified(v, time.Time{}) // a log holds what was superseded since
	}
	return p.settle(h)
}

func (p *pool) empty() *crdt.State {
	return crdt.NewState(p.sim.network, p.sim.root, crdt.NewModel())
}

// release ends one node's use of h.
func (p *pool) release(h *held) {
	h.users--
	if h.users == 0 {
		p.forget(h)
	}
}

func (p *pool) forget(h *held) {
	delete(p.byID, h.id)
	if p.byPrint[h.print] == h {
		delete(p.byPrint, h.print)
	}
}

// settle names a state that is new or has changed, and gives the equal one that
// is there already, if any, with one user more.
func (p *pool) settle(h *held) *held {
	h.print = h.state.Fingerprint()
	if len(p.sim.nodes) < shareFrom {
		p.last++
		h.id, h.users, h.world = p.last, h.users+1, nil
		p.byID[h.id] = h
		return h
	}
	// What is set aside is no part of the fingerprint, so only states without
	// any are the same for sure.
	if o := p.byPrint[h.print]; o != nil && o != h && o.state.Pending() == 0 && h.state.Pending() == 0 {
		o.users++
		return o
	}
	p.last++
	h.id, h.users, h.world = p.last, h.users+1, nil
	p.byID[h.id], p.byPrint[h.print] = h, h
	return h
}

// apply merges a batch into the state that one node holds, and gives the state it
// holds then, what was news, and what each statement was answered.
func (p *pool) apply(h *held, b batch) (*held, outcome) {
	key := step{h.id, b.name}
	if out, ok := p.steps[key]; ok {
		if out.to == h.id {
			return h, out
		}
		if to := p.byID[out.to]; to != nil {
			to.users++
			p.release(h)
			return to, out
		}
	}
	next := h
	if h.users == 1 {
		p.forget(h)
		h.users = 0
	} else {
		next = p.fork(h)
	}
	before := next.state.Pending()
	var out outcome
	for _, v := range b.vs {
		changed, err := next.state.ApplyVerified(v, time.Time{})
		if changed {
			out.news = append(out.news, v)
		}
		out.errs = append(out.errs, err)
	}
	if next != h && len(out.news) == 0 && next.state.Pending() == before {
		out.to = h.id
		p.remember(key, out)
		return h, out
	}
	if next != h {
		h.users--
	}
	to := p.settle(next)
	out.to = to.id
	p.remember(key, out)
	return to, out
}

// maxSteps bounds what is remembered of steps; forgetting costs only work.
const maxSteps = 1 << 14

func (p *pool) remember(key step, out outcome) {
	if len(p.steps) >= maxSteps {
		clear(p.steps)
	}
	p.steps[key] = out
}
