package lease

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Ask is a request to be sent to one voter.
type Ask struct {
	To stmt.Key
	Request
}

// Holder collects the votes for one instance. It is not safe for concurrent use.
type Holder struct {
	times  Times
	base   Request // what all requests have in common
	voters []stmt.Key

	round   uint64
	began   time.Duration // this round
	open    bool
	renews  bool                // it began while the lease was held
	failed  uint64              // rounds that did and ended without a majority
	answers map[stmt.Key]Answer // of this round
	last    map[stmt.Key]uint64 // nonce of the last grant of each voter that is not taken back
	until   time.Duration       // the machine may run before
	next    time.Duration
}

// NewHolder makes a holder of the instance that base names, with its set, term
// and holder; the rest of base is ignored. nonce is drawn at random
// for each Holder. until is when the machine has to stop by a lease of an earlier
// Holder, of this run of the daemon or of another: exactly what the machine's
// keeper was told, 0 when there is no machine.
func NewHolder(t Times, base Request, voters []stmt.Key, nonce uint64, until time.Duration) *Holder {
	base.Held, base.Release = false, false
	return &Holder{
		times: t, base: base, voters: slices.Clone(voters), round: nonce, until: until,
		answers: map[stmt.Key]Answer{}, last: map[stmt.Key]uint64{},
	}
}

// Until is when the machine must have stopped: it may run before.
func (h *Holder) Until() time.Duration { return h.until }

// Next is when Tick is due.
func (h *Holder) Next() time.Duration { return h.next }

// Failed counts the rounds that were to renew a held lease and ended without a
// majority.
func (h *Holder) Failed() uint64 { return h.failed }

// Set is whose votes the holder collects.
func (h *Holder) Set() SetID { return h.base.Set }

// Parts of a lease: a round of questions begins at a third of it, is given up
// after a sixth, or a fifteenth by who holds nothing, and one that cannot succeed
// is repeated after a thirtieth.
const (
	renewPart = 3
	roundPart = 6
	firstPart = 15
	retryPart = 30
)

// Tick begins a round when one is due.
func (h *Holder) Tick(now time.Duration) []Ask {
	if now < h.next {
		return nil
	}
	if h.open {
		if asks := h.giveUp(now); asks != nil {
			return asks
		}
	}
	h.round++
	h.began, h.open, h.next = now, true, now+h.times.Lease/roundPart
	if h.renews = now < h.until; !h.renews {
		h.next = now + h.times.Lease/firstPart
	}
	clear(h.answers)
	out := make([]Ask, 0, len(h.voters))
	for _, k := range h.voters {
		r := h.base
		r.Nonce, r.Held = h.round, h.renews
		out = append(out, Ask{k, r})
	}
	return out
}

// Answer takes a voter's answer to the request with that nonce. Only those of the
// present round count, and each voter's once.
func (h *Holder) Answer(now time.Duration, from stmt.Key, nonce uint64, a Answer) []Ask {
	if !h.open || nonce != h.round || now-h.began > h.times.Lease/roundPart || !slices.Contains(h.voters, from) {
		return nil
	}
	if _, twice := h.answers[from]; twice {
		return nil
	}
	h.answers[from] = a
	if a.Granted {
		h.last[from] = nonce
	}
	granted := h.granted()
	switch {
	case 2*granted > len(h.voters):
		h.open = false
		// From when it was asked: the voters count from later.
		h.until = max(h.until, h.began+h.times.Lease-h.times.Margin)
		h.next = h.began + h.times.Lease/renewPart
	case 2*(len(h.voters)-len(h.answers)+granted) <= len(h.voters):
		return h.giveUp(now)
	}
	return nil
}

func (h *Holder) granted() (n int) {
	for _, a := range h.answers {
		if a.Granted {
			n++
		}
	}
	return n
}

// giveUp ends a round without a majority. Who holds nothing, and has nothing that may
// still run, gives the votes back, or several who ask at once would keep each other from a majority for ever, and
// when others do ask waits a time that differs from theirs.
func (h *Holder) giveUp(now time.Duration) []Ask {
	h.open = false
	if h.renews {
		h.failed++
	}
	pause := h.times.Lease / retryPart
	if now >= h.until && h.contended() {
		pause *= 1 + h.draw()
	}
	h.next = now + pause
	if !h.surelyStopped(now) {
		return nil
	}
	return h.Release()
}

// surelyStopped says whether the machine does not run by an earlier lease: its keeper
// may be late by the margin.
func (h *Holder) surelyStopped(now time.Duration) bool {
	return h.until == 0 || now >= h.until+h.times.Margin
}

func (h *Holder) contended() bool {
	for _, a := range h.answers { // any order: one is enough
		if a.Busy {
			return true
		}
	}
	return false
}

// draw is 0 to 15, by holder and round.
func (h *Holder) draw() time.Duration {
	b := binary.BigEndian.AppendUint64(h.base.Holder[:], h.round)
	return time.Duration(sha256.Sum256(b)[0] & 15)
}

// Release gives back the votes that are known to be granted. Only who runs
// nothing by them, and will not, may send it.
func (h *Holder) Release() []Ask {
	var out []Ask
	for _, k := range h.voters {
		if nonce, ok := h.last[k]; ok {
			r := h.base
			r.Nonce, r.Release = nonce, true
			out = append(out, Ask{k, r})
		}
	}
	clear(h.last)
	return out
}

// Outdated says whether a voter knows a later claim on the slot, by which nobody
// holds the lease.
func (h *Holder) Outdated() bool {
	for _, a := range h.answers { // any order: one is enough
		if a.Later {
			return true
		}
	}
	return false
}

// Missing says how many voters granted in the last round and what the first of
// the others said; empty while the lease is held.
func (h *Holder) Missing(now time.Duration) string {
	if now < h.until {
		return ""
	}
	why := ""
	for _, k := range h.voters {
		if a, ok := h.answers[k]; ok && !a.Granted {
			why = ": " + a.Reason
			break
		}
	}
	return fmt.Sprintf("%d of %d voters grant the lease%s", h.granted(), len(h.voters), why)
}
