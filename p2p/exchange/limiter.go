package exchange

import (
	"errors"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/p2p/fair"
)

// Streams at once, each with its goroutine and about 1 MiB of buffers.
const (
	maxStreams     = 64
	maxPeerStreams = 8
)

// errFull: a peer wants more streams than there are for it.
var errFull = errors.New("exchange: too many bulk streams")

// limiter shares the streams between peers, and knows when none is left.
type limiter struct {
	places *fair.Places

	mu     sync.Mutex
	busy   int // entered and not left
	closed bool
	idle   chan struct{} // closed when the last one left after close
}

func newLimiter() limiter {
	return limiter{places: fair.New(maxStreams, maxPeerStreams), idle: make(chan struct{})}
}

// enter takes a place, to be given back by leave. nil: there is none. drop ends
// the stream when its place goes to another; it is called once at most.
func (l *limiter) enter(p peer.ID, drop func()) *fair.Place {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	place := l.places.Enter(p, drop)
	if place != nil {
		l.busy++
	}
	return place
}

func (l *limiter) leave(p *fair.Place) {
	l.places.Leave(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy--; l.closed && l.busy == 0 {
		close(l.idle)
	}
}

// close refuses further streams and waits for the ones there are.
func (l *limiter) close() {
	l.mu.Lock()
	l.closed = true
	if l.busy == 0 {
		close(l.idle)
	}
	l.mu.Unlock()
	<-l.idle
}
