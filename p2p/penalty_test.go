package p2p

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A single offence is forgiven, many keep a peer out for minutes, and later it
// has fewer to spare.
func TestPenalties(t *testing.T) {
	now := time.Unix(0, 0)
	p := newPenalties(func() time.Time { return now })
	offend := func(n int) (out bool) {
		for range n {
			out, _ = p.offend("a", "shape")
		}
		return out
	}
	if offend(penaltyOut-1) || p.left("a") != 0 {
		t.Fatal("out too early")
	}
	if out, fresh := p.offend("a", "size"); !out || !fresh {
		t.Fatal("not out in the end")
	}
	if out, fresh := p.offend("a", "size"); !out || fresh {
		t.Fatal("out twice")
	}
	if d := p.left("a"); d < penaltyHalf || d > 2*penaltyHalf {
		t.Errorf("out for %v", d)
	}
	if n, by := p.count(); n != 1 || by["shape"] != penaltyOut-1 || by["size"] != 2 {
		t.Errorf("%d are out, %v", n, by)
	}
	if p.left("b") != 0 {
		t.Error("another is out")
	}
	now = now.Add(p.left("a") + time.Second)
	if p.left("a") != 0 {
		t.Error("out for ever")
	}
	if !offend(penaltyOut - penaltyIn + 1) {
		t.Error("nothing is remembered")
	}
	if offend(1000); p.left("a") > 3*penaltyHalf {
		t.Errorf("out for %v after very many", p.left("a"))
	}
	now = now.Add(24 * time.Hour)
	if offend(penaltyOut-1) || p.left("a") != 0 {
		t.Error("a day does not heal")
	}
	// Invented peers do not push out the one that is refused.
	offend(10)
	for i := range 2 * penaltyPeers {
		p.offend(peer.ID(fmt.Sprint(i)), "shape")
	}
	if len(p.peers) > penaltyPeers || p.left("a") == 0 {
		t.Errorf("%d remembered, a is out for %v", len(p.peers), p.left("a"))
	}
}

// Whoever offends again and again is cut off, told why when it comes back, and
// not dialled.
func TestOffendersAreKeptOut(t *testing.T) {
	a, _ := start(t, nil)
	b, _ := start(t, nil)
	if _, err := b.Connect(ctxT(t), tcpAddr(t, a)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are peers", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	a.Offence(b.ID(), "shape")
	if len(a.Peers()) != 1 {
		t.Fatal("one offence is not forgiven")
	}
	for range int(penaltyOut) {
		a.Offence(b.ID(), "shape")
	}
	eventually(t, "it is cut off", func() bool { return len(a.Peers()) == 0 && len(b.Peers()) == 0 })
	var refused *RefusedError
	if _, err := b.Connect(ctxT(t), tcpAddr(t, a)); !errors.As(err, &refused) || !refused.ByPeer || !strings.Contains(refused.Reason, "broke the rules") {
		t.Errorf("it comes back: %v", err)
	}
	if _, err := a.Connect(ctxT(t), tcpAddr(t, b)); err == nil {
		t.Error("it is dialled")
	}
	if st := a.Stats(); st.Refused != 1 || st.Offences["shape"] != uint64(penaltyOut)+1 {
		t.Errorf("refused %d, offences %v", st.Refused, st.Offences)
	}
}
