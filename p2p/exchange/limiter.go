package exchange

import (
	"errors"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Streams at once, each with its goroutine and about 1 MiB of buffers.
const (
	maxStreams     = 64
	maxPeerStreams = 8
)

// errFull: a peer wants more streams than there are for it.
var errFull = errors.New("exchange: too many bulk streams")

// limiter shares the streams between peers: when all are taken, one of the peer
// that has the most goes to a peer that has fewer, so that some that hold theirs
// for nothing keep nobody out.
type limiter struct {
	mu     sync.Mutex
	peers  map[peer.ID][]*place // the oldest first
	taken  int                  // in peers
	busy   int                  // entered and not left
	closed bool
	idle   chan struct{} // closed when the last one left after close
}

// place is one stream's.
type place struct {
	peer peer.ID
	drop func() // ends the stream
}

// enter takes a place, to be given back by leave. nil: there is none. drop ends
// the stream when its place goes to another; it is called once at most.
func (l *limiter) enter(p peer.ID, drop func()) *place {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.peers[p]) >= maxPeerStreams {
		return nil
	}
	if l.taken >= maxStreams {
		greedy := l.greediest()
		if len(l.peers[greedy]) < len(l.peers[p])+2 {
			return nil
		}
		victim := l.peers[greedy][0]
		l.remove(victim)
		go victim.drop() // may wait for the network
	}
	if l.peers == nil {
		l.peers = map[peer.ID][]*place{}
	}
	out := &place{p, drop}
	l.peers[p] = append(l.peers[p], out)
	l.taken++
	l.busy++
	return out
}

// greediest is the peer with the most streams.
func (l *limiter) greediest() (out peer.ID) {
	for p, list := range l.peers {
		if n := len(l.peers[out]); len(list) > n || len(list) == n && p < out {
			out = p
		}
	}
	return out
}

func (l *limiter) remove(s *place) {
	list := l.peers[s.peer]
	i := slices.Index(list, s)
	if i < 0 {
		return // it went to another
	}
	l.taken--
	if l.peers[s.peer] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(l.peers, s.peer)
	}
}

func (l *limiter) leave(s *place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(s)
	l.busy--
	if l.closed && l.busy == 0 {
		close(l.idle)
	}
}

// close refuses further streams and waits for the ones there are.
func (l *limiter) close() {
	l.mu.Lock()
	l.closed = true
	l.idle = make(chan struct{})
	if l.busy == 0 {
		close(l.idle)
	}
	l.mu.Unlock()
	<-l.idle
}
