package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
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

	mu    sync.Mutex
	peers map[peer.ID][]*servedConn // the oldest first
	taken int
}

func newPeerListener(refused func(from peer.ID, reason string, err error)) *peerListener {
	return &peerListener{
		conns: make(chan *servedConn), done: make(chan struct{}), refused: refused, peers: map[peer.ID][]*servedConn{},
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
	if !l.enter(s) {
		l.refused(from, refusedRate, errManyCalls)
		return
	}
	defer l.leave(s)
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

// enter takes a place for a stream.
func (l *peerListener) enter(s *servedConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.peers[s.from]) >= maxCallsOfOne {
		return false
	}
	if l.taken >= maxCalls {
		greedy := l.greediest()
		if len(l.peers[greedy]) < len(l.peers[s.from])+2 {
			return false
		}
		victim := l.peers[greedy][0]
		l.remove(victim)
		victim.given.Store(true)
		go victim.Close() // may wait for the network
	}
	l.peers[s.from] = append(l.peers[s.from], s)
	l.taken++
	return true
}

// greediest is the peer with the most streams.
func (l *peerListener) greediest() (out peer.ID) {
	for p, list := range l.peers {
		if n := len(l.peers[out]); len(list) > n || len(list) == n && p < out {
			out = p
		}
	}
	return out
}

func (l *peerListener) leave(s *servedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(s)
}

func (l *peerListener) remove(s *servedConn) {
	list := l.peers[s.from]
	i := slices.Index(list, s)
	if i < 0 {
		return // its place went to another
	}
	l.taken--
	if l.peers[s.from] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(l.peers, s.from)
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
