package des

import (
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/gossip"
)

// node is one machine and the daemon on it.
type node struct {
	sim    *Sim
	i      int32
	key    stmt.Key
	priv   ed25519.PrivateKey
	rng    *rand.Rand
	links  []int32 // whom it has dialled, and who it, at some time
	former []int32 // whose connections to it have not ended since its daemon did

	// The machine.
	disk  disk
	vms   map[string]*vm
	packs map[string]*pack
	// received are the packs that ever came to it whole.
	received map[string]bool
	clock    clock
	boots    int           // raised when the machine goes down
	down     bool          // the machine is
	awake    time.Duration // since when the machine is, in virtual time

	// The daemon, while it is up.
	up        bool
	life      uint32        // counts its starts
	started   time.Duration // of this life
	paused    time.Duration // it does nothing before that
	sleeps    bool          // paused with the machine: messages are lost
	h         *held
	regs      *crdt.Registers
	detect    *live.Detector
	dead      map[stmt.Key]time.Duration
	deadVer   uint64 // raised when dead changes
	interest  []stmt.Key
	told      *roster  // the nodes that the detector has, or will
	wanted    []string // packs to fetch
	unwatched bool     // it does not have the interest and the nodes yet
	ticks     int
	vias      map[int64]via
	lastVia   int64
	seen      knowledge // what the last decision was made on, or would have been
	did       *decision // what was decided then; nil: nothing yet
	ready     bool      // synchronised once
	planning  bool      // an evPlan is due
	seeking   bool      // a further peer is looked for
	busy      bool      // own statements are being written
	again     bool      // plan after that
	timers    plan.Timers
	wake      time.Duration
	draining  bool
	absent    bool          // it has not joined yet
	gone      bool          // for good
	later     bool          // the daemon is of the later version
	stale     *worldView    // of a mutant
	jumped    time.Duration // what the clock that people read has jumped
	liar      bool          // and so decides nothing
	stepped   time.Duration // when the detector last was, by the machine's clock
	acted     time.Duration // when the daemon last did anything, by that clock
	woke      time.Duration // when it went on after it last slept; 0: it has not
	fresh     time.Duration // what others held then is held, by that clock
	lonely    time.Duration // since when it has looked for somebody to synchronise with
	seenVer   uint64        // raised when a peer is seen for the first time
	leases
}

func (s *Sim) add() *node {
	i := int32(len(s.nodes))
	n := &node{
		sim: s, i: i, priv: s.key("node", int(i)), rng: chance.Stream(s.cfg.Seed, useNode, uint64(i)),
		vms: map[string]*vm{}, packs: map[string]*pack{}, received: map[string]bool{},
	}
	n.key = stmt.KeyOf(n.priv)
	n.clock = clock{shows: longUp, ppm: s.drift(i)}
	s.index[n.key] = i
	s.nodes = append(s.nodes, n)
	s.net.add()
	s.mesh.Add(chance.Stream(s.cfg.Seed, useRouter, uint64(i)))
	n.draws()
	return n
}

func (n *node) asleep(now time.Duration) bool { return n.sleeps && n.paused > now }

// after has something happen to n in this life.
func (n *node) after(d time.Duration, k kind, a, b int64, load any) {
	if n.sim.cfg.Mutant == IntoThePast && k == evSync {
		d = -time.Nanosecond
	}
	n.sim.push(event{at: n.sim.now + d, node: n.i, kind: k, life: n.life, a: a, b: b, load: load})
}

// start begins a life of the daemon from what is on disk.
func (n *node) start(ready bool) {
	s := n.sim
	n.life++
	n.up, n.started, n.paused, n.sleeps = true, s.now, 0, false
	n.disk.tail = n.disk.tail[:n.disk.synced:n.disk.synced]
	n.disk.flush = false
	if n.regs == nil {
		n.regs = n.registers(n.disk.epoch)
	}
	n.detect = live.New(n.key, s.liveConfig(), chance.Draw(s.cfg.Seed, useDetector, uint64(n.i), uint64(n.life)))
	n.dead, n.deadVer, n.interest = map[stmt.Key]time.Duration{}, n.deadVer+1, nil
	n.ticks, n.vias, n.unwatched, n.seen, n.did = 0, map[int64]via{}, true, knowledge{}, nil
	n.ready, n.seeking, n.planning, n.busy, n.again, n.wake = ready, false, false, false, false, 0
	n.stepped, n.acted, n.woke, n.fresh, n.lonely = n.bootTime(), n.bootTime(), 0, 0, s.now
	n.vote()
	n.timers = plan.Remember(n.world(), n.key, n.vmStatus())
	n.after(time.Duration(n.rng.Int64N(int64(probeTick))), evTick, 0, 0, nil)
	n.after(time.Duration(n.rng.Int64N(int64(s.cfg.SyncInterval))), evSync, -1, 0, nil)
	n.after(time.Duration(n.rng.Int64N(int64(refresh))), evRefresh, 0, 0, nil)
	n.plan()
	n.appear(ready)
	if !ready {
		n.meet()
	}
}

// firstMeets is with how many at once a node compares what it holds.
const firstMeets = 8

// meet has n compare what it holds with some of those it is connected to, or will be.
func (n *node) meet() {
	for _, o := range n.links[:min(firstMeets, len(n.links))] {
		n.after(Range{200 * time.Millisecond, time.Second}.draw(n.rng), evSync, int64(o), 0, nil)
	}
}

// noticeSleep notices that the daemon slept: then nothing that it knew counts until its
// state is synchronised anew (fogvm/reconcile).
func (n *node) noticeSleep() {
	now := n.bootTime()
	slept := now-n.acted > sleepGap
	n.acted = now
	if !slept {
		return
	}
	n.sim.Seen["a sleep was noticed"]++
	n.woke = now
	if n.sim.cfg.Mutant == NoResync {
		return
	}
	n.timers = n.timers.Awake()
	clear(n.dead)
	n.deadVer, n.ready, n.lonely, n.seen, n.did = n.deadVer+1, false, n.sim.now, knowledge{}, nil
	n.meet()
	n.plan()
}

// stop ends the daemon; machine says whether the machine went down with it, and
// so its virtual machines.
func (n *node) stop(machine bool) {
	n.stopFetching()
	n.up = false
	n.vanish()
	n.sim.pool.release(n.h)
	n.h, n.regs = nil, nil
	n.sim.unanswered(n.i)
	if machine {
		for _, v := range n.vms { // any order: all of them
			v.run, v.downAt, v.until = false, 0, 0
		}
		n.boots, n.down = n.boots+1, true
	}
}

func (n *node) handle(e *event) {
	n.noticeSleep()
	switch e.kind {
	case evTick:
		n.tick()
	case evPlan:
		n.decide()
	case evCommitted:
		n.committed(e.load.(*commit))
	case evFlush:
		if n.disk.flush = false; !n.fails() {
			n.disk.synced = len(n.disk.tail)
		}
	case evSync:
		n.synchronise(int32(e.a))
	case evWake:
		if n.wake == e.at {
			n.plan()
		}
	case evRefresh:
		n.after(refresh, evRefresh, 0, 0, nil)
		n.plan()
	case evVM:
		n.plan()
	case evPack:
		n.fetchMore()
		n.plan()
	case evViaEnd:
		n.viaEnd(e.a)
	case evResume:
	case evExtend:
		n.extend(e.load.(plan.Extension))
	case evKept:
		n.keptVotes(e.load.(*record))
	case evAsk:
		n.judge(e)
	case evVote:
		n.voted(e.load.(*vote))
	case evGossip:
		n.gossip(e)
	case evHint, evControl, evBeat:
		n.sim.mesh.Handle(n.sim.now, e.load.(gossip.Packet))
	case evDial:
		n.dial(int32(e.a), e.b)
	case evGive:
		n.give(e)
	case evPing, evEcho, evVia, evViaEcho:
		n.probe(e)
	}
}

// plan has the loop look soon.
func (n *node) plan() {
	if n.busy {
		n.again = true
		return
	}
	if !n.planning {
		n.planning = true
		n.after(planDelay, evPlan, 0, 0, nil)
	}
}

// commit is own statements on their way to disk, and what waits for that.
type commit struct {
	news []stmt.Verified
	upTo int
	then func()
}

// commit applies statements that this node made or was brought, writes them to
// disk, publishes what was news and then goes on. The errors are those of vs that were
// not merged.
func (n *node) commit(vs []stmt.Verified, then func()) error {
	for _, v := range vs {
		n.sim.pool.learn(v)
	}
	out := n.merge(newBatch(vs))
	for i, err := range out.errs {
		if err != nil && !crdt.Transient(err) {
			n.sim.broke(Believed, "%v: its own %s statement is refused: %v", n, vs[i].Statement().Kind, err)
		}
	}
	if n.sim.cfg.Mutant == AckBeforeSync && then != nil {
		then()
		then = nil
	}
	n.disk.epoch = max(n.disk.epoch, n.regs.Epoch()) // on disk before the first statement of it
	c := &commit{news: out.news, upTo: len(n.disk.tail), then: then}
	n.after(n.fsync(), evCommitted, int64(c.upTo), int64(len(vs)), c)
	return errors.Join(out.errs...)
}

func (n *node) committed(c *commit) {
	if n.fails() {
		return
	}
	n.disk.synced = max(n.disk.synced, c.upTo)
	n.published(c.news)
	n.sim.begin(n, c.news)
	for vs := range slices.Chunk(c.news, gossipBatch) {
		n.publish(newBatch(vs))
	}
	if c.then != nil {
		c.then()
	}
}

// merge applies a batch and writes down what was news.
func (n *node) merge(b batch) outcome {
	before := n.h.id
	b = n.known(b)
	h, out := n.sim.pool.apply(n.h, b)
	n.h = h
	n.sim.holds(n, b, out.errs)
	n.disk.tail = append(n.disk.tail, out.news...)
	for _, v := range out.news {
		id := v.Statement().ID
		n.sim.trace.note(id[:8])
	}
	if h.id != before {
		n.plan()
	}
	return out
}

// receive merges what a peer sent.
func (n *node) receive(b batch) outcome {
	out := n.merge(b)
	if len(out.news) > 0 && !n.disk.flush {
		n.disk.flush = true
		n.after(groupCommit, evFlush, 0, 0, nil)
	}
	for i, v := range b.vs {
		if v.Statement().Author != n.key || n.liar {
			continue
		}
		vs, err := n.regs.Notice(n.h.state, v, out.errs[i])
		if err != nil {
			n.sim.violate("%v: registers: %v", n, err)
		}
		if len(vs) > 0 {
			n.sim.Seen["a node found newer registers of itself"]++
			n.commit(vs, nil)
		}
	}
	return out
}

func (n *node) String() string { return "n" + strconv.Itoa(int(n.i)) }
