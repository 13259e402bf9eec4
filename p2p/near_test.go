package p2p

import (
	"testing"
	"time"
)

func TestNearness(t *testing.T) {
	for _, c := range []struct {
		rtt  time.Duration
		want float64
	}{
		{0, 1}, {20 * time.Millisecond, NearEnough}, {100 * time.Millisecond, 0.5}, {200 * time.Millisecond, 0}, {3 * time.Second, 0},
	} {
		if got := Nearness(c.rtt); got != c.want {
			t.Errorf("a round trip of %v is worth %v, want %v", c.rtt, got, c.want)
		}
	}
	for _, c := range []struct{ repute, nearness, want float64 }{
		{0, 0.7, 0.7}, {0, 0, 0}, {-65, 1, -65},
	} {
		if got := worth(c.repute, c.nearness); got != c.want {
			t.Errorf("who scores %v and is %v near is worth %v, want %v", c.repute, c.nearness, got, c.want)
		}
	}
}

// Who connects is measured, and forgotten when it leaves.
func TestPeersAreMeasured(t *testing.T) {
	a, b, c := line(t)
	for _, p := range []*Node{a, c} {
		eventually(t, "b knows how far a and c are", func() bool { return b.near.score(p.ID()) > 0 && p.near.score(b.ID()) > 0 })
	}
	if a.near.score(c.ID()) != 0 {
		t.Error("a has measured a peer that it does not reach")
	}
	if b.near.stale(a.ID(), time.Now()) || !b.near.stale(a.ID(), time.Now().Add(surveyEvery)) {
		t.Error("a measurement holds for another time than it should")
	}
	first := measured(b, a)
	if err := b.Drop(a.ID(), "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a has come back, and is measured again", func() bool { return measured(b, a).After(first) })
}

// measured is when n last measured p.
func measured(n, p *Node) time.Time {
	n.near.mu.Lock()
	defer n.near.mu.Unlock()
	return n.near.peers[p.ID()].at
}
