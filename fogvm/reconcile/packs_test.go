package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// packsOf are packs over a shelf, without the loop; the clock is the test's.
func packsOf(s *shelf, now *time.Time) *packs {
	return newPacks(Config{
		Content: s, Keeper: s, Now: func() time.Time { return *now }, Logger: slog.New(slog.DiscardHandler),
	}, func() {})
}

// A CID that can name nothing is neither leased nor handed to the store to keep,
// whoever asks for it or signs it.
func TestOddCIDsAreNotKept(t *testing.T) {
	const odd = "bafyqaaa" // DAG-CBOR, identity hash of nothing
	now := time.Now()
	p := packsOf(newShelf(newLibrary()), &now)
	if err := p.fetchNow(context.Background(), cid.MustParse(odd), nil, nil); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("fetch: %v", err)
	}
	if len(p.leases) != 0 {
		t.Errorf("leases: %v", p.leases)
	}
	good := cidOf("good")
	p.want(nil, []string{odd, good.String(), "no CID"}, plan.World{})
	if kept := p.kept(); len(kept) != 1 || kept[0] != good {
		t.Errorf("kept: %v", kept)
	}
}

// The loop's fetches neither pin nor unpin, so a kill at any moment leaves nothing
// pinned, and a pin that a user sets meanwhile stays.
func TestFetchesLeavePinsAlone(t *testing.T) {
	for _, users := range []bool{false, true} {
		l := newLibrary()
		s := newShelf(l)
		now := time.Now()
		p := packsOf(s, &now)
		l.add("one", store.RunConfig{})
		c := cidOf("one")
		if err := p.get(t.Context(), c, nil, func(store.Progress) {}); err != nil {
			t.Fatal(err)
		}
		if len(s.pinned) != 0 {
			t.Errorf("pinned: %v", s.pinned)
		}
		s.pinned[c.String()] = users
		p.collect(t.Context())
		if s.here[c.String()] != users {
			t.Errorf("pinned=%v: it is here: %v", users, s.here[c.String()])
		}
	}
}
