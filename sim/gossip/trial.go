package gossip

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"
)

// Trial is a swarm that does nothing but gossip: what is needed to compare the model
// with the real thing.
type Trial struct {
	Params
	Nodes int
	Edges [][2]int32 // who has dialled whom
	// Delay is how long a packet takes at least, and Jitter the share that it takes
	// longer at most, drawn uniformly.
	Delay  func(a, b int32) time.Duration
	Jitter float64
	Loss   float64                  // of packets; on a stream they only come later
	Score  func(a, b int32) float64 // nil: everybody the same
	Seed   uint64

	Settle  time.Duration // before the first message
	Publish []Publication // ascending by At
	Rest    time.Duration // after the last
}

// Publication is a message of Size bytes that a node publishes at a time after Settle.
type Publication struct {
	At   time.Duration
	Node int32
	Size int
}

// Result is what came of a Trial.
type Result struct {
	// Arrived is, for each message and node, how long after it was published it was
	// there: zero where it was published, negative where it did not come.
	Arrived [][]time.Duration
	Sends   [kinds]uint64 // by Kind, since Settle
	Bytes   [kinds]uint64
	Meshes  [][]int32 // at the end
	Degree  float64   // of them on average
}

// Spread is how long messages took: to a node, and until all nodes had one.
type Spread struct {
	One50, One99, All50, All99 time.Duration
	Missing                    int // deliveries that did not happen; they count as taking no time
}

// Spread is of all messages and nodes, those who published included.
func (r Result) Spread() (s Spread) {
	var one, all []time.Duration
	for _, m := range r.Arrived {
		for _, d := range m {
			if d < 0 {
				s.Missing++
			}
		}
		one, all = append(one, m...), append(all, slices.Max(m))
	}
	slices.Sort(one)
	slices.Sort(all)
	at := func(l []time.Duration, p float64) time.Duration { return l[int(p*float64(len(l)-1))] }
	s.One50, s.One99, s.All50, s.All99 = at(one, 0.5), at(one, 0.99), at(all, 0.5), at(all, 0.99)
	return s
}

// PerNode is how many packets of a kind a node has sent for each message.
func (r Result) PerNode(k Kind) float64 {
	return float64(r.Sends[k]) / float64(len(r.Arrived)) / float64(len(r.Arrived[0]))
}

type trial struct {
	*Trial
	mesh  *Mesh
	rng   *rand.Rand
	now   time.Duration
	seq   uint64
	queue pending
	res   Result
}

// Run has it happen.
func (t Trial) Run() Result {
	r := &trial{Trial: &t, rng: rand.New(rand.NewPCG(t.Seed, 0x747269616c))}
	r.mesh = New(t.Params, r, t.Score)
	for i := range t.Nodes {
		r.mesh.Add(rand.New(rand.NewPCG(t.Seed, uint64(i))))
	}
	for i := range t.Nodes {
		r.mesh.Up(0, int32(i))
	}
	for _, e := range t.Edges {
		r.mesh.Connect(0, e[0], e[1])
	}
	r.until(t.Settle)
	r.res.Sends, r.res.Bytes = [kinds]uint64{}, [kinds]uint64{}
	for i, p := range t.Publish {
		r.until(t.Settle + p.At)
		there := make([]time.Duration, t.Nodes)
		for k := range there {
			there[k] = -1
		}
		there[p.Node] = 0
		r.res.Arrived = append(r.res.Arrived, there)
		r.mesh.Publish(r.now, p.Node, &Message{Load: published{i, r.now}, Size: p.Size})
	}
	r.until(r.now + t.Rest)
	for i := range t.Nodes {
		r.res.Meshes = append(r.res.Meshes, r.mesh.Of(int32(i)))
		r.res.Degree += float64(len(r.res.Meshes[i])) / float64(t.Nodes)
	}
	return r.res
}

// published is which message it is, and when it began.
type published struct {
	i  int
	at time.Duration
}

func (t *trial) until(end time.Duration) {
	for len(t.queue) > 0 && t.queue[0].at <= end {
		e := heap.Pop(&t.queue).(arrival)
		t.now = e.at
		t.mesh.Handle(t.now, e.p)
	}
	t.now = end
}

func (t *trial) Send(p Packet, size int) (time.Duration, bool) {
	t.res.Sends[p.Kind]++
	t.res.Bytes[p.Kind] += uint64(size)
	least := t.Delay(p.From, p.To)
	way := func() time.Duration { return least + time.Duration(t.Jitter*t.rng.Float64()*float64(least)) }
	d := way()
	for wait := Retry(least); t.rng.Float64() < t.Loss; wait *= 2 {
		d += wait
	}
	return t.now + d, true
}

func (t *trial) At(at time.Duration, p Packet) {
	t.seq++
	heap.Push(&t.queue, arrival{at, t.seq, p})
}

func (t *trial) Deliver(from, to int32, m *Message) bool {
	p := m.Load.(published)
	t.res.Arrived[p.i][to] = t.now - p.at
	return true
}

func (t *trial) Near(a, b int32) time.Duration { return t.Delay(a, b) }

// Retry is how long QUIC waits for what it sent to be acknowledged before it sends it
// again (RFC 9002, 6.2.1): a round trip, what that varies by when it hardly does, and
// what an acknowledgement may be held back for. Each further time is twice as long.
func Retry(oneWay time.Duration) time.Duration {
	return 2*oneWay + oneWay/2 + 25*time.Millisecond
}

type arrival struct {
	at  time.Duration
	seq uint64
	p   Packet
}

type pending []arrival

func (q pending) Len() int { return len(q) }
func (q pending) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q pending) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *pending) Push(x any)   { *q = append(*q, x.(arrival)) }
func (q *pending) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}
