package plan

import (
	"fmt"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
)

// The status words of an instance (CONTRACT, form manage get status).
const (
	Pending = "PENDING"
	Success = "SUCCESS"
	Failure = "FAILURE"
)

// Status is the word for an instance and the reason for it, as a node with this
// World sees it. SUCCESS: every replica serves the spec as it is now, or at
// least one does and every eligible node has been used (then the reason names
// the shortage). A stopped instance succeeds when nothing of it runs. FAILURE:
// nothing serves and nothing is left to try, or a change cannot be rolled out.
func Status(w World, s *crdt.Spec) (word, reason string) {
	s = active(s)
	if r := refusal(s); r != "" {
		return Failure, r
	}
	if s.Phase == crdt.PhaseStopped {
		return stoppedStatus(w, s)
	}
	if why := place.OutOfBounds(*s); why != "" {
		return Failure, why
	}
	if why := w.lost(s); why != "" {
		return Pending, "this side " + why + ", and it runs where most of them are"
	}
	t := w.tally(s)
	switch {
	case t.ready == s.Replicas && t.current == s.Replicas:
		return Success, ""
	case t.rolling != "" && t.broken != "":
		return Failure, "the change cannot be rolled out: " + t.broken
	case t.busy != "":
		return Pending, t.count(s) + t.busy
	case t.vacant != "":
		return Pending, t.count(s) + t.vacant
	case t.rolling != "":
		return Pending, t.count(s) + t.rolling
	case t.ready > 0:
		return Success, t.count(s) + orElse(t.broken, w.shortage(s, "no other node"))
	}
	return Failure, orElse(t.broken, w.shortage(s, "no node"))
}

func orElse(s, t string) string {
	if s != "" {
		return s
	}
	return t
}

func stoppedStatus(w World, s *crdt.Spec) (string, string) {
	for _, c := range w.Claims[s.ID] {
		if !w.dead(c.Node) && c.Phase != crdt.ClaimStopped && c.Phase != crdt.ClaimFailed {
			return Pending, fmt.Sprintf("replica %d is stopping", c.Slot)
		}
	}
	return Success, "stopped"
}

// tally counts an instance's slots. The texts are empty when there is nothing
// of their kind, else they speak of the first one.
type tally struct {
	ready   int    // slots with a replica that serves
	current int    // of them, as the spec is now
	busy    string // a slot on its way
	vacant  string // a slot that nobody holds and some node may still take
	broken  string // a slot that failed or does badly
	rolling string // a slot that serves an older spec
}

func (t tally) count(s *crdt.Spec) string {
	return fmt.Sprintf("%d of %d replicas ready: ", t.ready, s.Replicas)
}

func (w World) tally(s *crdt.Spec) tally {
	claims := w.Claims[s.ID]
	var t tally
	first := func(to *string, format string, args ...any) {
		if *to == "" {
			*to = fmt.Sprintf(format, args...)
		}
	}
	p := planner{Input: Input{World: w}, used: w.usage()}
	takers := map[int]bool{}
	for _, v := range p.vacancies(s, claims) {
		takers[v.slot] = len(v.turns) > 0
	}
	for slot := range s.Replicas {
		best, ok := w.shown(s, claims, slot)
		over := p.over(s, slot)
		switch {
		case over.why != "":
			if ok && best.Ready {
				t.ready++
				if over.change {
					first(&t.rolling, "replica %d stays as it is", slot)
				}
			}
			first(&t.broken, "replica %d is %s", slot, over.why)
		case ok && best.Ready:
			t.ready++
			if best.SpecGeneration >= s.Generation {
				t.current++
			} else if why, refused := strings.CutPrefix(best.Reason, refusedChange); refused {
				first(&t.rolling, "replica %d stays as it is", slot)
				first(&t.broken, "replica %d on %s: %s", slot, best.Node, why)
			} else {
				first(&t.rolling, "replica %d waits for its turn in the rollout", slot)
			}
		case takers[slot]:
			first(&t.vacant, "replica %d waits for a node", slot)
		case !ok: // nobody, and nobody could: shortage
		case best.Phase == crdt.ClaimFailed:
			first(&t.broken, "replica %d failed: %s", slot, orElse(best.Reason, "no reason given"))
		case best.Phase == crdt.ClaimUnhealthy:
			first(&t.broken, "replica %d is unhealthy: %s", slot, orElse(best.Reason, "no reason given"))
		default:
			text := fmt.Sprintf("replica %d is %s on %s", slot, best.Phase, best.Node)
			if best.Reason != "" {
				text += ": " + best.Reason
			}
			first(&t.busy, "%s", text)
		}
	}
	return t
}

// shown is the claim that speaks for a slot: one that serves, else the keeper,
// else the latest failure.
func (w World) shown(s *crdt.Spec, claims []crdt.Claim, slot int) (best crdt.Claim, ok bool) {
	for _, c := range claims {
		if c.Slot == slot && c.Ready && !w.dead(c.Node) && (!ok || c.SpecGeneration > best.SpecGeneration) {
			best, ok = c, true
		}
	}
	if ok {
		return best, true
	}
	if h := w.holders(s, claims, slot); len(h) > 0 {
		return h[0], true
	}
	for _, c := range claims {
		if c.Slot == slot && !w.dead(c.Node) && (!ok || c.Generation > best.Generation) {
			best, ok = c, true
		}
	}
	return best, ok
}

// shortage says why no further node can take a replica. nobody is "no node" or
// "no other node".
func (w World) shortage(s *crdt.Spec, nobody string) string {
	var why []string
	for _, j := range w.judge(s) {
		if j.Reason != "" {
			why = append(why, fmt.Sprintf("%s %s", j.Node, j.Reason))
		}
	}
	if len(why) == 0 {
		return nobody + " is there"
	}
	const most = 4
	if len(why) > most {
		why = append(why[:most], fmt.Sprintf("and %d more", len(why)-most))
	}
	return nobody + " is eligible: " + strings.Join(why, "; ")
}
