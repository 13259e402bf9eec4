// Package fair shares a bounded number of places between peers.
//
// Guarantees: no peer has more than its bound; when all places are taken, one of
// the peer that has the most, its oldest, goes to a peer that has at least two
// fewer. So some that hold theirs for nothing keep nobody out.
//
// Not guaranteed: that who has lost a place is done at once: it is told to end.
package fair

import (
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Places are what is shared. Its methods may be called by several goroutines.
type Places struct {
	total, each int

	mu    sync.Mutex
	peers map[peer.ID][]*Place // the oldest first
	taken int
}

// Place is one that a peer has.
type Place struct {
	peer peer.ID
	drop func()
}

// New makes total places, of which a peer has at most each.
func New(total, each int) *Places {
	return &Places{total: total, each: each, peers: map[peer.ID][]*Place{}}
}

// Enter takes a place, to be given back by Leave; nil: there is none. drop ends
// what it is used for, in a goroutine of its own, when it goes to another peer; it
// is called once at most.
func (s *Places) Enter(p peer.ID, drop func()) *Place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers[p]) >= s.each {
		return nil
	}
	if s.taken >= s.total {
		greedy := s.greediest()
		if len(s.peers[greedy]) < len(s.peers[p])+2 {
			return nil
		}
		victim := s.peers[greedy][0]
		s.remove(victim)
		go victim.drop() // may wait for the network
	}
	out := &Place{p, drop}
	s.peers[p] = append(s.peers[p], out)
	s.taken++
	return out
}

// Leave gives a place back, if it has not gone to another.
func (s *Places) Leave(p *Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(p)
}

// Taken is how many places peers have.
func (s *Places) Taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

func (s *Places) greediest() (out peer.ID) {
	for p, list := range s.peers {
		if n := len(s.peers[out]); len(list) > n || len(list) == n && p < out {
			out = p
		}
	}
	return out
}

func (s *Places) remove(p *Place) {
	list := s.peers[p.peer]
	i := slices.Index(list, p)
	if i < 0 {
		return // it went to another
	}
	s.taken--
	if s.peers[p.peer] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(s.peers, p.peer)
	}
}
