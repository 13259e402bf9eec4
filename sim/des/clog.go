package des

import (
	"slices"
	"time"
)

// clogs are nodes to and from which messages wait: the links are there and nothing
// gets through, as when a queue on the way has filled up.
type clogs struct {
	at   []int32
	held []event
}

// on says whether a node is clogged.
func (c *clogs) on(i int32) bool { return len(c.at) > 0 && slices.Contains(c.at, i) }

// hold keeps a message that cannot get through now.
func (c *clogs) hold(e *event) bool {
	if !c.on(e.from) && !c.on(e.node) {
		return false
	}
	c.held = append(c.held, *e)
	return true
}

// Clog has all messages to and from a node wait until Unclog.
func (s *Sim) Clog(i int) {
	if c := &s.clogs; !slices.Contains(c.at, int32(i)) {
		c.at = append(c.at, int32(i))
		s.Seen["clog"]++
	}
}

// Unclog lets the messages that waited for a node through, all at once.
func (s *Sim) Unclog(i int) {
	c := &s.clogs
	at := slices.Index(c.at, int32(i))
	if at < 0 {
		return
	}
	c.at = slices.Delete(c.at, at, at+1)
	held := c.held
	c.held = nil
	for _, e := range held {
		e.at = s.now + time.Microsecond
		s.push(e) // those that wait for another clog are held again
	}
	s.Seen["unclog"]++
}

// Clogged are the nodes that are, in the order in which they were.
func (s *Sim) Clogged() []int {
	var out []int
	for _, i := range s.clogs.at {
		out = append(out, int(i))
	}
	return out
}
