package plan

import (
	"fmt"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// Explanation says why the replicas of an instance are where they are, as one
// node sees it.
type Explanation struct {
	Now    time.Duration // of the input
	Nodes  []Judged      // all, by key
	Slots  []SlotWhy
	Budget Budget
}

// Judged is a node's part in the placement of an instance.
type Judged struct {
	Node   stmt.Key
	Domain string // what fails together with it; empty: it alone
	Weight uint64 // its share in the ranking
	Reason string // why it may not run it, continues "NODE …"; empty: it may
}

// SlotWhy is one slot's placement.
type SlotWhy struct {
	Slot   int
	Keeper stmt.Key   // whose it is; zero: nobody's
	Rank   []stmt.Key // who should take it, best first
	// Due is when this node does something about it if nothing changes, since
	// boot; zero: never.
	Due time.Duration
	Why []string // lines for people
}

// Budget is what a node has done lately of what it may do.
type Budget struct {
	Takeovers   int // in the last minute, of TakeoverBudget
	RepairBytes int64
	Moves       int // in the last window, of MoveBudget
	Window      time.Duration
}

// Explain says for each slot of s why it is where it is, and what is to come by
// the timers in in.
func Explain(in Input, s *crdt.Spec) Explanation {
	s = active(s)
	p := newPlanner(in)
	out := Explanation{Now: p.Now, Nodes: p.World.judge(s), Budget: Budget{Moves: len(p.out.Timers.Moves), Window: p.Hysteresis}}
	for _, r := range p.out.Timers.Repairs {
		if r.Slot {
			out.Budget.Takeovers++
		}
		out.Budget.RepairBytes += r.Bytes
	}
	claims := p.World.Claims[s.ID]
	candidates := p.World.candidates(s)
	held := map[stmt.Key]int{}
	for slot := range s.Replicas {
		for _, c := range p.World.holders(s, claims, slot) {
			held[c.Node] = slot
		}
	}
	turns := map[int][]stmt.Key{}
	for _, v := range p.vacancies(s, claims) {
		turns[v.slot] = v.turns
	}
	for slot := range s.Replicas {
		e := SlotWhy{Slot: slot, Rank: place.Rank(*s, slot, candidates, held)}
		if h := p.World.holders(s, claims, slot); len(h) > 0 {
			p.explainHeld(&e, s, claims, h)
		} else {
			p.explainVacant(&e, s, claims, turns[slot])
		}
		out.Slots = append(out.Slots, e)
	}
	return out
}

func (e *SlotWhy) say(format string, args ...any) {
	e.Why = append(e.Why, fmt.Sprintf(format, args...))
}

// explainHeld tells of a slot that somebody holds.
func (p *planner) explainHeld(e *SlotWhy, s *crdt.Spec, claims, holders []crdt.Claim) {
	keeper := holders[0]
	e.Keeper = keeper.Node
	e.say("%s has claimed it, generation %d", keeper.Node, keeper.Generation)
	for _, c := range claims {
		switch {
		case c.Slot != e.Slot || c.Node == keeper.Node:
		case p.World.dead(c.Node):
			e.say("%s had it and does not answer", c.Node)
		case c.Ready && !keeper.Ready:
			e.say("%s serves until it is ready there", c.Node)
		case c.Phase == crdt.ClaimFailed:
			e.say("%s failed at it", c.Node)
		default:
			e.say("%s lets go of it", c.Node)
		}
	}
	if over := p.over(s, e.Slot); over.why != "" {
		e.say("%s", over.why)
	} else if strings.HasPrefix(keeper.Reason, refusedChange) && keeper.SpecGeneration < s.Generation {
		e.say("it stays as it is: %s", keeper.Reason)
	}
	to, from, ok := p.better(s, claims)
	switch {
	case !ok || from.Slot != e.Slot || p.Hysteresis < 0:
	case to != p.Self:
		e.say("the ranking prefers %s: it moves there once it has for %v", to, p.Hysteresis)
	default:
		e.Due = p.moveDue(s, from.Slot)
		e.say("the ranking prefers %s: it moves there in %v", to, p.in(e.Due))
	}
}

// explainVacant tells of a slot that nobody holds.
func (p *planner) explainVacant(e *SlotWhy, s *crdt.Spec, claims []crdt.Claim, turns []stmt.Key) {
	for _, c := range claims {
		switch {
		case c.Slot != e.Slot:
		case p.World.dead(c.Node):
			e.say("%s had it and has not answered for %v", c.Node, p.ago(p.World.Dead[c.Node]))
		case c.Phase == crdt.ClaimFailed && !void(s, c):
			e.say("%s failed at it: %s", c.Node, orElse(c.Reason, "no reason given"))
		case c.Ready && p.World.leaving(s, c):
			e.say("%s serves it and is to hand it over", c.Node)
		case c.Ready:
			e.say("%s serves it", c.Node)
		}
	}
	over := p.over(s, e.Slot).why
	switch {
	case refusal(s) != "":
		e.say("nobody may run it: %s", refusal(s))
	case s.Phase == crdt.PhaseStopped:
		e.say("its owner has stopped it")
	case place.OutOfBounds(*s) != "":
		e.say("nobody can run it: %s", place.OutOfBounds(*s))
	case p.World.minority(s) != "":
		e.say("nobody starts it here: this node %s", p.World.minority(s))
	case over != "":
		e.say("it is %s", over)
	case p.waits(s, claims, e.Slot):
		e.say("its node drains and hands another replica over first")
	case len(turns) == 0:
		e.say("no node can take it: each that may run it has a replica, failed at one or has no room")
	default:
		p.explainTurns(e, s, claims, turns)
	}
}

// explained is how many turns are told.
const explained = 3

func (p *planner) explainTurns(e *SlotWhy, s *crdt.Spec, claims []crdt.Claim, turns []stmt.Key) {
	at, base, step := p.since(s, claims, e.Slot)
	for i, k := range turns {
		due := at + base + time.Duration(i)*step
		if k == p.Self {
			if base > 0 {
				due = max(due, p.repairDue(true, s.Pack))
			}
			e.Due = max(due, p.Now)
		}
		if i < explained {
			e.say("%s takes it in %v", k, p.in(due))
		}
	}
	if more := len(turns) - explained; more > 0 {
		e.say("then %d more in turn, each %v later", more, step)
	}
}

// in is how long it is until due, in seconds.
func (p *planner) in(due time.Duration) time.Duration {
	return max(0, due-p.Now+time.Second-1).Truncate(time.Second)
}

// ago is how long ago something was, in seconds.
func (p *planner) ago(at time.Duration) time.Duration {
	return max(0, p.Now-at).Truncate(time.Second)
}

// judge says of every node whether it may run s, by key. What those have free
// that run it is not asked.
func (w World) judge(s *crdt.Spec) []Judged {
	used := w.usage()
	runs := map[stmt.Key]bool{}
	for _, c := range w.Claims[s.ID] {
		if c.Phase != crdt.ClaimFailed {
			runs[c.Node] = true
		}
	}
	out := make([]Judged, 0, len(w.Nodes))
	for i := range w.Nodes {
		n := &w.Nodes[i]
		reason := w.barred(n, s)
		switch {
		case reason != "":
		case w.dead(n.Key):
			reason = "does not answer"
		case n.Draining:
			reason = "is draining"
		case !runs[n.Key]:
			reason = full(n, used[n.Key], s)
		}
		out = append(out, Judged{Node: n.Key, Domain: domainText(candidate(n)), Weight: place.Weight(n.Total), Reason: reason})
	}
	return out
}

// domainText is the failure domain of a node in words; empty: it alone.
func domainText(c place.Candidate) string {
	switch d := place.DomainOf(c); {
	case d.Name != "":
		return d.Name
	case d.Key != c.Key:
		return "operator " + d.Key.String()
	}
	return ""
}
