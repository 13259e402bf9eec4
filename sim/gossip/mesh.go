package gossip

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Kind says what a packet is.
type Kind uint8

// The kinds of packets. A Beat is none: it is a node's next heartbeat.
const (
	Payload Kind = iota
	IHave
	IWant
	IDontWant
	Graft
	Prune
	Beat
	kinds
)

// Packet is something that arrives at a node.
type Packet struct {
	Kind     Kind
	From, To int32
	Msgs     []*Message // of Payload one
	life     uint32     // of Beat
}

// Env is what is around the routers.
type Env interface {
	// Send puts a packet of so many bytes on its way now, and says when it arrives;
	// not ok: it never does.
	Send(p Packet, size int) (at time.Duration, ok bool)
	// At has Handle called with p at that time, if p.To is there to receive it.
	At(at time.Duration, p Packet)
	// Deliver gives a node a message that it sees for the first time. Its answer says
	// whether the node passes it on.
	Deliver(from, to int32, m *Message) bool
	// Near is how long a packet takes between two nodes at least.
	Near(a, b int32) time.Duration
}

// Sizes of what is around messages, in bytes: an RPC with its topic, and the ID of a
// message in a list.
const (
	rpcSize = 84
	idSize  = 22
)

// Message is one under way, and who has it.
type Message struct {
	Load any
	Size int

	seen  []uint64
	due   []time.Duration // when the first copy comes, or came
	born  time.Duration
	alone [1]*Message // itself, as a list
}

// Seen says whether a node has received m.
func (m *Message) Seen(i int32) bool { return m.seen[i/64]&(1<<(i%64)) != 0 }

func (m *Message) mark(i int32)   { m.seen[i/64] |= 1 << (i % 64) }
func (m *Message) forget(i int32) { m.seen[i/64] &^= 1 << (i % 64); m.due[i] = 0 }

// Mesh is the routers of all nodes. It is not safe for concurrent use.
type Mesh struct {
	Params
	env   Env
	score func(a, b int32) float64
	nodes []*router
	live  []*Message // some node may still be told of
}

// router is one node's part.
type router struct {
	i       int32
	up      bool
	life    uint32
	rng     *rand.Rand
	start   time.Duration // of its heartbeats
	conns   []conn
	mesh    []int32
	backoff []backoff
	recent  []cached
	beat    time.Duration // the next heartbeat; 0: none is due
}

type conn struct {
	peer     int32
	outbound bool // we dialled
}

type backoff struct {
	peer  int32
	until time.Duration
}

// cached is a message that a router can send again.
type cached struct {
	m    *Message
	tick int64
	sent []again
}

// again is how often a message was sent to one who asked.
type again struct {
	peer int32
	n    int
}

// New has no nodes yet. score says what a thinks of b; nil: everybody the same.
func New(p Params, env Env, score func(a, b int32) float64) *Mesh {
	if score == nil {
		score = func(a, b int32) float64 { return 0 }
	}
	return &Mesh{Params: p, env: env, score: score}
}

// Add makes a node, which is not up yet. rng is its own.
func (g *Mesh) Add(rng *rand.Rand) {
	g.nodes = append(g.nodes, &router{i: int32(len(g.nodes)), rng: rng})
}

// Up starts a node's router: it has no peers yet.
func (g *Mesh) Up(now time.Duration, i int32) {
	n := g.nodes[i]
	g.Down(i)
	n.up, n.life = true, n.life+1
	n.start = now + g.First + time.Duration(n.rng.Int64N(int64(g.Heartbeat)))
	for _, m := range g.live {
		if int(i) < len(m.due) {
			m.forget(i)
		}
	}
}

// Down ends it. Its peers keep their connections to it until they are told.
func (g *Mesh) Down(i int32) {
	n := g.nodes[i]
	n.up, n.conns, n.mesh, n.backoff, n.recent, n.beat = false, nil, nil, nil, nil, 0
}

// Connect makes a connection by which from has dialled to, new streams included.
func (g *Mesh) Connect(now time.Duration, from, to int32) {
	g.Disconnect(now, from, to)
	for _, c := range [2]conn{{to, true}, {from, false}} {
		n := g.nodes[from+to-c.peer]
		n.conns = append(n.conns, c)
		g.wake(now, n)
	}
}

// Disconnect ends it on both sides.
func (g *Mesh) Disconnect(now time.Duration, a, b int32) {
	for _, p := range [2][2]int32{{a, b}, {b, a}} {
		n := g.nodes[p[0]]
		at := slices.IndexFunc(n.conns, func(c conn) bool { return c.peer == p[1] })
		if at < 0 {
			continue
		}
		n.conns = slices.Delete(n.conns, at, at+1)
		n.leave(p[1])
		g.wake(now, n)
	}
}

// Connected says whether two nodes are, by what a knows.
func (g *Mesh) Connected(a, b int32) bool {
	return slices.ContainsFunc(g.nodes[a].conns, func(c conn) bool { return c.peer == b })
}

// Degree is how many connections a node has.
func (g *Mesh) Degree(i int32) int { return len(g.nodes[i].conns) }

// Peer is the k-th of those that a node is connected to.
func (g *Mesh) Peer(i int32, k int) int32 { return g.nodes[i].conns[k].peer }

// Peers are those that a node is connected to.
func (g *Mesh) Peers(i int32) []int32 {
	out := make([]int32, 0, len(g.nodes[i].conns))
	for _, c := range g.nodes[i].conns {
		out = append(out, c.peer)
	}
	return out
}

// Of are those whom a node meshes with; it is only read.
func (g *Mesh) Of(i int32) []int32 { return g.nodes[i].mesh }

// Publish has a node say something, which it has seen itself.
func (g *Mesh) Publish(now time.Duration, i int32, m *Message) {
	g.begin(now, i, m)
	n := g.nodes[i]
	g.keep(now, n, m)
	if !g.FloodPublish {
		g.forward(now, n, -1, m)
		return
	}
	for _, c := range n.conns {
		g.transmit(now, i, c.peer, m)
	}
}

// PublishTo has a node say something to some of its peers, whatever a router would.
func (g *Mesh) PublishTo(now time.Duration, i int32, m *Message, to []int32) {
	g.begin(now, i, m)
	for _, p := range to {
		g.transmit(now, i, p, m)
	}
}

func (g *Mesh) begin(now time.Duration, i int32, m *Message) {
	m.seen, m.due = make([]uint64, (len(g.nodes)+63)/64), make([]time.Duration, len(g.nodes))
	m.mark(i)
	m.born, m.alone[0] = now, m
	old := func(o *Message) bool { return now-o.born > 2*time.Duration(g.History)*g.Heartbeat }
	if len(g.live) > 0 && old(g.live[0]) {
		g.live = slices.DeleteFunc(g.live, old)
	}
	g.live = append(g.live, m)
}

// Handle has what arrives happen.
func (g *Mesh) Handle(now time.Duration, p Packet) {
	n := g.nodes[p.To]
	if !n.up {
		return
	}
	switch p.Kind {
	case Payload:
		g.payload(now, n, p.From, p.Msgs[0])
	case IHave:
		g.told(now, n, p)
	case IWant:
		g.asked(now, n, p)
	case Graft:
		g.graft(now, n, p.From)
	case Prune:
		if n.leave(p.From) {
			g.wake(now, n)
		}
		n.backOff(p.From, now+g.Backoff)
	case Beat:
		if p.life == n.life && n.beat == now {
			g.heartbeat(now, n)
		}
	}
}

func (g *Mesh) payload(now time.Duration, n *router, from int32, m *Message) {
	if m.Seen(n.i) {
		return
	}
	m.mark(n.i)
	if g.IDontWant > 0 && m.Size >= g.IDontWant {
		for _, p := range n.mesh {
			if p != from {
				g.env.Send(Packet{Kind: IDontWant, From: n.i, To: p}, rpcSize+idSize)
			}
		}
	}
	if g.env.Deliver(from, n.i, m) {
		g.keep(now, n, m)
		g.forward(now, n, from, m)
	}
}

// forward passes a message on to the mesh, but for those who have said in time that
// they have it.
func (g *Mesh) forward(now time.Duration, n *router, from int32, m *Message) {
	for _, p := range n.mesh {
		if p == from || g.IDontWant > 0 && m.Size >= g.IDontWant && m.Seen(p) && m.due[p]+g.env.Near(n.i, p) <= now {
			continue
		}
		g.transmit(now, n.i, p, m)
	}
}

// transmit sends a message. What comes after another copy does not happen: the one
// before it is lost only with the node that it comes to.
func (g *Mesh) transmit(now time.Duration, from, to int32, m *Message) {
	p := Packet{Kind: Payload, From: from, To: to, Msgs: m.alone[:]}
	at, ok := g.env.Send(p, rpcSize+m.Size)
	if !ok || m.Seen(to) || m.due[to] >= now && m.due[to] <= at {
		return
	}
	m.due[to] = at
	g.env.At(at, p)
}

func (g *Mesh) keep(now time.Duration, n *router, m *Message) {
	n.recent = append(n.recent, cached{m: m, tick: g.tick(now, n)})
	g.schedule(now, n)
}

// told asks for what is missing of what a peer says that it has.
func (g *Mesh) told(now time.Duration, n *router, p Packet) {
	var want []*Message
	for _, m := range p.Msgs {
		if !m.Seen(n.i) {
			want = append(want, m)
		}
	}
	if len(want) == 0 {
		return
	}
	ask := Packet{Kind: IWant, From: n.i, To: p.From, Msgs: want}
	if at, ok := g.env.Send(ask, rpcSize+idSize*len(want)); ok {
		g.env.At(at, ask)
	}
}

// asked sends what a peer asks for, as long as it is here and not too often.
func (g *Mesh) asked(now time.Duration, n *router, p Packet) {
	for _, m := range p.Msgs {
		at := slices.IndexFunc(n.recent, func(c cached) bool { return c.m == m })
		if at < 0 {
			continue
		}
		c := &n.recent[at]
		k := slices.IndexFunc(c.sent, func(a again) bool { return a.peer == p.From })
		if k < 0 {
			k = len(c.sent)
			c.sent = append(c.sent, again{peer: p.From})
		}
		if c.sent[k].n++; c.sent[k].n <= g.Retransmit {
			g.transmit(now, n.i, p.From, m)
		}
	}
}

func (g *Mesh) graft(now time.Duration, n *router, from int32) {
	at := slices.IndexFunc(n.conns, func(c conn) bool { return c.peer == from })
	switch {
	case at < 0 || slices.Contains(n.mesh, from):
		return
	case n.backsOff(from, now), g.score(n.i, from) < 0, len(n.mesh) >= g.Dhi && !n.conns[at].outbound:
		n.backOff(from, now+g.Backoff)
		g.control(Prune, n.i, from)
	default:
		n.mesh = append(n.mesh, from)
		g.wake(now, n)
	}
}

func (g *Mesh) control(k Kind, from, to int32) {
	p := Packet{Kind: k, From: from, To: to}
	if at, ok := g.env.Send(p, rpcSize); ok {
		g.env.At(at, p)
	}
}

func (n *router) leave(peer int32) bool {
	at := slices.Index(n.mesh, peer)
	if at >= 0 {
		n.mesh = slices.Delete(n.mesh, at, at+1)
	}
	return at >= 0
}

func (n *router) backOff(peer int32, until time.Duration) {
	at := slices.IndexFunc(n.backoff, func(b backoff) bool { return b.peer == peer })
	if at < 0 {
		n.backoff = append(n.backoff, backoff{peer, until})
		return
	}
	n.backoff[at].until = max(n.backoff[at].until, until)
}

// backsOff says whether a peer must not be taken in yet; barred, whether it is not
// tried, which lasts until the list is cleared.
func (n *router) backsOff(peer int32, now time.Duration) bool {
	return slices.ContainsFunc(n.backoff, func(b backoff) bool { return b.peer == peer && now < b.until })
}

func (n *router) barred(peer int32) bool {
	return slices.ContainsFunc(n.backoff, func(b backoff) bool { return b.peer == peer })
}
