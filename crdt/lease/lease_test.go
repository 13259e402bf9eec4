package lease

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

var times = Times{Lease: 30 * time.Second, Margin: 5 * time.Second}

// world is some hosts, each a voter and a possible holder, under true time. Every
// host has a clock of its own rate that starts anew at a boot.
type world struct {
	now   time.Duration // true time
	hosts []*host
	mail  []letter
	term  uint64
	sets  [][]stmt.Key // by term
	log   strings.Builder
	nonce uint64
	ran   map[int]bool // whose machine ran once
}

type letter struct {
	to   int // index of the host
	ask  *Ask
	from stmt.Key
	// an answer:
	nonce  uint64
	answer *Answer
	old    *Holder // to whom it belongs: a Holder of an earlier life gets nothing
}

type host struct {
	key   stmt.Key
	rate  float64 // local seconds a true second
	boot  int
	since time.Duration // true time of the boot

	asleep bool
	voter  *Voter // nil: the daemon is down
	holder *Holder
	disk   *Memory // nil: lost
	term   uint64  // of the spec as this host knows it
	wants  bool    // asks for the lease
	gen    uint64
	until  time.Duration // the shim's: the machine runs before, by the local clock
}

func (w *world) local(h *host) time.Duration {
	return time.Duration(float64(w.now-h.since) * h.rate)
}

// runs says whether the host's machine executes at this moment.
func (w *world) runs(h *host) bool { return !h.asleep && w.local(h) < h.until }

func (w *world) logf(format string, args ...any) {
	fmt.Fprintf(&w.log, "%9.3fs ", w.now.Seconds())
	fmt.Fprintf(&w.log, format+"\n", args...)
}

func (w *world) start(i int) {
	h := w.hosts[i]
	if h.voter != nil {
		return
	}
	h.voter = NewVoter(times, fmt.Sprint(i, "/", h.boot), w.local(h), h.disk)
	w.keep(h)
	w.logf("n%d starts, boot %d, remembers %v", i, h.boot, h.disk != nil)
}

func (w *world) keep(h *host) {
	m := h.voter.Memory()
	m.Votes = slices.Clone(m.Votes)
	h.disk = &m
}

func (w *world) crash(i int) {
	h := w.hosts[i]
	h.voter, h.holder = nil, nil // the shim goes on
	w.logf("n%d: the daemon dies", i)
}

func (w *world) reboot(i int) {
	h := w.hosts[i]
	w.crash(i)
	h.boot++
	h.since, h.until, h.asleep = w.now, 0, false
	w.logf("n%d reboots", i)
}

// hear gives a host the spec as it is now.
func (w *world) hear(i int) {
	h := w.hosts[i]
	if h.term == w.term {
		return
	}
	h.term = w.term
	w.logf("n%d hears of term %d", i, h.term)
	w.look(i)
}

// look is what the driver does whenever it looks: note the voters, make a Holder
// for them.
func (w *world) look(i int) {
	h := w.hosts[i]
	if h.voter == nil || h.asleep {
		return
	}
	set := SetOf(h.term, w.sets[h.term])
	if slices.Contains(w.sets[h.term], h.key) && h.voter.See(w.local(h), "web", set, h.term) {
		w.keep(h)
	}
	if h.wants && (h.holder == nil || h.holder.Set() != set) {
		w.nonce += 1000
		h.holder = NewHolder(times, Request{Instance: "web", Set: set, Term: h.term, Holder: h.key}, w.sets[h.term], w.nonce, h.until)
	}
	if h.holder != nil {
		w.send(i, h.holder.Tick(w.local(h)))
	}
}

func (w *world) send(i int, asks []Ask) {
	for _, a := range asks {
		for j, o := range w.hosts {
			if o.key == a.To {
				w.mail = append(w.mail, letter{to: j, ask: &a, from: w.hosts[i].key, old: w.hosts[i].holder})
			}
		}
	}
}

// deliver hands over one letter, unless its host does not listen.
func (w *world) deliver(l letter) {
	h := w.hosts[l.to]
	if h.asleep || h.voter == nil {
		return
	}
	if l.ask != nil {
		if l.ask.Term != h.term || !slices.Contains(w.sets[h.term], h.key) {
			return // the voter's spec says otherwise
		}
		r := l.ask.Request
		for _, o := range w.hosts {
			if o.key == l.from {
				r.Generation = o.gen // by its claim
			}
		}
		a, changed := h.voter.Ask(w.local(h), r, 0)
		if changed {
			w.keep(h)
		}
		if l.ask.Release {
			return
		}
		w.logf("n%d: n%d asks %d held=%v: %+v", l.to, l.from[0], l.ask.Nonce, l.ask.Held, a)
		for j, o := range w.hosts {
			if o.key == l.from {
				w.mail = append(w.mail, letter{to: j, from: h.key, nonce: l.ask.Nonce, answer: &a, old: l.old})
			}
		}
		return
	}
	if h.holder == nil || h.holder != l.old {
		return
	}
	w.send(l.to, h.holder.Answer(w.local(h), l.from, l.nonce, *l.answer))
	if u := h.holder.Until(); u > h.until {
		h.until = u
		w.logf("n%d may run until %v of its clock", l.to, u)
	}
}

// check is the safety of it: never two machines at once.
func (w *world) check(t *rapid.T) {
	var run []string
	for i, h := range w.hosts {
		if w.runs(h) {
			run = append(run, fmt.Sprint("n", i))
			w.ran[i] = true
		}
	}
	if len(run) > 1 {
		t.Fatalf("%v run at once\n%s", run, w.log.String())
	}
}

// replace signs new voters. Most of the former ones hear it at once, or are gone
// for good; the others when they do.
func (w *world) replace(t *rapid.T) {
	old := w.sets[w.term]
	w.term++
	w.sets = append(w.sets, drawVoters(t, w))
	w.logf("term %d: voters %v", w.term, w.sets[w.term])
	most := rapid.Permutation(old).Draw(t, "who hears at once")[:len(old)/2+1]
	for i, h := range w.hosts {
		if slices.Contains(most, h.key) {
			w.hear(i)
		}
	}
}

func drawVoters(t *rapid.T, w *world) []stmt.Key {
	n := rapid.SampledFrom([]int{1, 3, 3, 5}).Draw(t, "voters")
	var keys []stmt.Key
	for _, h := range w.hosts {
		keys = append(keys, h.key)
	}
	return rapid.Permutation(keys).Draw(t, "of")[:n]
}

func drawWorld(t *rapid.T) *world {
	w := &world{ran: map[int]bool{}}
	for i := range 5 {
		w.hosts = append(w.hosts, &host{key: stmt.Key{byte(i)}, rate: rapid.Float64Range(0.9, 1.1).Draw(t, "rate")})
	}
	for i := range w.hosts {
		w.hosts[i].key = stmt.Key{byte(i), 1}
		w.hosts[i].disk = &Memory{Boot: fmt.Sprint(i, "/", 0)} // it has been there for long
	}
	w.sets = [][]stmt.Key{drawVoters(t, w)}
	for i := range w.hosts {
		w.start(i)
	}
	return w
}

// act is something that may happen to host i; weight is how often.
type act struct {
	name   string
	weight int
	do     func(w *world, t *rapid.T, i int)
}

// live lets up to ten seconds pass, the daemons and the network at work but for
// what is cut off.
func live(w *world, t *rapid.T, _ int) {
	cut := rapid.IntRange(-3, len(w.hosts)-1).Draw(t, "cut off")
	w.pass(t, rapid.IntRange(1, 40).Draw(t, "quarters"), cut)
}

var acts = []act{
	{"live", 12, live},
	{"want", 4, func(w *world, t *rapid.T, i int) {
		if w.hosts[i].wants = true; rapid.Bool().Draw(t, "later") {
			w.hosts[i].gen++
		}
	}},
	{"give up", 2, func(w *world, t *rapid.T, i int) { // as a drained replica: the machine ends first
		h := w.hosts[i]
		h.wants = false
		if h.holder != nil && !h.asleep {
			h.until = 0
			w.logf("n%d gives up", i)
			w.send(i, h.holder.Release())
			h.holder = nil
		}
	}},
	{"crash", 1, func(w *world, t *rapid.T, i int) { w.crash(i) }},
	{"start", 3, func(w *world, t *rapid.T, i int) { w.start(i) }},
	{"reboot", 1, func(w *world, t *rapid.T, i int) { w.reboot(i) }},
	{"sleep", 1, func(w *world, t *rapid.T, i int) { w.hosts[i].asleep = true; w.logf("n%d sleeps", i) }},
	{"wake", 3, func(w *world, t *rapid.T, i int) { w.hosts[i].asleep = false; w.logf("n%d wakes", i) }},
	{"replace", 1, func(w *world, t *rapid.T, i int) { w.replace(t) }},
	{"hear", 2, func(w *world, t *rapid.T, i int) { w.hear(i) }},
	{"drop", 1, func(w *world, t *rapid.T, i int) { w.mail = nil }},
	{"mail", 3, func(w *world, t *rapid.T, i int) { // in any order, some twice, some later or never
		for range min(len(w.mail), 6) {
			l := w.mail[rapid.IntRange(0, len(w.mail)-1).Draw(t, "letter")]
			w.now += time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond
			w.deliver(l)
			w.check(t)
		}
	}},
	{"ask", 3, func(w *world, t *rapid.T, i int) { w.now += time.Second; w.look(i) }}, // letters that stay under way
}

var loseDisk = act{"lose", 1, func(w *world, t *rapid.T, i int) {
	w.crash(i)
	w.hosts[i].disk = nil
	w.logf("n%d loses its disk", i)
}}

// chaos is what happens, in an order that t draws.
func (w *world) chaos(t *rapid.T, acts []act) {
	var deck []act
	for _, a := range acts {
		for range a.weight {
			deck = append(deck, a)
		}
	}
	names := map[string]int{}
	for range rapid.IntRange(20, 250).Draw(t, "events") {
		a := deck[rapid.IntRange(0, len(deck)-1).Draw(t, "event")]
		names[a.name]++
		a.do(w, t, rapid.IntRange(0, len(w.hosts)-1).Draw(t, "host"))
		w.check(t)
	}
}

// pass lets time pass.
func (w *world) pass(t *rapid.T, quarters, cut int) {
	for range quarters {
		w.now += 250 * time.Millisecond
		for i := range w.hosts {
			w.look(i)
		}
		w.post(cut)
		w.check(t)
	}
}

// TestNeverTwo: whatever happens, never do two machines run at once.
func TestNeverTwo(t *testing.T) {
	held, moved := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.chaos(t, append(slices.Clone(acts), loseDisk))
		held += min(len(w.ran), 1)
		moved += max(len(w.ran)-1, 0)
	})
	t.Logf("leases held in %d runs, moved %d times", held, moved)
	if held == 0 || moved == 0 {
		t.Errorf("held in %d runs, moved %d times: nothing was tested", held, moved)
	}
}

// post delivers everything that is under way, each letter within a millisecond,
// but for what host cut sends and is sent.
func (w *world) post(cut int) {
	for n := 0; len(w.mail) > 0 && n < 200; n++ {
		l := w.mail[0]
		w.mail = w.mail[1:]
		if cut >= 0 && (l.to == cut || l.from == w.hosts[cut].key) {
			continue
		}
		w.deliver(l)
		w.now += time.Millisecond
	}
}

// TestSomebodyHolds: whatever happened, once a majority is up and reached one of
// those who ask gets the lease and keeps it.
func TestSomebodyHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		w.chaos(t, append(slices.Clone(acts), loseDisk))
		// A minority stays away; the others are there.
		away := map[int]bool{}
		voters := w.sets[w.term]
		gone := rapid.IntRange(0, len(voters)/2).Draw(t, "away")
		for i, h := range w.hosts {
			if slices.Contains(voters[:gone], h.key) {
				away[i], h.asleep = true, true
				continue
			}
			h.asleep = false
			w.start(i)
			w.hear(i)
		}
		for _, i := range slices.Sorted(maps.Keys(away)) {
			w.hosts[i].wants = false
		}
		asker := 0
		for away[asker] {
			asker++
		}
		w.hosts[asker].wants = true
		w.pass(t, int(3*times.Lease/(250*time.Millisecond)), -1)
		holds := -1
		for range 2 * times.Lease / (250 * time.Millisecond) {
			w.pass(t, 1, -1)
			now := -1
			for i, h := range w.hosts {
				if w.runs(h) {
					now = i
				}
			}
			if now < 0 || holds >= 0 && holds != now {
				t.Fatalf("held by n%d, before by n%d\n%s", now, holds, w.log.String())
			}
			holds = now
		}
	})
}
