package crdt

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// How sessions share a node's time. A peer that is silent or slow, and any number
// of them that work together, costs others no more than a wait of some seconds.
const (
	maxSessions  = 8               // anti-entropy sessions at once, each way
	maxFresh     = maxSessions / 2 // of those held, how many with new peers
	frameTimeout = 20 * time.Second
	// sessionTimeout is for all rounds with one peer; each sessionPace bytes that
	// moved give a second more, up to sessionMost. What came by then is held.
	sessionTimeout = time.Minute
	sessionPace    = 64 << 10
	sessionMost    = 10 * time.Minute
	// ahead is how much more of this node's time than a peer that waits another
	// one has had when its session ends for that of the other.
	ahead = 5 * time.Second
	// usedHalf is how fast it is forgotten who had how much.
	usedHalf = time.Minute
	// perNews is what a statement that was news is worth of that time.
	perNews = 10 * time.Millisecond
)

// dialogues are the sessions held in one direction, one with a peer at a time, and
// how much of this node's time each peer has had lately without bringing anything.
type dialogues struct {
	mu   sync.Mutex
	with map[peer.ID]*dialogue
	used map[peer.ID]used
}

type used struct {
	time time.Duration
	at   time.Time
}

// dialogue is all the rounds of one session.
type dialogue struct {
	peer   peer.ID
	began  time.Time
	stop   func()
	credit time.Duration // guarded by dialogues.mu
	moved  int           // bytes of the rounds before
}

// begin starts a session with p, unless there is one. When most are under way it
// ends the one whose peer has had the most time, if p had that much less. nil says
// that there is no room; else the session must end with end.
func (d *dialogues) begin(p peer.ID, most int, stop func()) *dialogue {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.with == nil {
		d.with, d.used = map[peer.ID]*dialogue{}, map[peer.ID]used{}
	}
	if d.with[p] != nil {
		return nil
	}
	if len(d.with) >= most {
		victim := d.greediest(now)
		if d.time(victim.peer, now) < d.time(p, now)+ahead {
			return nil
		}
		d.close(victim, now)
		victim.stop()
	}
	s := &dialogue{peer: p, began: now, stop: stop}
	d.with[p] = s
	return s
}

// greediest returns the session whose peer has had the most time.
func (d *dialogues) greediest(now time.Time) (out *dialogue) {
	for _, s := range d.with { // any order: the greatest, and any of equals
		if out == nil || d.time(s.peer, now) > d.time(out.peer, now) {
			out = s
		}
	}
	return out
}

// time is what a peer has had, its session under way included.
func (d *dialogues) time(p peer.ID, now time.Time) time.Duration {
	u := d.used[p]
	// Halved in whole steps: good enough to compare with.
	t := u.time >> min(max(now.Sub(u.at)/usedHalf, 0), 62)
	if s := d.with[p]; s != nil {
		t += max(now.Sub(s.began)-s.credit, 0)
	}
	return t
}

// credit notes that a session brought news. One of the other direction is not
// touched: there it is this node that brings them.
func (d *dialogues) credit(s *dialogue, news int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.with[s.peer] == s {
		s.credit += time.Duration(news) * perNews
	}
}

// end ends a session, also one that was ended for another.
func (d *dialogues) end(s *dialogue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.with[s.peer] == s {
		d.close(s, time.Now())
	}
	s.stop()
}

// close takes a session out and notes what time it took.
func (d *dialogues) close(s *dialogue, now time.Time) {
	if len(d.used) >= maxRateCounters {
		delete(d.used, leastOf(d.used, func(p peer.ID) float64 { return float64(d.time(p, now)) }))
	}
	d.used[s.peer] = used{d.time(s.peer, now), now}
	delete(d.with, s.peer)
}

// carry counts the bytes of a round that is over.
func (s *dialogue) carry(moved int) { s.moved += moved }

// deadline is until when the next frame may take, after so many bytes of this
// round.
func (s *dialogue) deadline(moved int, now time.Time) time.Time {
	earned := time.Duration(s.moved+moved) * (time.Second / sessionPace)
	end := s.began.Add(min(sessionTimeout+earned, sessionMost))
	if frame := now.Add(frameTimeout); frame.Before(end) {
		return frame
	}
	return end
}
