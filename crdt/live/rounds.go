package live

import (
	"cmp"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// watch has p probed every Interval, until it is heard of or dead.
func (d *Detector) watch(p *peer) {
	i, there := slices.BinarySearchFunc(d.close, p.key, func(o *peer, k stmt.Key) int { return o.key.Compare(k) })
	if !there {
		d.close = slices.Insert(d.close, i, p)
	}
}

// expire asks helpers for rounds unanswered for a while, and ends those that have
// failed.
func (d *Detector) expire(out []Effect, now time.Duration) []Effect {
	var open []round
	for _, r := range d.rounds {
		if now-r.start < d.cfg.Timeout {
			if !r.indirect && now-r.start >= d.cfg.Indirect {
				r.indirect = true
				if via := d.helpers(r.peer); len(via) > 0 {
					out = append(out, PingReq{via, r.peer.key})
				}
			}
			open = append(open, r)
			continue
		}
		r.peer.failed++
		if r.peer.status.State != Dead {
			d.watch(r.peer)
		}
	}
	d.rounds = open
	need := d.cfg.DeadRounds
	if d.doubts(now) {
		need *= d.cfg.DoubtFactor
	}
	for _, p := range d.close {
		switch {
		case p.failed >= need:
			out = d.enter(out, now, p, Dead)
		case p.failed > 0 && p.status.State == Alive:
			out = d.enter(out, now, p, Suspect)
		}
	}
	d.close = slices.DeleteFunc(d.close, func(p *peer) bool { return p.status.State == Dead })
	return out
}

// doubts says whether probes of several peers fail and none is answered.
func (d *Detector) doubts(now time.Duration) bool {
	if d.contact > 0 && now-d.contact <= d.cfg.Timeout+d.cfg.Interval {
		return false
	}
	failing := 0
	for _, p := range d.close {
		if p.failed > 0 {
			failing++
		}
	}
	return failing > 1
}

// fewPeers are gone through whole where of more some are drawn.
const fewPeers = 64

// helpers draws peers, not dead or suspect, to ask for an indirect ping; better
// those that were heard of before.
func (d *Detector) helpers(target *peer) []stmt.Key {
	from := d.keys
	if len(from) > fewPeers {
		from = nil
		for _, p := range d.interest {
			from = append(from, p.key)
		}
		for range fewPeers {
			from = append(from, d.keys[d.rng.IntN(len(d.keys))])
		}
	}
	var known, others []stmt.Key
	for _, k := range from {
		switch s := d.Status(k); {
		case k == target.key || k == d.self || s.State != Alive:
		case s.Contact > 0:
			known = append(known, k)
		default:
			others = append(others, k)
		}
	}
	for _, list := range [][]stmt.Key{known, others} {
		d.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	var out []stmt.Key
	for _, k := range append(known, others...) {
		if len(out) < d.cfg.Helpers && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, stmt.Key.Compare)
	return out
}

// heardOrAsked is when p was last heard of or probed.
func (p *peer) heardOrAsked() time.Duration { return max(p.status.Contact, p.probed) }

// probe starts this Interval's rounds.
func (d *Detector) probe(out []Effect, now time.Duration) []Effect {
	for _, p := range d.first(d.close, d.cfg.MaxSuspects, now) {
		out = d.begin(out, now, p)
	}
	var due []*peer
	for _, p := range d.interest {
		// Who was heard of just now, because it probed this node, need not be asked.
		if !p.wasAsked || now-p.heardOrAsked() >= d.cfg.Interval/2 {
			due = append(due, p)
		}
	}
	for _, p := range d.first(due, d.cfg.MaxInterest, now) {
		out = d.begin(out, now, p)
	}
	if p := d.nextOther(); p != nil {
		out = d.begin(out, now, p)
	}
	return out
}

// first are the n peers to be probed first: those that matter, and of these those
// that were not heard of or asked for longest.
func (d *Detector) first(from []*peer, n int, now time.Duration) []*peer {
	list := slices.DeleteFunc(slices.Clone(from), func(p *peer) bool { return !d.due(now, p) })
	slices.SortStableFunc(list, func(a, b *peer) int {
		if a.matters != b.matters {
			if a.matters {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.heardOrAsked(), b.heardOrAsked())
	})
	return list[:min(n, len(list))]
}

// due says whether a round of p may begin: the dead are asked rarely.
func (d *Detector) due(now time.Duration, p *peer) bool {
	return !p.wasAsked || (p.probed != now && (p.status.State != Dead || now-p.probed >= d.cfg.DeadInterval))
}

func (d *Detector) begin(out []Effect, now time.Duration, p *peer) []Effect {
	if !d.due(now, p) {
		return out
	}
	p.probed, p.wasAsked = now, true
	d.rounds = append(d.rounds, round{peer: p, start: now})
	return append(out, Ping{p.key})
}

// nextOther goes through all peers in a random order that is drawn anew each time
// round, so that every peer is probed within a bounded time.
func (d *Detector) nextOther() *peer {
	if len(d.keys) > crowd {
		return d.nextOfMany()
	}
	if len(d.other) == 0 {
		d.other = slices.DeleteFunc(slices.Clone(d.keys), func(k stmt.Key) bool { return k == d.self })
		d.rng.Shuffle(len(d.other), func(i, j int) { d.other[i], d.other[j] = d.other[j], d.other[i] })
	}
	if len(d.other) == 0 {
		return nil
	}
	k := d.other[0]
	d.other = d.other[1:]
	return d.find(k)
}

// nextOfMany is nextOther without a list of them. When their number changes, the time
// round begins anew.
func (d *Detector) nextOfMany() *peer {
	for {
		i, ok := d.turn.take()
		switch {
		case !ok:
			d.turn = newTurn(len(d.keys), d.rng.Uint64)
		case d.keys[i] != d.self:
			return d.find(d.keys[i])
		}
	}
}
