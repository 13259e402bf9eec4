package store

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// A fetch pins for the callers that want it and stayed, and takes nobody's pin.
func TestFetchPinsForWhoWantsIt(t *testing.T) {
	type caller struct{ noPin, leaves bool }
	for name, tc := range map[string]struct {
		before  bool // pinned by its user
		callers []caller
		want    bool
	}{
		"one that does not":     {false, []caller{{noPin: true}}, false},
		"one that does":         {false, []caller{{}}, true},
		"pinned before":         {true, []caller{{noPin: true}}, true},
		"one of both":           {false, []caller{{noPin: true}, {}}, true},
		"the other way round":   {false, []caller{{}, {noPin: true}}, true},
		"who wanted it left":    {false, []caller{{noPin: true}, {leaves: true}}, false},
		"who wanted none left":  {false, []caller{{}, {noPin: true, leaves: true}}, true},
		"one left, one did not": {false, []caller{{leaves: true}, {}, {noPin: true}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			net := newFakeNet()
			origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
			net.join("origin", origin)
			net.join("node", node)
			c := packOf(t, origin, "one", noise(41, 100<<10))
			if tc.before {
				if err := node.Pin(t.Context(), c); err != nil {
					t.Fatal(err)
				}
			}
			goOn := make(chan struct{}) // nothing arrives before all have joined, and some left
			net.get("origin").tamper = func(_ cid.Cid, _ int, data []byte) ([]byte, error) {
				<-goOn
				return data, nil
			}
			var all sync.WaitGroup
			var left []*job
			for _, who := range tc.callers {
				opts := FetchOptions{From: []peer.ID{"origin"}, NoPin: who.noPin}
				j, err := node.join(c, opts)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if who.leaves {
					left = append(left, j)
					cancel()
				}
				all.Go(func() {
					if _, err := j.wait(ctx, opts); (err != nil) != who.leaves {
						t.Error(err)
					}
				})
			}
			for _, j := range left {
				within(t, func() bool {
					j.mu.Lock()
					defer j.mu.Unlock()
					return j.callers == len(tc.callers)-len(left)
				})
			}
			close(goOn)
			all.Wait()
			pins, err := node.Pins(t.Context())
			if err != nil || len(pins) == 1 != tc.want {
				t.Errorf("pins %v, %v", pins, err)
			}
			if whole, err := node.Complete(t.Context(), c); err != nil || !whole {
				t.Errorf("complete: %v, %v", whole, err)
			}
		})
	}
}

// within polls until check is true.
func within(t testing.TB, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !check(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 10 s")
		}
	}
}
