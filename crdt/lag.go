package crdt

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Lag is how far this node may be from what others hold, as its anti-entropy
// sessions and its disk show.
type Lag struct {
	Peers  int           // peers that sessions with have ended well
	Differ int           // of them, those that had something to exchange every time for DiffersAfter or more
	For    time.Duration // the longest such time
	Last   time.Duration // since the last session that ended well; negative when there was none
	// Behind: the disk does not take what the state holds, so nothing is
	// acknowledged.
	Behind bool
}

// DiffersAfter is from when on a peer that always has something to exchange is
// told of: in a busy swarm some statement is always on its way.
const DiffersAfter = 5 * time.Minute

// maxCompared bounds the peers that are remembered; the one not met longest goes.
const maxCompared = 1024

// comparisons remembers how sessions with each peer went. Safe for concurrent
// use.
type comparisons struct {
	mu    sync.Mutex
	peers map[peer.ID]*comparison
	last  time.Duration
	any   bool
}

// comparison is by the time since boot.
type comparison struct {
	last    time.Duration // session that ended well
	unequal time.Duration // the first of those in a row that moved something
	differs bool
}

// note takes a session that ended well, and whether it moved a statement.
func (c *comparisons) note(p peer.ID, moved bool, now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers == nil {
		c.peers = map[peer.ID]*comparison{}
	}
	e := c.peers[p]
	if e == nil {
		c.evict()
		e = &comparison{}
		c.peers[p] = e
	}
	if moved && !e.differs {
		e.unequal = now
	}
	e.last, e.differs = now, moved
	c.last, c.any = now, true
}

func (c *comparisons) evict() {
	if len(c.peers) < maxCompared {
		return
	}
	var oldest peer.ID
	for p, e := range c.peers { // any order: one of the oldest
		if oldest == "" || e.last < c.peers[oldest].last {
			oldest = p
		}
	}
	delete(c.peers, oldest)
}

func (c *comparisons) lag(now time.Duration) Lag {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := Lag{Peers: len(c.peers), Last: -1}
	if c.any {
		l.Last = now - c.last
	}
	for _, e := range c.peers { // any order: a count and a maximum
		if d := e.last - e.unequal; e.differs && d >= DiffersAfter {
			l.Differ++
			l.For = max(l.For, d)
		}
	}
	return l
}

// Lag says how far this node may be behind.
func (r *Replica) Lag() Lag {
	l := r.compared.lag(r.cfg.Boot())
	r.mu.Lock()
	defer r.mu.Unlock()
	l.Behind = r.backlog.failing || r.backlog.rewrite
	return l
}
