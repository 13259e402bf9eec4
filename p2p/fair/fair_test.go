package fair

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestPlacesAreShared(t *testing.T) {
	const maxStreams, maxPeerStreams = 64, 8
	l := New(maxStreams, maxPeerStreams)
	dropped := make(chan peer.ID, maxStreams)
	enter := func(p peer.ID) *Place { return l.Enter(p, func() { dropped <- p }) }
	var places []*Place
	for i := range maxPeerStreams {
		if places = append(places, enter("a")); places[i] == nil {
			t.Fatalf("stream %d refused", i)
		}
	}
	if enter("a") != nil {
		t.Error("one stream too many for a")
	}
	for i := range maxStreams - maxPeerStreams {
		if enter(peer.ID([]byte{byte(i)})) == nil {
			t.Fatalf("stream %d refused", i)
		}
	}
	// All are taken: who has the most gives way, until nobody has more.
	for i := range maxPeerStreams - 1 {
		if enter(peer.ID([]byte{'b', byte(i)})) == nil {
			t.Fatal("a peer that holds many keeps another out")
		}
		if p := <-dropped; p != "a" {
			t.Errorf("%q gave way", p)
		}
	}
	if enter("c") != nil || len(l.peers["a"]) != 1 || l.Taken() != maxStreams {
		t.Errorf("one stream too many: %d of a, %d in all", len(l.peers["a"]), l.Taken())
	}
	l.Leave(places[0]) // which has lost its place
	if l.Taken() != maxStreams || enter("c") != nil {
		t.Error("a place is given back twice")
	}
	l.Leave(places[maxPeerStreams-1])
	if enter("c") == nil {
		t.Error("a free place is refused")
	}
}
