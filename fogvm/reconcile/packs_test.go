package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// packsOf are packs over a shelf, without the loop; the clock is the test's.
func packsOf(s *shelf, now *time.Duration) *packs {
	return newPacks(Config{
		Content: s, Keeper: s, Now: func() time.Duration { return *now }, Logger: slog.New(slog.DiscardHandler),
	}, func() time.Duration { return 0 }, func() {})
}

// A CID that can name nothing is neither leased nor handed to the store to keep,
// whoever asks for it or signs it.
func TestOddCIDsAreNotKept(t *testing.T) {
	const odd = "bafyqaaa" // DAG-CBOR, identity hash of nothing
	now := time.Hour
	p := packsOf(newShelf(newLibrary()), &now)
	if err := p.fetchNow(context.Background(), cid.MustParse(odd), nil, nil); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("fetch: %v", err)
	}
	if len(p.leases) != 0 {
		t.Errorf("leases: %v", p.leases)
	}
	good := cidOf("good")
	p.want(nil, []string{odd, good.String(), "no CID"}, plan.World{}, true)
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
		now := time.Hour
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
		p.want(nil, nil, plan.World{}, true)
		p.collect(t.Context())
		if s.here[c.String()] != users {
			t.Errorf("pinned=%v: it is here: %v", users, s.here[c.String()])
		}
	}
}

// What another attempt may mend is tried again soon, a pack that is bad itself
// after hours; the reason shows meanwhile, and the slot may go elsewhere.
func TestBadPacksWaitLong(t *testing.T) {
	for name, tc := range map[string]struct {
		err error
		bad bool
	}{
		"another hash than declared": {fmt.Errorf("fetch: %w", store.ErrCorrupt), true},
		"too large":                  {fmt.Errorf("fetch: %w", store.ErrTooLarge), true},
		"too large, says each peer":  {errors.Join(store.ErrNoPeer, store.ErrTooLarge), true},
		"every peer lies":            {errors.Join(store.ErrNoPeer, store.ErrCorrupt), false},
		"nobody has it":              {store.ErrNoPeer, false},
		"disk full":                  {store.ErrNoSpace, false},
		"unknown":                    {errors.New("no route"), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLibrary()
			s := newShelf(l)
			now := time.Hour
			p := packsOf(s, &now)
			c := l.add("one", store.RunConfig{})
			l.setFail(c, tc.err)
			p.want([]string{c}, nil, plan.World{}, true)
			try := func(want bool) {
				t.Helper()
				got, _ := p.next()
				if (got == c) != want {
					t.Fatalf("due: %q, want %v", got, want)
				}
				if want {
					p.fetch(t.Context(), c)
				}
			}
			try(true)
			try(false)
			st := p.status([]string{c})[c]
			if st.State != plan.Failed || st.Reason != tc.err.Error() || (st.Attempts >= 3) != tc.bad {
				t.Errorf("status: %+v", st)
			}
			now += retryMax
			try(!tc.bad)
			now += retryBad
			try(true)
			l.setFail(c, nil)
			now += retryBad
			try(true)
			if st := p.status([]string{c})[c]; st.State != plan.Complete {
				t.Errorf("status at last: %+v", st)
			}
		})
	}
}

// What a fetch brings here is measured, for the budget of repairs, and forgotten
// with the pack.
func TestFetchesAreMeasured(t *testing.T) {
	l := newLibrary()
	l.add("one", store.RunConfig{})
	c := cidOf("one").String()
	now := time.Hour
	p := packsOf(newShelf(l), &now)
	p.want([]string{c}, []string{c}, plan.World{}, true)
	if got := p.status([]string{c})[c]; got != (plan.PackStatus{}) {
		t.Errorf("before: %+v", got)
	}
	if got, _ := p.next(); got != c {
		t.Fatalf("next is %q", got)
	}
	p.fetch(t.Context(), c)
	if got := p.status([]string{c})[c]; got != (plan.PackStatus{State: plan.Complete, Bytes: 70}) {
		t.Errorf("after: %+v", got)
	}
	p.want(nil, nil, plan.World{}, true)
	if len(p.bytes) != 0 {
		t.Errorf("kept: %v", p.bytes)
	}
}
