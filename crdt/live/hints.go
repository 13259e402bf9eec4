package live

import (
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bounds of what is told.
const (
	// enough is how many others need to have told of a suspicion for this node to
	// say nothing: whom it concerns has heard.
	enough = 3
	// tellAgain is how long nothing more is told of a peer after a suspicion.
	tellAgain = 10 * time.Second
	// maxTells is how many suspicions are told per Tick.
	maxTells = 1
)

// rumour is what was told of a peer.
type rumour struct {
	inc      Incarnation // the highest it has told of itself
	accusers []stmt.Key  // who else suspects it as it is, since it was last heard of; at most enough
	urged    bool        // it is suspected by others and matters here: it is probed at once
	told     time.Duration
	wasTold  bool
}

// reborn notes the boot epoch in a peer's register.
func (r *rumour) reborn(epoch uint64) {
	if epoch > r.inc.Epoch {
		r.inc, r.accusers, r.wasTold = Incarnation{Epoch: epoch}, nil, false
	}
}

// voice is what the node says of itself.
type voice struct {
	inc       Incarnation
	accused   bool // somebody is to be contradicted
	spoke     time.Duration
	hasSpoken bool
}

func (v *voice) reborn(epoch uint64) {
	if epoch > v.inc.Epoch {
		v.inc = Incarnation{Epoch: epoch}
	}
}

// heard takes a hint in. It is no authority: a suspicion has this node probe for
// itself whom it may have to replace, and is counted otherwise.
func (d *Detector) heard(out []Effect, now time.Duration, ev Heard) []Effect {
	if ev.From == d.self {
		return out
	}
	if ev.Peer == d.self {
		return d.accused(out, now, ev)
	}
	p := d.find(ev.Peer)
	switch {
	case p == nil:
		return out
	case ev.Alive:
		if ev.From != p.key || ev.Compare(p.inc) <= 0 {
			return out // stale, or not its to say
		}
		p.inc = ev.Incarnation
		return d.touch(out, now, p)
	case ev.From == p.key || p.status.State == Dead || ev.Compare(p.inc) < 0:
		return out // contradicted already
	}
	if len(p.accusers) < enough && !slices.Contains(p.accusers, ev.From) {
		p.accusers = append(p.accusers, ev.From)
	}
	if !p.matters || p.urged || now-p.status.Contact < d.cfg.Interval && p.status.Contact > 0 {
		return out
	}
	p.urged = true
	d.watch(p)
	if p.failed > 0 || now-p.probed < d.cfg.Interval && p.wasAsked {
		return out // it is being asked
	}
	return d.begin(out, now, p)
}

// accused contradicts a suspicion of this node, at most once per Interval. One of
// an incarnation that never was is nobody's honest word.
func (d *Detector) accused(out []Effect, now time.Duration, ev Heard) []Effect {
	v := &d.voice
	if ev.Alive || v.inc.Epoch == 0 || ev.Compare(v.inc) > 0 {
		return out
	}
	if ev.Incarnation == v.inc {
		v.inc.Count++
	}
	v.accused = true
	return d.contradict(out, now)
}

func (d *Detector) contradict(out []Effect, now time.Duration) []Effect {
	v := &d.voice
	if !v.accused || v.hasSpoken && now-v.spoke < d.cfg.Interval {
		return out
	}
	v.accused, v.spoke, v.hasSpoken = false, now, true
	return append(out, Tell{Hint{Peer: d.self, Alive: true, Incarnation: v.inc}})
}

// speak tells others what they should know: that this node is alive, when it was
// suspected, and whom it suspects itself, unless enough others have or it doubts
// itself.
func (d *Detector) speak(out []Effect, now time.Duration) []Effect {
	out = d.contradict(out, now)
	if d.doubts(now) {
		return out
	}
	tells := 0
	for _, p := range d.close {
		if p.failed < d.cfg.TellRounds || len(p.accusers) >= enough || p.wasTold && now-p.told < tellAgain {
			continue
		}
		if tells++; tells > maxTells {
			return out // the others with the next tick
		}
		p.told, p.wasTold = now, true
		out = append(out, Tell{Hint{Peer: p.key, Incarnation: p.inc}})
	}
	return out
}
