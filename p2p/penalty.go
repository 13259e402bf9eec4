package p2p

import (
	"fmt"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// How a peer is judged that offends again and again. One offence is forgiven, as
// it may be a bug; the score of many keeps the peer out until it has decayed.
const (
	penaltyHalf = 5 * time.Minute
	penaltyOut  = 8.0  // from this score on a peer is refused,
	penaltyIn   = 4.0  // until it has come down to this one: five minutes at least,
	penaltyMost = 32.0 // and fifteen at most
	// penaltyPeers bounds the table; the peer with the least score leaves.
	penaltyPeers = 1024
)

// penalties remembers which peers offended. Safe for concurrent use.
type penalties struct {
	now   func() time.Time // monotonic
	mu    sync.Mutex
	peers map[peer.ID]*penalty
	by    map[string]uint64 // offences so far, by what they were
}

type penalty struct {
	score float64 // at the time at
	at    time.Time
	out   bool // refused until the score is low again
}

func newPenalties(now func() time.Time) *penalties {
	return &penalties{now: now, peers: make(map[peer.ID]*penalty), by: make(map[string]uint64)}
}

// offend counts an offence and says whether the peer is refused now, and whether
// it was not before.
func (p *penalties) offend(id peer.ID, what string) (out, fresh bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.by[what]++
	e := p.peers[id]
	if e == nil {
		p.evict()
		e = &penalty{at: p.now()}
		p.peers[id] = e
	}
	e.decay(p.now())
	e.score = min(e.score+1, penaltyMost)
	fresh = !e.out && e.score >= penaltyOut
	e.out = e.out || fresh
	return e.out, fresh
}

// left is how long a peer is still refused; zero when it is not.
func (p *penalties) left(id peer.ID) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.peers[id]
	if e == nil {
		return 0
	}
	e.decay(p.now())
	if !e.out {
		return 0
	}
	return time.Duration(math.Log2(e.score/penaltyIn) * float64(penaltyHalf))
}

// count is how many peers are refused now, and the offences so far.
func (p *penalties) count() (n int, by map[string]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, e := range p.peers {
		if e.decay(now); e.out {
			n++
		}
	}
	return n, maps.Clone(p.by)
}

func (p *penalties) evict() {
	if len(p.peers) < penaltyPeers {
		return
	}
	var least peer.ID
	now := p.now()
	for id, e := range p.peers {
		if e.decay(now); least == "" || e.score < p.peers[least].score {
			least = id
		}
	}
	delete(p.peers, least)
}

func (e *penalty) decay(now time.Time) {
	e.score *= math.Exp2(-float64(max(0, now.Sub(e.at))) / float64(penaltyHalf))
	e.at = now
	if e.score <= penaltyIn {
		e.out = false
	}
}

// Offence tells that a peer did what no honest one does. One who does it often is
// disconnected, and neither admitted nor dialled until that has been forgotten.
// what is one of a few words.
func (n *Node) Offence(p peer.ID, what string) {
	out, fresh := n.penalties.offend(p, what)
	if !out {
		return
	}
	if fresh {
		n.log.Warn("peer is refused for repeated offences", "peer", p, "reason", what, "for", n.penalties.left(p).Round(time.Second))
	}
	// Not here: the caller may hold what the closing of a connection waits for.
	n.tasks.run(func() {
		if err := n.inner.Network().ClosePeer(p); err != nil {
			n.log.Debug("close connections", "peer", p, "err", err)
		}
	})
}

// Blocks names offences in the exchange of blocks: bytes that are not what was
// asked for, or messages against its protocol.
const Blocks = "blocks"

// Broke is Offence, and tells of it in the log now and then.
func (n *Node) Broke(p peer.ID, what string, err error) {
	if n.tellAgain(p) {
		n.log.Warn("a peer broke the rules", "peer", p, "reason", what, "err", err)
	}
	n.Offence(p, what)
}

// refusedFor is the error that a refused peer is told, nil for others.
func (n *Node) refusedFor(p peer.ID) error {
	left := n.penalties.left(p)
	if left == 0 {
		return nil
	}
	return fmt.Errorf("%s is refused for %s more: it broke the rules again and again", p, left.Round(time.Second))
}

// streamRefused counts a stream of a peer that was over a limit of the host, and
// names the peer now and then.
func (n *Node) streamRefused(p peer.ID, err error) {
	n.streamsRefused.Add(1)
	if n.tellAgain(p) {
		n.log.Info("refused streams of a peer", "peer", p, "reason", "rate", "err", err)
	}
}

// tellAgain says whether the log should name a peer again: once a minute.
func (n *Node) tellAgain(p peer.ID) bool {
	now := time.Now()
	n.tellMu.Lock()
	defer n.tellMu.Unlock()
	if now.Sub(n.tellAt[p]) < time.Minute {
		return false
	}
	if len(n.tellAt) >= penaltyPeers {
		clear(n.tellAt)
	}
	n.tellAt[p] = now
	return true
}
