package crdt

import (
	"errors"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// Reason is the class of what a peer said that was refused: few enough to count
// each.
type Reason int

// The reasons. Those up to RefusedProtocol are offences: no honest replica says
// such a thing, because it passes on only what it has verified. The others
// happen between honest replicas as well, which hold different things.
const (
	RefusedSize      Reason = iota // over a limit of the wire format
	RefusedShape                   // not canonical, or no statement
	RefusedNetwork                 // of another network
	RefusedSignature               // forged
	RefusedProtocol                // an anti-entropy session against its rules
	RefusedSender                  // the peer is no member node
	RefusedRate                    // more than a peer, or an author through it, may say
	RefusedAuthority               // a member statement by a key that may not make it
	RefusedInvalid                 // against the rules of its kind
	RefusedQuota                   // the author is over a quota
	RefusedFrozen                  // a change of a frozen document
	RefusedExpired                 // an admission by an invite that is over
	RefusedStranger                // the author is not known as a member
	RefusedEarly                   // it waits for others
	RefusedStale                   // superseded, deleted or revoked
	RefusedOther                   // the fault of nobody known
	reasons
)

var reasonNames = [reasons]string{
	"size", "shape", "network", "signature", "protocol", "sender", "rate", "authority", "invalid",
	"quota", "frozen", "expired", "stranger", "early", "stale", "other",
}

// String is one word, fit for a metric's label.
func (r Reason) String() string { return reasonNames[r] }

// Offence says whether only a hostile or broken peer says such a thing.
func (r Reason) Offence() bool { return r <= RefusedProtocol }

// errRate: more than a peer, or an author through it, may say.
var errRate = errors.New("crdt: too much at once")

// reasonOf classifies an error of [State.Apply], of decoding and of sessions.
func reasonOf(err error) Reason {
	for _, c := range []struct {
		err    error
		reason Reason
	}{
		// First what wraps an error of package stmt about a body.
		{ErrInvalid, RefusedInvalid},
		{stmt.ErrTooLarge, RefusedSize}, {stmt.ErrEncoding, RefusedShape}, {stmt.ErrShape, RefusedShape},
		{stmt.ErrNetwork, RefusedNetwork}, {stmt.ErrSignature, RefusedSignature},
		{stmt.ErrAuthority, RefusedAuthority}, {stmt.ErrExpired, RefusedExpired},
		{ErrNotMember, RefusedStranger}, {ErrPending, RefusedEarly}, {ErrStale, RefusedStale},
		{ErrQuota, RefusedQuota}, {ErrFrozen, RefusedFrozen}, {errRate, RefusedRate}, {errAEProtocol, RefusedProtocol},
	} {
		if errors.Is(err, c.err) {
			return c.reason
		}
	}
	return RefusedOther
}

// refusals counts what was refused.
type refusals [reasons]atomic.Uint64

func (r *refusals) counts() (by map[Reason]uint64, all uint64) {
	by = make(map[Reason]uint64, reasons)
	for i := range r {
		n := r[i].Load()
		by[Reason(i)] = n
		all += n
	}
	return by, all
}

// How often the log tells of one peer and reason.
const (
	tellRate  = 1.0 / 60
	tellBurst = 2
)

type told struct {
	peer   peer.ID
	reason Reason
}

// limits bound what peers may say, and what is told of it.
type limits struct {
	messages   *rates[peer.ID]
	statements *rates[peer.ID]  // in messages
	pairs      *rates[pair]     // and of those of one author
	spread     *rates[stmt.Key] // what is passed on
	sessions   *rates[peer.ID]  // that a peer begins
	told       *rates[told]     // lines of the log
}

// pair is an author as a neighbour tells of it.
type pair struct {
	from   peer.ID
	author stmt.Key
}

func newLimits() limits {
	return limits{
		messages:   newRates[peer.ID](peerRate, peerBurst),
		statements: newRates[peer.ID](stmtRate, stmtBurst),
		pairs:      newRates[pair](pairRate, pairBurst),
		spread:     newRates[stmt.Key](authorRate, authorBurst),
		sessions:   newRates[peer.ID](sessionRate, sessionBurst),
		told:       newRates[told](tellRate, tellBurst),
	}
}

// refuse counts what a peer said, and names the peer.
func (r *Replica) refuse(from peer.ID, reason Reason, err error) {
	r.stats.refusals[reason].Add(1)
	r.accuse(from, reason, err)
}

// accuse names a peer to the log, not too often, and for an offence to whoever
// judges peers. Not under mu.
func (r *Replica) accuse(from peer.ID, reason Reason, err error) {
	log := r.cfg.Logger.Debug
	switch {
	case reason >= RefusedFrozen: // honest peers say such things all day
	case !r.limits.told.take(told{from, reason}, 1, r.cfg.Now()):
	case reason.Offence():
		log = r.cfg.Logger.Warn
	default:
		log = r.cfg.Logger.Info
	}
	log("refused what a peer said", "peer", from, "reason", reason.String(), "err", err)
	if reason.Offence() && r.cfg.Offence != nil {
		r.cfg.Offence(from, reason)
	}
}
