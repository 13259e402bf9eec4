package des

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// kind says what an event is.
type kind uint8

const (
	evTick      kind = iota // of a node's detector
	evPlan                  // a node decides
	evCommitted             // own statements are on disk
	evFlush                 // statements of others are on disk
	evSync                  // a node begins an anti-entropy session; a: with whom, or -1
	evWake                  // time to plan again
	evRefresh               // plan again without a reason
	evVM                    // a virtual machine has come up or gone down
	evPack                  // a pack is complete, or time to fetch one again
	evViaEnd                // a helper gives up; a: nonce
	evResume                // a paused node goes on
	evExtend                // a machine's keeper is told; a: until when it may run
	evKept                  // votes are on disk
	evDial                  // a node connects; a: to whom, or anybody, b: failed attempts
	evBeat                  // a heartbeat of a node's router
	evGossip                // message: statements
	evHint                  // message: a hint
	evControl               // message of routers; a: its kind, b: of how many messages
	evGive                  // message: statements by anti-entropy
	evPing                  // message; a: nonce
	evEcho                  // message; a: nonce
	evVia                   // message: probe a for me; b: nonce
	evViaEcho               // message: it answered or not; a: the target, b: nonce and answer
	evAsk                   // message: a request for a lease; a: nonce
	evVote                  // message: the answer; a: nonce
	evDo                    // the scenario acts
)

var kindNames = [...]string{
	"tick", "plan", "committed", "flush", "sync", "wake", "refresh", "vm", "pack", "via-end", "resume",
	"extend", "kept", "dial", "beat", "gossip", "hint", "control", "give", "ping", "echo", "via", "via-echo", "ask", "vote", "do",
}

func (k kind) String() string { return kindNames[k] }

// isMessage: it came over the network.
func (k kind) isMessage() bool { return k >= evGossip && k <= evVote }

// event is something that happens to one node at one time.
type event struct {
	at   time.Duration
	seq  uint64 // of equal times the event that was made first comes first
	a, b int64
	node int32 // -1: to the world
	from int32 // of a message
	life uint32
	kind kind
	load any
}

func (e *event) before(o *event) bool {
	if e.at != o.at {
		return e.at < o.at
	}
	return e.seq < o.seq
}

// Buckets of a queue: how much time one takes, as a power of two of nanoseconds, and
// how many there are, so that what is to happen within a second is in them.
const (
	bucketBits = 18
	buckets    = 1 << 12
)

// queue is what will happen, the next event first. What is near is in buckets by time,
// sorted when their time has come, and the rest in a heap: most events are near.
type queue struct {
	now   []event // those of the bucket at and before it, sorted, from done on
	done  int
	at    int64 // the bucket that now began as
	near  [buckets][]event
	count int // of near
	far   heap
}

func bucketOf(t time.Duration) int64 { return int64(t) >> bucketBits }

func (q *queue) push(e event) {
	switch b := bucketOf(e.at); {
	case b <= q.at:
		i := q.done + sort.Search(len(q.now)-q.done, func(i int) bool { return e.before(&q.now[q.done+i]) })
		q.now = slices.Insert(q.now, i, e)
	case b < q.at+buckets:
		at := &q.near[b%buckets]
		*at = append(*at, e)
		q.count++
	default:
		q.far.push(e)
	}
}

// next is when the next event is.
func (q *queue) next() (at time.Duration, ok bool) {
	if q.done == len(q.now) && !q.advance() {
		return 0, false
	}
	return q.now[q.done].at, true
}

// pop takes the next event; there must be one.
func (q *queue) pop() event {
	if q.done == len(q.now) {
		q.advance()
	}
	e := q.now[q.done]
	q.now[q.done] = event{} // lets go of the load
	q.done++
	return e
}

// advance goes to the next bucket that has events, and reports whether there is one.
func (q *queue) advance() bool {
	if q.count == 0 && len(q.far) == 0 {
		return false
	}
	q.now, q.done = q.now[:0], 0
	for ok := false; !ok; {
		q.at++
		if q.count == 0 {
			q.at = bucketOf(q.far[0].at)
		}
		for len(q.far) > 0 && bucketOf(q.far[0].at) < q.at+buckets {
			e := q.far.pop()
			at := &q.near[bucketOf(e.at)%buckets]
			*at = append(*at, e)
			q.count++
		}
		ok = len(q.near[q.at%buckets]) > 0
	}
	here := &q.near[q.at%buckets]
	q.now, *here = *here, q.now
	q.count -= len(q.now)
	slices.SortFunc(q.now, func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.seq, b.seq)) })
	return true
}

// heap has four children per entry.
type heap []event

func (q *heap) push(e event) {
	*q = append(*q, e)
	h := *q
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 4
		if !h[i].before(&h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

// pop takes the next event; there must be one.
func (q *heap) pop() event {
	h := *q
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = event{} // lets go of the load
	h = h[:last]
	*q = h
	for i := 0; ; {
		best := i
		for c := 4*i + 1; c <= 4*i+4 && c < len(h); c++ {
			if h[c].before(&h[best]) {
				best = c
			}
		}
		if best == i {
			return top
		}
		h[i], h[best] = h[best], h[i]
		i = best
	}
}
