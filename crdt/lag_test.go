package crdt

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A peer differs when every session for a while moved something, and one that
// found both equal ends that.
func TestLag(t *testing.T) {
	var c comparisons
	if l := c.lag(time.Hour); l != (Lag{Last: -1}) {
		t.Errorf("before any session: %+v", l)
	}
	const m = time.Minute
	for i := range 7 {
		c.note("a", true, time.Duration(i)*m)
		c.note("b", i%3 != 0, time.Duration(i)*m)
	}
	if l := c.lag(8 * m); l.Peers != 2 || l.Differ != 1 || l.For != 6*m || l.Last != 2*m {
		t.Errorf("%+v", l)
	}
	c.note("a", false, 9*m)
	if l := c.lag(9 * m); l.Differ != 0 || l.For != 0 || l.Last != 0 {
		t.Errorf("after they were equal: %+v", l)
	}
	for i := range 2 * maxCompared {
		c.note(peer.ID(fmt.Sprint(i)), false, time.Hour)
	}
	if l := c.lag(time.Hour); l.Peers > maxCompared {
		t.Errorf("%d peers are remembered", l.Peers)
	}
}
