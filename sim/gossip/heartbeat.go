package gossip

import (
	"slices"
	"time"
)

// clearEvery is every how many heartbeats back-offs that have ended are forgotten,
// and slack how many heartbeats they must have ended by then.
const (
	clearEvery = 15
	slack      = 2
)

// tick is the number of a router's last heartbeat, whether it happened or not; the
// first is 0.
func (g *Mesh) tick(now time.Duration, n *router) int64 {
	if now < n.start {
		return -1
	}
	return int64((now - n.start) / g.Heartbeat)
}

// schedule has the router's next heartbeat happen.
func (g *Mesh) schedule(now time.Duration, n *router) { g.beatAt(n, g.tick(now, n)+1) }

func (g *Mesh) beatAt(n *router, tick int64) {
	at := n.start + time.Duration(tick)*g.Heartbeat
	if n.up && (n.beat == 0 || at < n.beat) {
		n.beat = at
		g.env.At(at, Packet{Kind: Beat, From: n.i, To: n.i, life: n.life})
	}
}

// wake has the next heartbeat happen if there is something to mend.
func (g *Mesh) wake(now time.Duration, n *router) {
	if n.up && g.unwell(n) {
		g.schedule(now, n)
	}
}

// unwell says whether a heartbeat would change the mesh if it could.
func (g *Mesh) unwell(n *router) bool {
	l := len(n.mesh)
	if l < g.Dlo && l < len(n.conns) || l >= g.Dhi {
		return true
	}
	out, more := 0, false
	for _, c := range n.conns {
		if c.outbound {
			if slices.Contains(n.mesh, c.peer) {
				out++
			} else {
				more = true
			}
		}
	}
	return l >= g.Dlo && out < g.Dout && more
}

func (g *Mesh) heartbeat(now time.Duration, n *router) {
	tick := g.tick(now, n)
	n.beat = 0
	if tick%clearEvery == 0 {
		n.backoff = slices.DeleteFunc(n.backoff, func(b backoff) bool { return b.until+slack*g.Heartbeat < now })
	}
	if len(n.mesh) < g.Dlo {
		g.take(n, g.D-len(n.mesh), func(conn) bool { return true })
	}
	if len(n.mesh) >= g.Dhi {
		g.shrink(now, n)
	}
	if len(n.mesh) >= g.Dlo {
		out := 0
		for _, c := range n.conns {
			if c.outbound && slices.Contains(n.mesh, c.peer) {
				out++
			}
		}
		if out < g.Dout {
			g.take(n, g.Dout-out, func(c conn) bool { return c.outbound })
		}
	}
	if tick%int64(g.Opportunistic.Ticks) == 0 && len(n.mesh) > 1 {
		g.improve(n)
	}
	g.tell(n, tick)
	n.recent = slices.DeleteFunc(n.recent, func(c cached) bool { return tick-c.tick >= int64(g.History) })
	switch {
	case len(n.recent) > 0 || g.unwell(n):
		g.beatAt(n, tick+1)
	case g.Opportunistic.Threshold > 0:
		every := int64(g.Opportunistic.Ticks)
		g.beatAt(n, (tick/every+1)*every)
	}
}

// take grafts up to k peers, drawn among those that may be.
func (g *Mesh) take(n *router, k int, ok func(conn) bool) {
	var from []int32
	for _, c := range n.conns {
		if ok(c) && !slices.Contains(n.mesh, c.peer) && !n.barred(c.peer) && g.score(n.i, c.peer) >= 0 {
			from = append(from, c.peer)
		}
	}
	n.rng.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	for _, p := range from[:min(k, len(from))] {
		n.mesh = append(n.mesh, p)
		g.control(Graft, n.i, p)
	}
}

// shrink prunes the mesh to D: the best Dscore stay, and of the others some, Dout of
// all being such as we dialled.
func (g *Mesh) shrink(now time.Duration, n *router) {
	list := slices.Clone(n.mesh)
	shuffle := func(l []int32) { n.rng.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] }) }
	shuffle(list)
	slices.SortStableFunc(list, func(a, b int32) int {
		switch x, y := g.score(n.i, a), g.score(n.i, b); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	shuffle(list[g.Dscore:])
	outbound := func(p int32) bool {
		return slices.ContainsFunc(n.conns, func(c conn) bool { return c.peer == p && c.outbound })
	}
	out := 0
	for _, p := range list[:g.D] {
		if outbound(p) {
			out++
		}
	}
	if out < g.Dout {
		// Those we dialled come first, as many as there must be.
		front := slices.DeleteFunc(slices.Clone(list), func(p int32) bool { return !outbound(p) })
		front = front[:min(len(front), g.Dout)]
		list = append(front, slices.DeleteFunc(list, func(p int32) bool { return slices.Contains(front, p) })...)
	}
	for _, p := range list[g.D:] {
		n.leave(p)
		n.backOff(p, now+g.Backoff)
		g.control(Prune, n.i, p)
	}
}

// improve takes in peers that score better than half of the mesh, if that scores low.
func (g *Mesh) improve(n *router) {
	scores := make([]float64, len(n.mesh))
	for i, p := range n.mesh {
		scores[i] = g.score(n.i, p)
	}
	slices.Sort(scores)
	if median := scores[len(scores)/2]; median < g.Opportunistic.Threshold {
		g.take(n, g.Opportunistic.Grafts, func(c conn) bool { return g.score(n.i, c.peer) > median })
	}
}

// tell some of the peers outside of the mesh what there is.
func (g *Mesh) tell(n *router, tick int64) {
	var ids []*Message
	for _, c := range n.recent {
		if tick-c.tick <= int64(g.Gossip) {
			ids = append(ids, c.m)
		}
	}
	if len(ids) == 0 {
		return
	}
	var to []int32
	for _, c := range n.conns {
		if !slices.Contains(n.mesh, c.peer) {
			to = append(to, c.peer)
		}
	}
	k := min(len(to), max(g.Dlazy, int(g.Factor*float64(len(to)))))
	for i := range k {
		j := i + n.rng.IntN(len(to)-i)
		to[i], to[j] = to[j], to[i]
		p := to[i]
		// What the peer has, it does not ask for.
		at, ok := g.env.Send(Packet{Kind: IHave, From: n.i, To: p}, rpcSize+idSize*len(ids))
		if !ok {
			continue
		}
		var missing []*Message
		for _, m := range ids {
			if !m.Seen(p) {
				missing = append(missing, m)
			}
		}
		if len(missing) > 0 {
			g.env.At(at, Packet{Kind: IHave, From: n.i, To: p, Msgs: missing})
		}
	}
}
