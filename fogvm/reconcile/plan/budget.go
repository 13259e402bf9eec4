package plan

import (
	"slices"
	"time"
)

// What one node repairs in a minute, so that one switch's reboot does not move
// the fleet.
const (
	// TakeoverBudget is how many slots of dead or failed nodes it takes over.
	TakeoverBudget = 12
	// RepairBytes is how many bytes of packs it begins to fetch for them. One
	// pack may begin in any minute, however large.
	RepairBytes = 2 << 30
	// unknownPack is what a pack counts as whose size is not known yet. So many
	// of them may have begun in the last guessTime; it is known soon.
	unknownPack = 256 << 20
	guesses     = 2
	guessTime   = 10 * time.Second
)

// Repair is what a node did because another one died or failed.
type Repair struct {
	At    time.Duration
	Slot  bool   // it took a slot over
	Pack  string // it began to fetch this pack; empty: none
	Bytes int64  // of the pack
	Guess bool   // Bytes is not known yet
}

// recent drops what is older than a minute. The result is a new slice.
func recent(rs []Repair, now time.Duration) []Repair {
	var out []Repair
	for _, r := range rs {
		if now-r.At < time.Minute {
			out = append(out, r)
		}
	}
	return out
}

// cost is how many bytes must begin to come here before pack can run, and whether
// that is a guess.
func (p *planner) cost(pack string) (bytes int64, guess bool) {
	s := p.Packs[pack]
	if s.State == Complete || s.State == Fetching || p.wanted[pack] {
		return 0, false
	}
	if i := slices.IndexFunc(p.out.Timers.Repairs, func(r Repair) bool { return r.Pack == pack }); i >= 0 {
		p.wake(p.out.Timers.Repairs[i].At + time.Minute) // what was charged for it is forgotten then
		return 0, false
	}
	if s.Bytes > 0 {
		return s.Bytes, false
	}
	return unknownPack, true
}

// repairDue is when the budget admits a further repair that needs pack, of a slot
// or not. It is not after Now when the budget admits it now.
func (p *planner) repairDue(slot bool, pack string) time.Duration {
	bytes, guess := p.cost(pack)
	var slots, spent int64
	var due time.Duration
	var guessed []time.Duration
	for _, r := range p.out.Timers.Repairs {
		if r.Slot {
			slots++
		}
		if r.Guess {
			guessed = append(guessed, r.At)
		}
		spent += r.Bytes
	}
	if guess && len(guessed) >= guesses {
		due = guessed[len(guessed)-guesses] + guessTime
	}
	for _, r := range p.out.Timers.Repairs { // what ends first, first
		tooMany := slot && slots >= TakeoverBudget
		tooMuch := bytes > 0 && spent > 0 && spent+bytes > RepairBytes
		if !tooMany && !tooMuch {
			break
		}
		due = max(due, r.At+time.Minute)
		if r.Slot {
			slots--
		}
		spent -= r.Bytes
	}
	return due
}

// repaired charges the budget.
func (p *planner) repaired(slot bool, pack string) {
	r := Repair{At: p.Now, Slot: slot}
	if r.Bytes, r.Guess = p.cost(pack); r.Bytes > 0 {
		r.Pack = pack
	}
	p.out.Timers.Repairs = append(p.out.Timers.Repairs, r)
}

// remeasure puts the sizes that are known by now in the place of guesses.
func (p *planner) remeasure() {
	for i, r := range p.out.Timers.Repairs {
		if b := p.Packs[r.Pack].Bytes; r.Pack != "" && b > 0 {
			p.out.Timers.Repairs[i].Bytes, p.out.Timers.Repairs[i].Guess = b, false
		}
	}
}
