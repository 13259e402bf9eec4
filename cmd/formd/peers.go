package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/p2p/fair"
)

// Streams of the API at once, from one peer and from all. A peer uses one for each
// request under way, and for each log or events that it follows.
const (
	maxCallsOfOne = 32
	maxCalls      = 256
	// takeTime is how long a peer may take nothing of what it is sent.
	takeTime = 30 * time.Second
)

var (
	errManyCalls = errors.New("too many streams of the API")
	errNoRequest = errors.New("a stream without a whole request")
)

// peerListener turns the streams of a libp2p protocol into connections for an
// http.Server. When all are taken, one of the peer that has the most goes to a
// peer that has fewer.
type peerListener struct {
	conns   chan *servedConn
	done    chan struct{}
	once    sync.Once
	refused func(from peer.ID, reason string, err error)
	places  *fair.Places
}

func newPeerListener(refused func(from peer.ID, reason string, err error)) *peerListener {
	return &peerListener{
		conns: make(chan *servedConn), done: make(chan struct{}), refused: refused, places: fair.New(maxCalls, maxCallsOfOne),
	}
}

// servedConn knows whom it is from, and tells when it is closed.
type servedConn struct {
	net.Conn
	from   peer.ID
	began  time.Time
	asked  atomic.Bool // a request has come
	given  atomic.Bool // its place went to another
	once   sync.Once
	closed chan struct{}
}

// Close closes the connection once.
func (c *servedConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// Write fails when the peer takes nothing.
func (c *servedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(takeTime)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// handle is a stream handler: it returns when the server is done with c.
func (l *peerListener) handle(ctx context.Context, from peer.ID, c net.Conn) {
	s := &servedConn{Conn: c, from: from, began: time.Now(), closed: make(chan struct{})}
	defer s.Close()
	place := l.places.Enter(from, func() {
		s.given.Store(true)
		s.Close()
	})
	if place == nil {
		l.refused(from, refusedRate, errManyCalls)
		return
	}
	defer l.places.Leave(place)
	select {
	case l.conns <- s:
	case <-l.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-s.closed:
	case <-ctx.Done():
		return
	}
	switch {
	case s.given.Load():
		l.refused(from, refusedRate, errManyCalls)
	case s.asked.Load():
	case time.Since(s.began) >= headerTimeout:
		l.refused(from, refusedTime, errNoRequest)
	default:
		l.refused(from, refusedShape, errNoRequest)
	}
}

// Accept waits for the next stream.
func (l *peerListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *peerListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr names the listener in logs.
func (l *peerListener) Addr() net.Addr { return peerListenerAddr{} }

type peerListenerAddr struct{}

func (peerListenerAddr) Network() string { return "libp2p" }
func (peerListenerAddr) String() string  { return api.Proto }
