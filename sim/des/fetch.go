package des

import (
	"slices"
	"time"

	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
)

// Packs come from nodes that have them whole. A fetch takes from all of those at once
// that it reaches, up to maxSources; each shares what it can send among those who fetch
// from it, and who fetches what it can receive among its fetches. What has come stays
// when a source goes away, and the fetch goes on from another.
//
// What is left out makes real fetches faster: who fetches gives others what it has
// already. How fast lines are is assumed, as nothing is published of such fleets: they are
// those of a server in a data centre, 1 Gbit/s each way.
const (
	uplink     = 125_000_000 // bytes a second
	downlink   = 125_000_000
	maxSources = 8
	// fetching is how many packs a node fetches at once (fogvm/reconcile).
	fetching = 2
	// fetchStep is how long after a source has gone, or come, fetches know it at most.
	fetchStep = time.Second
	// starved is how long an attempt lasts to which nobody gives anything (the stall
	// time of p2p/exchange), and retryMin to retryMax how long lies between two
	// attempts (fogvm/reconcile).
	starved  = 10 * time.Second
	retryMin = time.Second
	retryMax = time.Minute
	// packLease is how long who was brought a pack keeps it at least (fogvm/reconcile).
	packLease = 30 * time.Minute
)

// pack is one that a node has, or a part of it. It outlives the daemon.
type pack struct {
	whole   bool
	got     float64       // bytes, while it is not
	fetched bool          // and nothing of it has run yet, for the Watcher
	until   time.Duration // kept until then, wanted or not

	attempts int           // that failed
	next     time.Duration // when the next one may begin
	pull     *pull         // of this life; nil: nothing comes
}

// pull is a fetch that is under way.
type pull struct {
	n       *node
	name    string
	pack    *pack
	size    float64
	opens   time.Duration // nothing comes before that
	fed     time.Duration // when something last came
	taken   float64       // bytes that came over the network, in all attempts
	sources []int32
	rate    float64 // bytes a second
}

// fetches are those of all nodes.
type fetches struct {
	holders map[string][]int32 // who has a pack whole, sorted
	active  []*pull            // in the order in which they began
	at      time.Duration      // they have come so far by then
	ver     uint64             // of the step that is due
	load    map[int32]float64  // scratch: how many fetch from a node
	busy    map[int32]float64  // scratch: how many packs a node fetches
}

// gains has n have a pack whole.
func (n *node) gains(name string) *pack {
	f := &n.sim.fetches
	if f.holders == nil {
		f.holders = map[string][]int32{}
	}
	if at, has := slices.BinarySearch(f.holders[name], n.i); !has {
		f.holders[name] = slices.Insert(f.holders[name], at, n.i)
	}
	n.received[name] = true
	p := n.packs[name]
	if p == nil {
		p = &pack{}
		n.packs[name] = p
	}
	if p.pull != nil {
		p.pull.end()
	}
	p.whole, p.attempts = true, 0
	return p
}

// drops has n forget a pack.
func (n *node) drops(name string) {
	p, f := n.packs[name], &n.sim.fetches
	delete(n.packs, name)
	if at, has := slices.BinarySearch(f.holders[name], n.i); has {
		f.holders[name] = slices.Delete(f.holders[name], at, at+1)
	}
	if p.pull != nil {
		p.pull.end()
	}
}

// brings has somebody bring a pack to n, as those do who ship.
func (n *node) brings(name string) {
	p := n.gains(name)
	p.until = n.sim.now + packLease
	n.plan()
}

// fetch has n fetch what it wants, and keep what it must.
func (n *node) fetch(want, keep []string) {
	n.wanted = want
	for _, name := range sortedPacks(n.packs) {
		if _, kept := slices.BinarySearch(keep, name); !kept && n.packs[name].until <= n.sim.now {
			n.drops(name)
		}
	}
	n.fetchMore()
}

// fetchMore begins what is wanted and due.
func (n *node) fetchMore() {
	open := 0
	for _, p := range n.packs { // any order: counting
		if p.pull != nil {
			open++
		}
	}
	for _, name := range n.wanted {
		p := n.packs[name]
		switch {
		case open == fetching:
			return
		case p == nil:
			p = &pack{}
			n.packs[name] = p
		case p.whole || p.pull != nil:
			continue
		case n.sim.now < p.next:
			n.after(p.next-n.sim.now, evPack, 0, 0, nil)
			continue
		}
		open++
		n.sim.begins(&pull{n: n, name: name, pack: p, size: float64(n.sim.packSize(name))})
	}
}

func (s *Sim) begins(p *pull) {
	s.settleFetches()
	p.opens, p.fed, p.taken = s.now, s.now, p.pack.got
	if from := s.sources(p, nil); len(from) > 0 {
		p.opens += asking * 2 * s.net.least(p.n.i, from[0])
	}
	p.pack.pull = p
	s.fetches.active = append(s.fetches.active, p)
	s.shareOut()
}

// end has nothing more come.
func (p *pull) end() {
	f := &p.n.sim.fetches
	f.active = slices.DeleteFunc(f.active, func(o *pull) bool { return o == p })
	p.pack.pull = nil
}

// stopFetching ends the fetches of a daemon that has ended.
func (n *node) stopFetching() {
	n.wanted = nil
	for _, name := range sortedPacks(n.packs) {
		p := n.packs[name]
		if p.attempts, p.next = 0, 0; p.pull != nil {
			n.sim.settleFetches()
			if p.pull != nil {
				p.pull.end()
			}
		}
	}
}

// settleFetches has come what came since it last did.
func (s *Sim) settleFetches() {
	f := &s.fetches
	d := (s.now - f.at).Seconds()
	if f.at = s.now; d == 0 {
		return
	}
	for _, p := range slices.Clone(f.active) {
		if p.rate == 0 {
			p.starve()
			continue
		}
		more := min(p.rate*d, p.size-p.pack.got)
		p.pack.got, p.taken, p.fed = p.pack.got+more, p.taken+more, s.now
		if p.pack.got >= p.size-1 {
			p.complete()
		}
	}
}

// complete ends a fetch to which all has come.
func (p *pull) complete() {
	n := p.n
	if p.taken > p.size+1 {
		n.sim.broke(FetchedOnce, "%v: %.0f bytes came of a pack of %.0f", n, p.taken, p.size)
	}
	p.end()
	n.gains(p.name).fetched = true
	n.sim.Seen["a pack was fetched"]++
	n.after(0, evPack, 0, 0, nil)
}

// starve ends an attempt to which nothing has come for long.
func (p *pull) starve() {
	s, n := p.n.sim, p.n
	if !n.works() {
		p.fed = s.now // it does not look, either
	}
	if s.now-p.fed < starved {
		return
	}
	p.end()
	p.pack.next = s.now + min(retryMin<<min(p.pack.attempts, 10), retryMax)
	p.pack.attempts++
	s.Seen["a fetch found nobody to fetch from"]++
	n.after(0, evPack, 0, 0, nil)
	s.bringPack(p.name)
}

// works says whether a daemon is up and does something.
func (n *node) works() bool { return n.up && n.paused <= n.sim.now }

// shareOut says how fast what comes from now on, and when to look again.
func (s *Sim) shareOut() {
	f := &s.fetches
	if f.load == nil {
		f.load, f.busy = map[int32]float64{}, map[int32]float64{}
	}
	clear(f.load)
	clear(f.busy)
	for _, p := range f.active {
		before := p.sources
		if p.sources = s.sources(p, before); len(p.sources) > 0 {
			f.busy[p.n.i]++
		}
		for _, h := range p.sources {
			f.load[h]++
		}
		p.moves(before)
	}
	wait := fetchStep
	for _, p := range f.active {
		if p.rate = 0; p.opens > s.now {
			wait = min(wait, p.opens-s.now)
			continue
		}
		for _, h := range p.sources {
			p.rate += uplink / f.load[h]
		}
		if p.rate = min(p.rate, downlink/max(f.busy[p.n.i], 1)); p.rate > 0 {
			wait = min(wait, time.Duration((p.size-p.pack.got)/p.rate*float64(time.Second))+time.Microsecond)
		}
	}
	f.ver++
	if ver := f.ver; len(f.active) > 0 {
		s.Do(wait, func() {
			if ver == f.ver {
				s.settleFetches()
				s.shareOut()
			}
		})
	}
}

// asking is how many round trips lie before the first bytes: who has it, what it is of,
// and the bytes.
const asking = 3

// sources are the nodes that give to a fetch now: those that did already, and others in
// an order of its own, so that not all ask the same.
func (s *Sim) sources(p *pull, before []int32) (to []int32) {
	if p.opens > s.now || !p.n.works() || s.clogs.on(p.n.i) {
		return nil
	}
	add := func(h int32) {
		if o := s.nodes[h]; len(to) < maxSources && o.works() && !s.clogs.on(h) && s.net.meets(p.n.i, h) && !slices.Contains(to, h) {
			to = append(to, h)
		}
	}
	holders := s.fetches.holders[p.name]
	for _, h := range before {
		if _, still := slices.BinarySearch(holders, h); still {
			add(h)
		}
	}
	at, _ := slices.BinarySearch(holders, p.n.i)
	for k := range holders {
		add(holders[(at+k)%len(holders)])
	}
	return to
}

// moves notes that a fetch has lost a source in the middle.
func (p *pull) moves(before []int32) {
	lost := slices.ContainsFunc(before, func(h int32) bool { return !slices.Contains(p.sources, h) })
	if !lost || p.pack.got == 0 || !p.n.works() {
		return
	}
	s := p.n.sim
	s.Seen["a fetch lost a source"]++
	if len(p.sources) > 0 {
		s.Seen["a fetch went on from another"]++
	}
	if s.cfg.Mutant == ForgetsParts {
		p.pack.got = 0
	}
}

// bringPack has whoever owns what needs a pack bring it again when those that had it are
// away for good: nobody else can.
func (s *Sim) bringPack(name string) {
	gone := func(h int32) bool { return s.nodes[h].gone }
	up := s.Honest()
	if holders := s.fetches.holders[name]; slices.ContainsFunc(holders, func(h int32) bool { return !gone(h) }) || len(up) == 0 {
		return
	}
	s.Seen["an owner brought a pack again"]++
	rng := chance.Stream(s.cfg.Seed, useBring, uint64(s.Seen["an owner brought a pack again"]))
	s.nodes[up[rng.IntN(len(up))]].brings(name)
}

// packStatus is what a decision sees of the packs.
func (n *node) packStatus() map[string]plan.PackStatus {
	if len(n.packs) == 0 {
		return nil
	}
	out := make(map[string]plan.PackStatus, len(n.packs))
	for name, p := range n.packs { // any order: into a map
		st := plan.PackStatus{Attempts: p.attempts}
		switch {
		case p.whole, n.sim.cfg.Mutant == RunsWithoutPack:
			st = plan.PackStatus{State: plan.Complete}
		case p.pull != nil:
			st.State = plan.Fetching
		case p.attempts > 0:
			st.State, st.Reason = plan.Failed, "nobody to fetch from"
		}
		out[name] = st
	}
	return out
}

// bootsFrom holds that what a machine boots from has come to its node.
func (n *node) bootsFrom(v *vm) {
	if !n.received[v.Pack] {
		n.sim.broke(PackBeforeRun, "%v: %.8s/%d boots from a pack that never came there", n, v.Slot.Instance, v.Slot.Slot)
	}
}

// state is what a pack is to a decision, in one number.
func (p *pack) state() uint64 {
	switch {
	case p.whole:
		return 1
	case p.pull != nil:
		return 2
	}
	return 3 + uint64(p.attempts)
}

// holding are the packs that n has whole, sorted.
func (n *node) holding() (out []string) {
	for name, p := range n.packs { // any order: sorted below
		if p.whole {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func sortedPacks(packs map[string]*pack) []string {
	out := make([]string, 0, len(packs))
	for name := range packs { // any order: sorted below
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Holders are the nodes of some that are up and have a pack whole.
func (s *Sim) Holders(name string, of func(i int) bool) (out []int) {
	for _, h := range s.fetches.holders[name] {
		if s.nodes[h].up && of(int(h)) {
			out = append(out, int(h))
		}
	}
	return out
}
