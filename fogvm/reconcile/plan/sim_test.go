package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// cluster runs one Plan per node over simulated machines: registers that spread
// to whoever is reachable, a liveness verdict after detect of silence, packs
// that take fetchTime and VMs that take bootTime. Everything it does that a
// reader would want to know goes to the transcript.
type cluster struct {
	now   time.Duration
	tick  time.Duration
	steps int
	nodes []*simNode
	specs map[string]crdt.Spec
	sizes map[string]map[uint64]crdt.Resources // of instances, by generation
	log   strings.Builder
	bad   []string          // violated safety invariants
	fails map[string]bool   // packs whose VMs fail
	hangs map[int]bool      // nodes whose VMs hang while they boot
	noted map[string]string // last line of each subject, to log changes only

	hysteresis time.Duration    // as Input has it
	ranks      Ranks            // of all nodes
	quota      *stmt.Quota      // of the owner of everything
	bytes      map[string]int64 // of packs; others are not known
	jumps      time.Duration    // how far wall clocks are from the truth, either way
	booths     map[int]*booth   // of nodes, by ID: leases
}

const (
	detect    = 3 * time.Second
	fetchTime = time.Second
	bootTime  = 4 * time.Second
)

// epoch is when the machines started, and wallEpoch what clocks showed then.
const epoch = time.Hour

var wallEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

type simNode struct {
	id       int
	key      stmt.Key
	reg      crdt.Node
	up       bool // the daemon runs
	side     int  // nodes of one side reach each other
	claims   map[Slot]crdt.Claim
	seen     map[stmt.Key]map[Slot]crdt.Claim
	heard    map[stmt.Key]time.Duration
	vms      map[string]*simVM
	packs    map[string]time.Duration // complete from then on
	timers   Timers
	accepted func(stmt.Key) bool
}

type simVM struct {
	incarnation string
	restart     uint64
	run         bool
	at          time.Duration // booted or stopped since
	pack        string
	boots       int
	fenced      bool
	size        crdt.Resources
	wall        time.Time // what the clock of its host showed then
}

func newCluster(n int) *cluster {
	c := &cluster{tick: 250 * time.Millisecond, specs: map[string]crdt.Spec{}, sizes: map[string]map[uint64]crdt.Resources{}, fails: map[string]bool{}, hangs: map[int]bool{}, noted: map[string]string{}}
	for i := range n {
		c.add(i + 1)
	}
	return c
}

func (c *cluster) add(id int) *simNode {
	n := &simNode{
		id: id, key: stmt.Key{byte(id)}, up: true, claims: map[Slot]crdt.Claim{},
		seen: map[stmt.Key]map[Slot]crdt.Claim{}, heard: map[stmt.Key]time.Duration{},
		vms: map[string]*simVM{}, packs: map[string]time.Duration{},
	}
	n.reg = crdt.Node{Key: n.key, Total: crdt.Resources{CPUs: 4, Memory: 4 << 30, Disk: 100 << 30}}
	c.nodes = append(c.nodes, n)
	return n
}

// wall is what a node's clock on the wall shows.
func (c *cluster) wall(n *simNode) time.Time {
	jump := c.jumps
	if (c.steps+n.id)%2 == 0 {
		jump = -jump
	}
	return wallEpoch.Add(c.now + jump)
}

func (c *cluster) node(id int) *simNode { return c.nodes[id-1] }

func (c *cluster) name(k stmt.Key) string { return fmt.Sprintf("n%d", k[0]) }

func (c *cluster) logf(format string, args ...any) {
	fmt.Fprintf(&c.log, "%7.2fs  %s\n", c.now.Seconds(), fmt.Sprintf(format, args...))
}

func (c *cluster) ship(id string, replicas int, pack string) {
	s := c.specs[id]
	s.ID, s.Name, s.Replicas, s.Pack, s.Phase = id, id, replicas, pack, crdt.PhaseRunning
	s.VCPU, s.MemoryBytes, s.DiskBytes, s.Owner = 1, 512<<20, 5<<30, stmt.Key{99}
	c.sign(s)
	c.logf("owner ships %s: %d × %s", id, replicas, pack)
}

func (c *cluster) change(id, what string, f func(*crdt.Spec)) {
	s, ok := c.specs[id]
	if !ok {
		return
	}
	f(&s)
	c.sign(s)
	c.logf("owner: %s %s", id, what)
}

// sign has a spec known to everybody as the next generation.
func (c *cluster) sign(s crdt.Spec) {
	s.Generation++
	c.specs[s.ID] = s
	if c.sizes[s.ID] == nil {
		c.sizes[s.ID] = map[uint64]crdt.Resources{}
	}
	c.sizes[s.ID][s.Generation] = place.Need(s)
}

func (c *cluster) remove(id string) {
	delete(c.specs, id)
	c.logf("owner deletes %s", id)
}

// kill ends the daemon; vms says whether its machines die with it.
func (c *cluster) kill(id int, vms bool) {
	n := c.node(id)
	if !n.up {
		return
	}
	n.up = false
	if vms {
		for _, vm := range n.vms {
			vm.run = false
		}
	}
	c.logf("n%d dies (VMs die: %v)", id, vms)
}

// start brings a daemon back with its disk: its own claims, what it had heard,
// and its VMs, those that died included.
func (c *cluster) start(id int) {
	n := c.node(id)
	if n.up {
		return
	}
	n.up, n.timers = true, Timers{}
	for k := range n.heard {
		n.heard[k] = c.now
	}
	c.logf("n%d starts", id)
}

func (c *cluster) split(sides ...[]int) {
	for i, side := range sides {
		for _, id := range side {
			c.node(id).side = i
		}
	}
	c.logf("partition %v", sides)
}

func (c *cluster) heal() {
	for _, n := range c.nodes {
		n.side = 0
	}
	c.logf("partition heals")
}

func (c *cluster) reach(a, b *simNode) bool { return a.up && b.up && a.side == b.side }

// run lets d pass.
func (c *cluster) run(d time.Duration) {
	for end := c.now + d; c.now < end; {
		c.now += c.tick
		c.spread()
		for _, n := range c.nodes {
			if n.up {
				c.step(n)
			}
		}
		c.check()
	}
}

// spread gives everyone the registers of whom it reaches.
func (c *cluster) spread() {
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if a != b && c.reach(a, b) {
				a.seen[b.key] = maps.Clone(b.claims)
				a.heard[b.key] = c.now
				// Registers of third nodes travel through b.
				for k, m := range b.seen {
					if k != a.key && b.heard[k] > a.heard[k] && a.seen[k] == nil {
						a.seen[k] = maps.Clone(m)
					}
				}
			}
		}
	}
}

func (c *cluster) world(n *simNode) World {
	w := World{Claims: map[string][]crdt.Claim{}, Dead: map[stmt.Key]time.Duration{}, Seen: map[stmt.Key]bool{n.key: true}}
	w.MayRun = func(s *crdt.Spec, k stmt.Key) bool {
		return len(s.Operators) == 0 || slices.Contains(s.Operators, k)
	}
	w.Ranks = &c.ranks
	w.Quota = func(stmt.Key) (stmt.Quota, bool) {
		if c.quota == nil {
			return stmt.Quota{}, false
		}
		return *c.quota, true
	}
	for _, id := range slices.Sorted(maps.Keys(c.specs)) {
		w.Instances = append(w.Instances, c.specs[id])
	}
	for _, o := range c.nodes {
		w.Nodes = append(w.Nodes, o.reg)
		claims := n.seen[o.key]
		if o == n {
			claims = n.claims
		} else if silent := c.now - n.heard[o.key]; silent >= detect {
			w.Dead[o.key] = epoch + n.heard[o.key] + detect
		} else {
			w.Seen[o.key] = n.heard[o.key] > 0
		}
		for _, cl := range claims {
			w.Claims[cl.Instance] = append(w.Claims[cl.Instance], cl)
		}
	}
	for _, cs := range w.Claims {
		slices.SortFunc(cs, func(a, b crdt.Claim) int { return cmp.Or(cmp.Compare(a.Slot, b.Slot), a.Node.Compare(b.Node)) })
	}
	return w
}

func (c *cluster) status(n *simNode) map[string]VMStatus {
	out := map[string]VMStatus{}
	for id, vm := range n.vms {
		s := VMStatus{
			Incarnation: vm.incarnation, Restart: vm.restart, Phase: VMStopped, Accel: "fake",
			StartedAt: vm.wall.Unix(),
		}
		switch {
		case vm.run && c.fails[vm.pack]:
			s.Phase, s.Reason = VMFailed, "exit code 1"
		case vm.run && c.hangs[n.id]:
			s.Phase = VMLaunching
		case vm.run && !c.mayRun(n, id, vm):
			s.Phase, s.Booted, s.Reason = VMUnhealthy, true, "paused"
		case vm.run && c.now >= vm.at+bootTime:
			s.Booted = true
			s.Phase, s.Ready, s.ReadyAt = VMRunning, true, int64((vm.at+bootTime)/time.Second)
		case vm.run:
			s.Phase = VMLaunching
		}
		s.Fenced, s.Size = vm.fenced, vm.size
		out[id] = s
	}
	return out
}

func (c *cluster) step(n *simNode) {
	packs := map[string]PackStatus{}
	for p, at := range n.packs {
		packs[p] = PackStatus{State: Fetching, Bytes: c.bytes[p]}
		if c.now >= at {
			packs[p] = PackStatus{State: Complete, Bytes: c.bytes[p]}
		}
	}
	in := Input{
		Leases: c.leases(n),
		Now:    epoch + c.now, Self: n.key, World: c.world(n), VMs: c.status(n), Packs: packs,
		Timers: n.timers, Accepts: n.accepted, Hysteresis: c.hysteresis,
	}
	out := Plan(in)
	if c.steps++; c.steps%16 == 0 {
		if again := Plan(in); fmt.Sprint(again) != fmt.Sprint(out) {
			c.violate("n%d: Plan is not a function of its input", n.id)
		}
	}
	if c.steps%8 == 3 {
		c.checkBrief(n, in, out)
	}
	if out.Wake != 0 && out.Wake <= in.Now {
		c.violate("n%d: wakes at %v, not after %v", n.id, out.Wake, in.Now)
	}
	n.timers = out.Timers
	for _, p := range out.Fetch {
		if _, ok := n.packs[p]; !ok {
			n.packs[p] = c.now + fetchTime
		}
	}
	for p := range n.packs {
		if !slices.Contains(out.Keep, p) {
			delete(n.packs, p)
		}
	}
	c.syncVMs(n, out.VMs)
	n.claims = map[Slot]crdt.Claim{}
	for _, cl := range out.Claims {
		n.claims[Slot{cl.Instance, cl.Slot}] = cl
	}
	c.lease(n, out.Leases)
	c.note(n)
}

// checkBrief holds that what a Brief leaves out decides nothing: of the node itself and
// of what it would know if it had confirmed others dead.
func (c *cluster) checkBrief(n *simNode, in Input, out Output) {
	again := in
	again.World = again.World.Briefed(World{})
	if got := Plan(again); fmt.Sprint(got) != fmt.Sprint(out) {
		c.violate("n%d: by a Brief it decides %v, and not %v", n.id, got, out)
	}
	if got, want := Interest(again.World, n.key), Interest(in.World, n.key); !slices.Equal(got, want) {
		c.violate("n%d: by a Brief its interest is %v, and not %v", n.id, got, want)
	}
	if got, want := again.World.Own(n.key), in.World.Own(n.key); !slices.EqualFunc(got, want, func(a, b crdt.Claim) bool { return a.Instance == b.Instance && a.Slot == b.Slot }) {
		c.violate("n%d: by a Brief its claims are %v, and not %v", n.id, got, want)
	}
	if got, want := Isolated(again.World, n.key, in.VMs), Isolated(in.World, n.key, in.VMs); !slices.EqualFunc(got, want, func(a, b VM) bool { return a == b }) {
		c.violate("n%d: by a Brief it leaves %v running when it is alone, and not %v", n.id, got, want)
	}
}

func (c *cluster) syncVMs(n *simNode, want []VM) {
	listed := map[string]bool{}
	for _, w := range want {
		listed[w.ID] = true
		vm := n.vms[w.ID]
		switch {
		case vm == nil || vm.incarnation != w.Incarnation:
			if w.Keep {
				c.violate("n%d: keeps %s, which is not there", n.id, w.ID)
			}
			n.vms[w.ID] = &simVM{
				incarnation: w.Incarnation, restart: w.Restart, run: w.Run, at: c.now, pack: w.Pack, boots: 1, wall: c.wall(n), fenced: w.Fenced,
				size: place.Need(c.specs[w.Instance]),
			}
		case vm.restart != w.Restart || vm.run != w.Run:
			vm.restart, vm.run, vm.at, vm.wall = w.Restart, w.Run, c.now, c.wall(n)
			vm.boots++
			if !w.Keep {
				vm.size = place.Need(c.specs[w.Instance])
			}
			vm.fenced = w.Fenced || w.Keep && vm.fenced
		}
	}
	for id := range n.vms {
		if !listed[id] {
			delete(n.vms, id)
		}
	}
}

// note logs what changed in a node's claims.
func (c *cluster) note(n *simNode) {
	now := map[string]string{}
	for s, cl := range n.claims {
		line := fmt.Sprintf("%s gen=%d pack=%s", cl.Phase, cl.Generation, cl.Pack)
		if cl.Ready {
			line += " ready"
		}
		if cl.Reason != "" {
			reason := cl.Reason
			for _, o := range c.nodes {
				reason = strings.ReplaceAll(reason, o.key.String(), c.name(o.key))
			}
			line += " (" + reason + ")"
		}
		now[fmt.Sprintf("n%d %s/%d", n.id, s.Instance, s.Slot)] = line
	}
	prefix := fmt.Sprintf("n%d ", n.id)
	for _, k := range slices.Sorted(maps.Keys(c.noted)) {
		if _, still := now[k]; !still && strings.HasPrefix(k, prefix) {
			c.logf("%s gone", k)
			delete(c.noted, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if c.noted[k] != now[k] {
			c.logf("%s %s", k, now[k])
			c.noted[k] = now[k]
		}
	}
}

func (c *cluster) violate(format string, args ...any) {
	c.bad = append(c.bad, fmt.Sprintf("%v: ", c.now)+fmt.Sprintf(format, args...))
}

// check holds what is true at every moment.
func (c *cluster) check() {
	for _, n := range c.nodes {
		active := map[string]int{}
		for s, cl := range n.claims {
			if cl.Phase != crdt.ClaimDraining {
				active[s.Instance]++
			}
		}
		for id, k := range active {
			if k > 1 {
				c.violate("n%d holds %d replicas of %s", n.id, k, id)
			}
		}
	}
}

// settled checks what must be true once nothing has changed for long enough:
// every slot served by exactly one node, nothing else left anywhere.
func (c *cluster) settled() []string {
	var bad []string
	slots := map[Slot][]int{}
	vms, alive := 0, 0
	for _, n := range c.nodes {
		if !n.up {
			continue
		}
		if !n.reg.Draining {
			alive++
		}
		vms += len(n.vms)
		for s, cl := range n.claims {
			if want := c.specs[s.Instance].Phase == crdt.PhaseRunning; cl.Ready == want {
				slots[s] = append(slots[s], n.id)
			} else {
				bad = append(bad, fmt.Sprintf("n%d %v is %s", n.id, s, cl.Phase))
			}
			if cl.SpecGeneration != c.specs[s.Instance].Generation && cl.Ready {
				bad = append(bad, fmt.Sprintf("n%d %v serves generation %d", n.id, s, cl.SpecGeneration))
			}
		}
	}
	want := 0
	for id, s := range c.specs {
		if s.Phase == crdt.PhaseStopped {
			continue
		}
		s = *active(&s)
		served := 0
		for slot := range s.Replicas {
			if k := len(slots[Slot{id, slot}]); k > 1 {
				bad = append(bad, fmt.Sprintf("%s/%d is served by n%v", id, slot, slots[Slot{id, slot}]))
			} else {
				served += k
			}
		}
		if served != min(s.Replicas, alive) {
			bad = append(bad, fmt.Sprintf("%s has %d of %d replicas on %d nodes", id, served, s.Replicas, alive))
		}
		want += served
	}
	if len(c.specs) > 0 && vms != want {
		for _, s := range c.specs {
			if s.Phase == crdt.PhaseStopped {
				return bad // its disks are kept as VMs
			}
		}
		bad = append(bad, fmt.Sprintf("%d VMs for %d replicas", vms, want))
	}
	return bad
}
