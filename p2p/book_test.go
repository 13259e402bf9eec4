package p2p

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"pgregory.net/rapid"
)

var t0 = time.Unix(1_700_000_000, 0)

func someone(i int) peer.AddrInfo {
	return peer.AddrInfo{
		ID:    peer.ID(fmt.Sprintf("peer-%04d", i)),
		Addrs: []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/10.0.0.%d/tcp/%d", i%250+1, 1000+i))},
	}
}

func testBook(boot ...peer.AddrInfo) *book {
	return newBook("self", tuning{}.withDefaults(), rand.New(rand.NewPCG(1, 2)), boot)
}

func TestBookDialsBootstrapFirstAndBacksOff(t *testing.T) {
	b := testBook(someone(1))
	for i := 2; i < 20; i++ {
		b.offer(someone(i))
	}
	dial, _ := b.plan(t0)
	if len(dial) != maxDials || dial[0].ID != someone(1).ID {
		t.Fatalf("first plan dials %v", dial)
	}
	if again, _ := b.plan(t0); len(again) != 0 {
		t.Errorf("a second plan dials %v beside the running ones", again)
	}
	var waits []time.Duration
	now := t0
	for range 12 {
		b.failed(someone(1).ID, now, false)
		e := b.entries[someone(1).ID]
		waits = append(waits, e.next.Sub(now))
		now = e.next
		e.dialing = true
	}
	if waits[0] > 2*time.Second || waits[11] < 15*time.Second || waits[11] > 45*time.Second {
		t.Errorf("waits %v: want about 1 s growing to 15–45 s", waits)
	}
}

func TestBookRedialsALostPeerAtOnce(t *testing.T) {
	b := testBook()
	b.up(someone(1), t0)
	b.down(someone(1).ID, t0)
	_, wake := b.plan(t0)
	if wait := wake.Sub(t0); wait <= 0 || wait > time.Second {
		t.Errorf("lost peer is tried after %v", wait)
	}
	if dial, _ := b.plan(wake); len(dial) != 1 {
		t.Errorf("nothing dialled at %v", wake)
	}
}

func TestBookSleepsWhenAllAreConnected(t *testing.T) {
	b := testBook(someone(1))
	b.up(someone(1), t0)
	b.up(someone(2), t0)
	if dial, wake := b.plan(t0); len(dial) != 0 || !wake.IsZero() {
		t.Errorf("plan of a connected book: %v, wake %v", dial, wake)
	}
}

func TestBookExploresWhenWellConnected(t *testing.T) {
	b := testBook()
	for i := range wantPeers {
		b.up(someone(i), t0)
	}
	b.up(someone(100), t0)
	b.down(someone(100).ID, t0)
	now, dialled := t0, 0
	for range 3 {
		dial, wake := b.plan(now)
		for _, d := range dial {
			dialled++
			b.failed(d.ID, now, false)
		}
		if wake.IsZero() || wake.Sub(now) > 30*time.Second {
			t.Fatalf("next look after %v", wake.Sub(now))
		}
		now = wake
	}
	if dialled == 0 {
		t.Error("the lost half of a partition is never tried")
	}
}

func TestBookForgets(t *testing.T) {
	b := testBook(someone(1))
	b.offer(someone(2))
	for range maxBlind {
		b.failed(someone(2).ID, t0, false)
	}
	if b.entries[someone(2).ID] != nil {
		t.Error("a peer that never answered is kept")
	}
	b.up(someone(3), t0)
	b.down(someone(3).ID, t0)
	b.failed(someone(3).ID, t0.Add(forgetAfter+time.Hour), false)
	if b.entries[someone(3).ID] != nil {
		t.Error("a peer unseen for weeks is kept")
	}
	for range 100 {
		b.failed(someone(1).ID, t0.Add(10*forgetAfter), true)
	}
	if b.entries[someone(1).ID] == nil {
		t.Error("a configured peer is forgotten")
	}
}

// Whatever happens, the book stays bounded, dials only what it was told, and
// never dials a connected or an already dialled peer.
func TestBookProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := testBook(someone(0))
		now := t0
		dialing := map[peer.ID]bool{}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			i := rapid.IntRange(0, 2*maxBook).Draw(t, "peer")
			pi := someone(i)
			now = now.Add(time.Duration(rapid.IntRange(0, 60_000).Draw(t, "ms")) * time.Millisecond)
			switch rapid.IntRange(0, 5).Draw(t, "op") {
			case 0:
				b.offer(pi)
			case 1:
				b.up(pi, now)
			case 2:
				b.down(pi.ID, now)
			case 3:
				b.learn(peer.AddrInfo{ID: pi.ID, Addrs: someone(i + 1000).Addrs})
			case 4:
				for id := range dialing {
					b.failed(id, now, i%2 == 0)
					delete(dialing, id)
				}
			case 5:
				dial, wake := b.plan(now)
				for _, d := range dial {
					if b.entries[d.ID].connected || dialing[d.ID] || len(d.Addrs) == 0 {
						t.Fatalf("dials %v: connected %v, already dialled %v", d, b.entries[d.ID].connected, dialing[d.ID])
					}
					dialing[d.ID] = true
				}
				if len(dialing) > maxDials {
					t.Fatalf("%d dials at once", len(dialing))
				}
				if !wake.IsZero() && wake.Before(now) {
					t.Fatalf("wakes in the past: %v before %v", wake, now)
				}
			}
			if len(b.entries) > maxBook {
				t.Fatalf("book has %d entries", len(b.entries))
			}
			if b.entries[someone(0).ID] == nil {
				t.Fatal("the configured peer is gone")
			}
		}
		// What is saved comes back.
		saved := b.remembered(now)
		c := testBook()
		if err := c.recall(saved); err != nil {
			t.Fatal(err)
		}
		if len(c.entries) != len(saved) {
			t.Fatalf("saved %d, recalled %d", len(saved), len(c.entries))
		}
	})
}
