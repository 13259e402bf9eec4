package des

import "time"

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
	evPack                  // a pack is complete
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

// queue is a heap with four children per entry, the next event first.
type queue []event

func (q *queue) push(e event) {
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
func (q *queue) pop() event {
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
