package live

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// State of a peer.
type State uint8

// The states. A peer that was never probed is Alive: new peers get the benefit of
// the doubt for the few seconds a verdict takes.
const (
	Alive State = iota
	Suspect
	Dead
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	case Dead:
		return "dead"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Status is what the detector holds of a peer.
type Status struct {
	State State
	// Since is the time of the step in which State was entered.
	Since time.Duration
	// Contact is when the peer was last heard of; zero: never since this node
	// started or slept.
	Contact time.Duration
}

// Config holds the detector's times; zero fields get the defaults. They suit
// machines that stall for a second or two under load.
type Config struct {
	Interval     time.Duration // between rounds of one peer; default 1 s
	Indirect     time.Duration // after which helpers are asked; default 1 s
	Timeout      time.Duration // after which a round has failed; default 2 s
	DeadRounds   int           // failed rounds that make a peer dead; default 3
	DoubtFactor  int           // times as many while in self-doubt; default 3
	TellRounds   int           // failed rounds after which others are told; default 2
	Helpers      int           // peers asked for an indirect ping; default 3
	MaxInterest  int           // peers of the interest set probed per Interval; default 32
	MaxSuspects  int           // suspects probed per Interval; default 16
	DeadInterval time.Duration // between rounds of a dead peer; default 10 s
	Stall        time.Duration // a step later than this after the last voids open rounds; default 1.5 s
	Sleep        time.Duration // a step later than this after the last voids all verdicts; default 5 s
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.Interval, time.Second)
	def(&c.Indirect, time.Second)
	def(&c.Timeout, 2*time.Second)
	def(&c.DeadInterval, 10*time.Second)
	def(&c.Stall, 1500*time.Millisecond)
	def(&c.Sleep, 5*time.Second)
	for _, f := range []struct {
		n *int
		v int
	}{{&c.DeadRounds, 3}, {&c.DoubtFactor, 3}, {&c.TellRounds, 2}, {&c.Helpers, 3}, {&c.MaxInterest, 32}, {&c.MaxSuspects, 16}} {
		if *f.n <= 0 {
			*f.n = f.v
		}
	}
}

// Event is something that happened: Tick, Peers, Contact or Heard.
type Event interface{ event() }

type (
	// Tick lets time pass. Send one four times a second.
	Tick struct{}
	// Peers sets who there is, and of those who matters: see the package
	// documentation. The detector keeps the lists, which must not change afterwards;
	// an All in order, that holds Interest, is not copied. Keys of neither list are forgotten. The detector itself may
	// be among them.
	Peers struct {
		All, Interest []stmt.Key
		// Epochs are the boot epochs that nodes have published, the detector's own
		// among them; who is not in it has 0, and without its own a detector does
		// not speak for itself.
		Epochs map[stmt.Key]uint64
	}
	// Contact: an authenticated message of any kind came from Key, or a helper
	// says that it answered a ping. Early or late makes no difference.
	Contact struct{ Key stmt.Key }
	// Heard is a verified hint that its author From, a member, has not said before.
	Heard struct {
		From stmt.Key
		Hint
	}
)

func (Tick) event()    {}
func (Peers) event()   {}
func (Contact) event() {}
func (Heard) event()   {}

// Hint is what nodes tell each other of Peer: that it is suspected as it was in
// Incarnation, or, which only Peer itself may say, that it is alive in it.
type Hint struct {
	Peer  stmt.Key
	Alive bool
	Incarnation
}

// Incarnation orders what a node says of itself: by the boot epoch of its
// registers, and in one of these by how often it has contradicted a suspicion.
type Incarnation struct{ Epoch, Count uint64 }

// Compare orders incarnations.
func (i Incarnation) Compare(o Incarnation) int {
	return cmp.Or(cmp.Compare(i.Epoch, o.Epoch), cmp.Compare(i.Count, o.Count))
}

// Effect is something for the driver to do: Ping, PingReq, Tell or Changed.
type Effect interface{ effect() }

type (
	// Ping asks To for an answer, to be reported as its Contact.
	Ping struct{ To stmt.Key }
	// PingReq asks every helper in Via to ping Target. Any answer of a helper is
	// its Contact, and when it says that Target answered, Target's as well.
	PingReq struct {
		Via    []stmt.Key
		Target stmt.Key
	}
	// Tell signs a hint and spreads it to everybody.
	Tell struct{ Hint }
	// Changed tells of a new state.
	Changed struct {
		Key stmt.Key
		Status
	}
)

func (Ping) effect()    {}
func (PingReq) effect() {}
func (Tell) effect()    {}
func (Changed) effect() {}

// Detector is the state machine. It is not safe for concurrent use.
type Detector struct {
	cfg  Config
	self stmt.Key
	rng  *rand.Rand

	keys     []stmt.Key                 // of all peers, ascending; self may be among them
	epochs   map[stmt.Key]uint64        // as told last
	known    map[stmt.Key]*peer         // of whom there is more to say than that they are there
	begun    time.Duration              // since when there are peers
	late     map[stmt.Key]time.Duration // when others came
	interest []*peer                    // by key
	close    []*peer                    // probed every Interval: failing or urged, and not dead; by key
	other    []stmt.Key                 // whose turn is to come, of few
	turn     turn                       // of many
	rounds   []round                    // open ones, oldest first
	last     time.Duration
	next     time.Duration // of the next rounds
	contact  time.Duration // the last one with anybody since a sleep; zero: none
	started  bool
	voice    voice
}

type peer struct {
	key      stmt.Key
	status   Status
	matters  bool          // in interest
	failed   int           // rounds since the last contact
	probed   time.Duration // start of the last round
	wasAsked bool
	rumour
}

type round struct {
	peer     *peer
	start    time.Duration
	indirect bool
}

// New returns a detector for the node self. Equal seeds and events give equal
// effects.
func New(self stmt.Key, cfg Config, seed uint64) *Detector {
	cfg.setDefaults()
	return &Detector{cfg: cfg, self: self, known: map[stmt.Key]*peer{}, late: map[stmt.Key]time.Duration{}, rng: rand.New(rand.NewPCG(seed, 0x666f726d))}
}

// Status returns what is held of key; a key that is not among the peers is Dead,
// and self is Alive.
func (d *Detector) Status(key stmt.Key) Status {
	if key == d.self {
		return Status{State: Alive, Since: 0, Contact: d.last}
	}
	if p := d.known[key]; p != nil {
		return p.status
	}
	if !d.has(key) {
		return Status{State: Dead}
	}
	return Status{State: Alive, Since: d.came(key)}
}

// has says whether key is a peer, and came since when it has been one.
func (d *Detector) has(key stmt.Key) bool {
	_, ok := slices.BinarySearchFunc(d.keys, key, stmt.Key.Compare)
	return ok && key != d.self
}

func (d *Detector) came(key stmt.Key) time.Duration {
	if at, late := d.late[key]; late {
		return at
	}
	return d.begun
}

// Doubting says whether the node currently doubts itself.
func (d *Detector) Doubting() bool { return d.doubts(d.last) }

// find is what is known of a peer from now on; nil of others.
func (d *Detector) find(key stmt.Key) *peer {
	if p := d.known[key]; p != nil {
		return p
	}
	if !d.has(key) {
		return nil
	}
	p := &peer{key: key, status: Status{State: Alive, Since: d.came(key)}}
	p.reborn(d.epochs[key])
	d.known[key] = p
	return p
}

// Step advances the detector to now, which never goes back and should count time
// in suspend (CLOCK_BOOTTIME), and handles ev.
func (d *Detector) Step(now time.Duration, ev Event) []Effect {
	now = max(now, d.last)
	var out []Effect
	if d.started && now-d.last > d.cfg.Stall {
		out = d.stalled(out, now)
	}
	d.started, d.last = true, now
	switch ev := ev.(type) {
	case Peers:
		d.setPeers(now, ev)
	case Contact:
		if p := d.find(ev.Key); p != nil {
			out = d.touch(out, now, p)
		}
	case Heard:
		out = d.heard(out, now, ev)
	case Tick:
		out = d.expire(out, now)
		out = d.speak(out, now)
		if now >= d.next {
			d.next = now + d.cfg.Interval
			out = d.probe(out, now)
		}
	}
	return out
}

// stalled forgets what silence had seemed to prove: the node was stopped itself.
// What it knew before a sleep is too old altogether: verdicts are measured anew.
func (d *Detector) stalled(out []Effect, now time.Duration) []Effect {
	slept := now-d.last > d.cfg.Sleep
	d.rounds, d.next = nil, now
	if slept {
		d.contact = 0
	}
	for _, k := range slices.SortedFunc(maps.Keys(d.known), stmt.Key.Compare) {
		p := d.known[k]
		if slept {
			p.wasAsked, p.status.Contact = false, 0
			out = d.enter(out, now, p, Alive)
		}
		if p.status.State != Dead {
			p.failed, p.urged = 0, false
		}
	}
	// Suspects stay ones to be asked.
	d.close = slices.DeleteFunc(d.close, func(p *peer) bool { return p.status.State != Suspect })
	return out
}

func (d *Detector) setPeers(now time.Duration, ev Peers) {
	d.setAll(now, ev)
	d.epochs = ev.Epochs
	d.interest = nil
	matters := slices.Compact(slices.SortedFunc(slices.Values(ev.Interest), stmt.Key.Compare))
	for _, p := range d.known { // any order: each by itself
		p.matters = false
		p.reborn(ev.Epochs[p.key])
	}
	for _, k := range matters {
		if p := d.find(k); p != nil {
			p.matters = true
			d.interest = append(d.interest, p)
		}
	}
	d.voice.reborn(ev.Epochs[d.self])
	gone := func(p *peer) bool { return d.known[p.key] != p }
	d.rounds = slices.DeleteFunc(d.rounds, func(r round) bool { return gone(r.peer) })
	d.close = slices.DeleteFunc(d.close, gone)
}

// setAll sets who there is.
func (d *Detector) setAll(now time.Duration, ev Peers) {
	all := ev.All
	there := func(k stmt.Key) bool { _, ok := slices.BinarySearchFunc(all, k, stmt.Key.Compare); return ok }
	if !slices.IsSortedFunc(all, stmt.Key.Compare) || slices.ContainsFunc(ev.Interest, func(k stmt.Key) bool { return !there(k) }) {
		all = slices.Concat(ev.All, ev.Interest)
		slices.SortFunc(all, stmt.Key.Compare)
		all = slices.Compact(all)
	}
	if d.keys != nil && slices.Equal(all, d.keys) {
		d.keys = all // of several equal lists the last one is kept
		return
	}
	if d.keys == nil {
		d.begun = now
	} else {
		for _, k := range all {
			if !d.has(k) {
				d.late[k] = now
			}
		}
	}
	d.keys = all
	gone := func(k stmt.Key) bool { return !d.has(k) }
	maps.DeleteFunc(d.late, func(k stmt.Key, _ time.Duration) bool { return gone(k) })
	maps.DeleteFunc(d.known, func(k stmt.Key, _ *peer) bool { return gone(k) })
	d.other = slices.DeleteFunc(d.other, gone)
	if d.turn.n != len(all) {
		d.turn = turn{}
	}
}

// touch: p was heard of.
func (d *Detector) touch(out []Effect, now time.Duration, p *peer) []Effect {
	p.status.Contact, d.contact = now, now
	p.failed, p.urged, p.accusers = 0, false, nil
	d.rounds = slices.DeleteFunc(d.rounds, func(r round) bool { return r.peer == p })
	d.close = slices.DeleteFunc(d.close, func(o *peer) bool { return o == p })
	return d.enter(out, now, p, Alive)
}

func (d *Detector) enter(out []Effect, now time.Duration, p *peer, s State) []Effect {
	if p.status.State == s {
		return out
	}
	p.status.State, p.status.Since = s, now
	return append(out, Changed{p.key, p.status})
}
