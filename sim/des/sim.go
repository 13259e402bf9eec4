package des

import (
	"crypto/ed25519"
	"encoding/binary"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/gossip"
	"github.com/formthefog/formation/sim/regions"
)

// Config of a Sim; zero fields get the defaults.
type Config struct {
	Seed  uint64
	Nodes int
	Net   NetConfig
	// Node is what every node offers.
	Node crdt.Resources
	// Domains is over how many failure domains the nodes are spread; 0: each is
	// its own.
	Domains int
	// Live are the times of the detector.
	Live live.Config
	// SyncInterval is as in crdt.ReplicaConfig.
	SyncInterval      time.Duration
	TakeoverDelay     time.Duration
	Fsync, Boot, Stop Range // how long it takes
	// Drift is by how many millionths at most a clock of time since boot is fast or
	// slow.
	Drift  int64
	Mutant Mutant // "": none
	// Cut is asked between events whether the run is to end now; nil: it is not.
	Cut func() bool
	// Watch is told what happens; nil: nobody.
	Watch Watcher
}

func (c *Config) setDefaults() {
	def := func(r *Range, lo, hi time.Duration) {
		if *r == (Range{}) {
			*r = Range{lo, hi}
		}
	}
	def(&c.Net.Delay, 5*time.Millisecond, 60*time.Millisecond)
	def(&c.Fsync, time.Millisecond, 10*time.Millisecond)
	def(&c.Boot, 2*time.Second, 8*time.Second)
	def(&c.Stop, 500*time.Millisecond, 2*time.Second)
	if c.Net.Jitter == 0 {
		c.Net.Jitter = 0.5
		if c.Net.Regions {
			c.Net.Jitter = regions.Jitter
		}
	}
	if c.SyncInterval == 0 {
		c.SyncInterval = 20 * time.Second
	}
	if c.Node == (crdt.Resources{}) {
		c.Node = crdt.Resources{CPUs: 8, Memory: 16 << 30, Disk: 200 << 30}
	}
}

// Times that nodes have in common with production.
const (
	probeTick    = 250 * time.Millisecond // fogvm/reconcile
	probeTimeout = 2 * time.Second
	planDelay    = 5 * time.Millisecond // a wake-up of the loop, with the work
	refresh      = 15 * time.Second
	groupCommit  = 100 * time.Millisecond // crdt.Replica
	aloneAfter   = 5 * time.Second
	giveUpAfter  = 30 * time.Second
	redial       = 10 * time.Second // p2p finds peers again within about that
	sleepGap     = 5 * time.Second  // fogvm/boottime
)

// Sim is one simulated swarm.
type Sim struct {
	cfg       Config
	network   stmt.NetworkID
	root      stmt.Key
	rootKey   ed25519.PrivateKey
	now       time.Duration
	seq       uint64
	queue     queue
	net       *network
	mesh      *gossip.Mesh
	pool      *pool
	trace     trace
	nodes     []*node
	index     map[stmt.Key]int32
	genesis   []stmt.Verified
	members   map[stmt.ID]stmt.Key // whom those of genesis make a member
	clogs     clogs
	owners    []*owner
	acked     []stmt.Verified
	brought   []*brought
	ranks     plan.Ranks
	listings  []listing
	checks    checks
	contracts bool     // an instance has another contract than keep
	fenced    []string // instances, by ID
	watch     *watching
	firsts    uint64
	resting   bool          // owners change nothing any more
	whole     time.Duration // since when nothing is split
	stopped   bool
	fetches   fetches
	weights   map[string]uint64 // of packs, in bytes, that somebody says
	versions  versions

	// Bad are the invariants that did not hold, the first of them.
	Bad []Broken
	// Seen counts what happened, by name: rare states that a scenario wants to
	// have reached.
	Seen map[string]int
}

// wall is when virtual time begins on clocks that only people read.
const wall = 1_767_225_600

// New makes a swarm of cfg.Nodes that know each other. They start with Boot.
func New(cfg Config) *Sim {
	cfg.setDefaults()
	s := &Sim{
		cfg: cfg, index: map[stmt.Key]int32{}, members: map[stmt.ID]stmt.Key{}, trace: newTrace(), Seen: map[string]int{},
		net: newNetwork(cfg.Net, cfg.Seed), watch: newWatching(cfg.Watch),
	}
	s.net.ownDice = cfg.Mutant == OwnDice
	s.rootKey = s.key("root", 0)
	s.root = stmt.KeyOf(s.rootKey)
	s.network = stmt.NewNetworkID("sim", s.root)
	s.pool = newPool(s)
	s.mesh = gossip.New(gossip.Production(), carrier{s}, func(a, b int32) float64 { return gossip.Nearness(s.net.least(a, b)) })
	for range cfg.Nodes {
		s.add()
	}
	return s
}

func (s *Sim) key(what string, i int) ed25519.PrivateKey {
	seed := make([]byte, 0, ed25519.SeedSize)
	h := chance.Draw(s.cfg.Seed, useKey, uint64(len(what)), uint64(what[0]), uint64(i))
	for w := range uint64(4) {
		seed = binary.LittleEndian.AppendUint64(seed, chance.Mix(h, w))
	}
	return ed25519.NewKeyFromSeed(seed)
}

// Now is the virtual time.
func (s *Sim) Now() time.Duration { return s.now }

// Hash names everything that happened so far.
func (s *Sim) Hash() string { return s.trace.sum() }

// Events is how many there were.
func (s *Sim) Events() uint64 { return s.trace.events }

// Nodes is how many there are, up or not.
func (s *Sim) Nodes() int { return len(s.nodes) }

// Traffic is what all nodes together have sent.
func (s *Sim) Traffic() [Classes]Traffic { return s.net.total }

// Firsts is how many messages of statements said something new to who received them.
func (s *Sim) Firsts() uint64 { return s.firsts }

// Forks is how often nodes with one state parted, as a measure of work.
func (s *Sim) Forks() int { return s.pool.forks }

func (s *Sim) push(e event) {
	if e.at < s.now {
		s.violate("an event in the past: %v", e.kind)
	}
	s.seq++
	e.seq = s.seq
	s.queue.push(e)
}

// Do has f happen after d.
func (s *Sim) Do(d time.Duration, f func()) {
	s.push(event{at: s.now + d, node: -1, kind: evDo, load: f})
}

// askCut is how many events lie between two times that Cut is asked.
const askCut = 64

// Run lets d pass, or less when it is cut.
func (s *Sim) Run(d time.Duration) {
	end := s.now + d
	s.look()
	for k := 0; ; k++ {
		if at, more := s.queue.next(); !more || at > end {
			break
		}
		if k%askCut == 0 && s.Stopped() {
			return
		}
		s.next()
	}
	s.now = end
	s.look()
	s.settleSpread()
}

// Stopped says whether Cut has ended the run: nothing happens any more.
func (s *Sim) Stopped() bool {
	s.stopped = s.stopped || s.cfg.Cut != nil && s.cfg.Cut()
	return s.stopped
}

// RunUntil lets time pass until ok, which it asks every step, and says whether
// that was within limit.
func (s *Sim) RunUntil(limit, step time.Duration, ok func() bool) (time.Duration, bool) {
	began := s.now
	for !ok() {
		if s.now-began >= limit || s.stopped {
			return s.now - began, false
		}
		s.Run(step)
	}
	return s.now - began, true
}

func (s *Sim) next() {
	e := s.queue.pop()
	s.now = e.at
	if e.node < 0 {
		s.trace.event(&e)
		e.load.(func())()
		s.checkFences()
		s.look()
		return
	}
	n := s.nodes[e.node]
	defer s.checkFences()
	switch {
	case e.kind == evResume:
	case e.kind.isMessage():
		if s.clogs.hold(&e) || !n.up || n.asleep(s.now) || !s.net.reaches(e.from, e.node) {
			return
		}
	case !n.up || e.life != n.life:
		return
	}
	if n.paused > s.now {
		e.at = n.paused
		s.push(e)
		return
	}
	s.trace.event(&e)
	n.handle(&e)
	if s.watch != nil && !e.kind.isMessage() {
		s.lookAt(n)
	}
}
