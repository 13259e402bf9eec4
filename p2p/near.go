package p2p

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// farRTT is the round trip from which on a peer is as far as any.
	farRTT = 200 * time.Millisecond
	// NearEnough is the Nearness that half of those whom a node gossips with should
	// have: a round trip of 20 ms. As long as they have not, it tries nearer ones.
	NearEnough = 0.9
	// surveyEvery is how often a peer is measured anew: a relayed connection becomes
	// a direct one, and routes change.
	surveyEvery = 10 * time.Minute
	surveyPings = 3
)

// Nearness is what a round trip is worth, from 0 for far ones to 1.
func Nearness(rtt time.Duration) float64 { return max(0, 1-float64(rtt)/float64(farRTT)) }

// near is how far connected peers are. Gossip prefers the near ones for some of its
// mesh, which the library fills with others as well: so a message crosses a region at
// once and an ocean from several sides.
type near struct {
	mu    sync.Mutex
	peers map[peer.ID]distance
}

type distance struct {
	rtt time.Duration
	at  time.Time // when it was measured
}

func newNear() *near { return &near{peers: make(map[peer.ID]distance)} }

func (n *near) set(p peer.ID, rtt time.Duration, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[p] = distance{rtt, now}
}

func (n *near) forget(p peer.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.peers, p)
}

// score is the peer's Nearness; who was not measured is far.
func (n *near) score(p peer.ID) float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d, known := n.peers[p]; known {
		return Nearness(d.rtt)
	}
	return 0
}

// stale says whether a peer is to be measured.
func (n *near) stale(p peer.ID, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	d, known := n.peers[p]
	return !known || now.Sub(d.at) >= surveyEvery
}

// survey measures peers again and again, one at a time; fresh ones are measured when
// they come.
func (n *Node) survey(ctx context.Context) error {
	t := time.NewTicker(surveyEvery / 10)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		for _, a := range n.gate.admitted() {
			if !a.client && n.near.stale(a.id, time.Now()) && ctx.Err() == nil {
				n.measure(a.id, a.best)
			}
		}
	}
}

// measure notes how far the other side of a connection is. The least of a few pings
// counts: the first one may have waited for the stream.
func (n *Node) measure(p peer.ID, c network.Conn) {
	ctx, cancel := context.WithTimeout(n.ctx, n.tune.answer)
	defer cancel()
	rtt, err := answers(ctx, c, surveyPings)
	if err != nil {
		n.log.Debug("peer is not measured", "peer", p, "err", err)
		return
	}
	n.near.set(p, rtt, time.Now())
	if n.gate.conn(p, true) == nil { // it left meanwhile
		n.near.forget(p)
	}
}
