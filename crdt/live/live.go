package live

import (
	"fmt"
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
	Helpers      int           // peers asked for an indirect ping; default 3
	MaxInterest  int           // peers of the interest set probed per Interval; default 16
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
	}{{&c.DeadRounds, 3}, {&c.DoubtFactor, 3}, {&c.Helpers, 3}, {&c.MaxInterest, 16}} {
		if *f.n <= 0 {
			*f.n = f.v
		}
	}
}

// Event is something that happened: Tick, Peers or Contact.
type Event interface{ event() }

type (
	// Tick lets time pass. Send one four times a second.
	Tick struct{}
	// Peers sets who there is, and of those who matters: see the package
	// documentation. Keys of neither list are forgotten. The detector itself may
	// be among them.
	Peers struct{ All, Interest []stmt.Key }
	// Contact: an authenticated message of any kind came from Key, or a helper
	// says that it answered a ping. Early or late makes no difference.
	Contact struct{ Key stmt.Key }
)

func (Tick) event()    {}
func (Peers) event()   {}
func (Contact) event() {}

// Effect is something for the driver to do: Ping, PingReq or Changed.
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
	// Changed tells of a new state.
	Changed struct {
		Key stmt.Key
		Status
	}
)

func (Ping) effect()    {}
func (PingReq) effect() {}
func (Changed) effect() {}

// Detector is the state machine. It is not safe for concurrent use.
type Detector struct {
	cfg  Config
	self stmt.Key
	rng  *rand.Rand

	peers    []*peer // by key
	interest []*peer // by key
	turn     int     // next in interest
	other    []stmt.Key
	rounds   []round // open ones, oldest first
	last     time.Duration
	next     time.Duration // of the next rounds
	started  bool
}

type peer struct {
	key      stmt.Key
	status   Status
	failed   int           // rounds since the last contact
	probed   time.Duration // start of the last round
	wasAsked bool
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
	return &Detector{cfg: cfg, self: self, rng: rand.New(rand.NewPCG(seed, 0x666f726d))}
}

// Status returns what is held of key; a key that is not among the peers is Dead,
// and self is Alive.
func (d *Detector) Status(key stmt.Key) Status {
	if key == d.self {
		return Status{State: Alive, Since: 0, Contact: d.last}
	}
	if p := d.find(key); p != nil {
		return p.status
	}
	return Status{State: Dead}
}

// Doubting says whether the node currently doubts itself.
func (d *Detector) Doubting() bool { return d.doubts(d.last) }

func (d *Detector) find(key stmt.Key) *peer {
	i, ok := slices.BinarySearchFunc(d.peers, key, func(p *peer, k stmt.Key) int { return p.key.Compare(k) })
	if !ok {
		return nil
	}
	return d.peers[i]
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
			out = d.contact(out, now, p)
		}
	case Tick:
		out = d.expire(out, now)
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
	for _, p := range d.peers {
		if slept {
			p.wasAsked, p.status.Contact = false, 0
			out = d.enter(out, now, p, Alive)
		}
		if p.status.State != Dead {
			p.failed = 0
		}
	}
	return out
}

func (d *Detector) setPeers(now time.Duration, ev Peers) {
	all := slices.Concat(ev.All, ev.Interest)
	slices.SortFunc(all, stmt.Key.Compare)
	all = slices.DeleteFunc(slices.Compact(all), func(k stmt.Key) bool { return k == d.self })
	peers := make([]*peer, 0, len(all))
	for _, k := range all {
		p := d.find(k)
		if p == nil {
			p = &peer{key: k, status: Status{State: Alive, Since: now}}
		}
		peers = append(peers, p)
	}
	d.peers = peers
	d.interest = nil
	for _, p := range peers {
		if slices.Contains(ev.Interest, p.key) {
			d.interest = append(d.interest, p)
		}
	}
	d.rounds = slices.DeleteFunc(d.rounds, func(r round) bool { return d.find(r.peer.key) != r.peer })
	d.other = slices.DeleteFunc(d.other, func(k stmt.Key) bool { return d.find(k) == nil })
}

func (d *Detector) contact(out []Effect, now time.Duration, p *peer) []Effect {
	p.status.Contact, p.failed = now, 0
	d.rounds = slices.DeleteFunc(d.rounds, func(r round) bool { return r.peer == p })
	return d.enter(out, now, p, Alive)
}

func (d *Detector) enter(out []Effect, now time.Duration, p *peer, s State) []Effect {
	if p.status.State == s {
		return out
	}
	p.status.State, p.status.Since = s, now
	return append(out, Changed{p.key, p.status})
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
	}
	d.rounds = open
	need := d.cfg.DeadRounds
	if d.doubts(now) {
		need *= d.cfg.DoubtFactor
	}
	for _, p := range d.peers {
		switch {
		case p.failed >= need:
			out = d.enter(out, now, p, Dead)
		case p.failed > 0 && p.status.State == Alive:
			out = d.enter(out, now, p, Suspect)
		}
	}
	return out
}

// doubts says whether probes of several peers fail and none is answered.
func (d *Detector) doubts(now time.Duration) bool {
	window := d.cfg.Timeout + d.cfg.Interval
	failing := 0
	for _, p := range d.peers {
		if p.status.Contact > 0 && now-p.status.Contact <= window {
			return false
		}
		if p.failed > 0 && p.status.State != Dead {
			failing++
		}
	}
	return failing > 1
}

// helpers draws peers, not dead or suspect, to ask for an indirect ping.
func (d *Detector) helpers(target *peer) []stmt.Key {
	var from []stmt.Key
	for _, p := range d.peers {
		if p != target && p.status.State == Alive {
			from = append(from, p.key)
		}
	}
	d.rng.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	from = from[:min(len(from), d.cfg.Helpers)]
	slices.SortFunc(from, stmt.Key.Compare)
	return from
}

// probe starts this second's rounds.
func (d *Detector) probe(out []Effect, now time.Duration) []Effect {
	begin := func(p *peer) {
		if p.wasAsked && (p.probed == now || (p.status.State == Dead && now-p.probed < d.cfg.DeadInterval)) {
			return
		}
		p.probed, p.wasAsked = now, true
		d.rounds = append(d.rounds, round{peer: p, start: now})
		out = append(out, Ping{p.key})
	}
	suspects := 0
	for _, p := range d.peers {
		if p.status.State == Suspect && suspects < d.cfg.MaxInterest {
			suspects++
			begin(p)
		}
	}
	for range min(len(d.interest), d.cfg.MaxInterest) {
		d.turn = (d.turn + 1) % len(d.interest)
		begin(d.interest[d.turn])
	}
	if p := d.nextOther(); p != nil {
		begin(p)
	}
	return out
}

// nextOther goes through all peers in a random order that is drawn anew each time
// round, so that every peer is probed within a bounded time.
func (d *Detector) nextOther() *peer {
	if len(d.other) == 0 {
		for _, p := range d.peers {
			d.other = append(d.other, p.key)
		}
		d.rng.Shuffle(len(d.other), func(i, j int) { d.other[i], d.other[j] = d.other[j], d.other[i] })
	}
	if len(d.other) == 0 {
		return nil
	}
	k := d.other[0]
	d.other = d.other[1:]
	return d.find(k)
}
