package lease

import (
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// A renewal without a majority is counted once, however it ends; rounds of who
// holds nothing are not.
func TestHolderCountsFailedRenewals(t *testing.T) {
	voters := []stmt.Key{{1}, {2}, {3}}
	grants := map[bool]Answer{true: {Granted: true}, false: {Reason: "no"}}
	h := NewHolder(times, Request{Instance: "web", Set: SetOf(0, voters), Holder: stmt.Key{1}}, voters, 7, 0)
	for _, s := range []struct {
		at      int
		what    string
		answers []bool // of the voters in their order; those that are missing do not answer
		held    bool
		failed  uint64
	}{
		{at: 100, what: "nobody grants it", answers: []bool{false, false}},
		{at: 120, what: "most grant it", answers: []bool{true, true}, held: true},
		{at: 130, what: "most renew it", answers: []bool{true, false, true}, held: true},
		{at: 140, what: "most refuse", answers: []bool{true, false, false}, held: true, failed: 1},
		{at: 145, what: "one answers", answers: []bool{true}, held: true, failed: 1},
		{at: 151, what: "the former round has ended, and this one fails", answers: []bool{false, false}, held: true, failed: 3},
		{at: 160, what: "the lease has ended: these are no renewals", answers: []bool{false, false}, failed: 3},
		{at: 190, what: "again", answers: []bool{false, false}, failed: 3},
	} {
		now := time.Duration(s.at) * time.Second
		asks := h.Tick(now)
		if len(asks) != len(voters) {
			t.Fatalf("at %ds: %d questions", s.at, len(asks))
		}
		for i, ok := range s.answers {
			h.Answer(now, asks[i].To, asks[i].Nonce, grants[ok])
		}
		if held := now < h.Until(); held != s.held || h.Failed() != s.failed {
			t.Errorf("at %ds, %s: held %v, %d renewals failed; want %v, %d", s.at, s.what, held, h.Failed(), s.held, s.failed)
		}
	}
}

// A vote is not given back by a round that fails just after a lease has ended: the
// machine's keeper may be late by the margin, and until then the vote keeps others off.
// Who has nothing that may run gives it back at once.
func TestVotesAreKeptUntilTheMachineHasStopped(t *testing.T) {
	voters := []stmt.Key{{1}, {2}, {3}}
	for _, s := range []struct {
		what  string
		until time.Duration // of the earlier lease; 0: there was no machine
		after time.Duration // it, or 100 s, the round fails
		gives int
	}{
		{"the lease still runs", 100 * time.Second, -time.Second, 0},
		{"it has just ended", 100 * time.Second, 0, 0},
		{"the keeper may be late", 100 * time.Second, times.Margin - 1, 0},
		{"the machine has stopped", 100 * time.Second, times.Margin, 1},
		{"there was no machine", 0, 0, 1},
	} {
		h := NewHolder(times, Request{Instance: "web", Set: SetOf(0, voters), Holder: stmt.Key{1}}, voters, 7, s.until)
		now := 100*time.Second + s.after
		asks := h.Tick(now)
		var back []Ask
		for i, a := range []Answer{{Granted: true}, {Reason: "no"}, {Reason: "no"}} {
			back = append(back, h.Answer(now, asks[i].To, asks[i].Nonce, a)...)
		}
		if len(back) != s.gives {
			t.Errorf("%s: %d votes are given back, want %d", s.what, len(back), s.gives)
		}
	}
}
