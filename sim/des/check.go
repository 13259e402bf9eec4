package des

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// checks are what is watched at every event, and what was counted.
type checks struct {
	plans    uint64
	rests    uint64 // decisions that need not be made
	keepers  map[keeping]int32
	down     map[int32]time.Duration // since when
	confirms []Confirmation
	// FalseDeaths are nodes that another confirmed dead while they were up and
	// reachable; Takeovers are slots claimed beside a claim of another node, and
	// FalseTakeovers those of them whose holder was up and reachable.
	falseDeaths, takeovers, falseTakeovers int
	usurped                                int
	perNode                                map[int32][]time.Duration
	doubled                                map[string]bool // fenced instances that run twice now
}

// keeping is a slot as nodes with equal knowledge see it.
type keeping struct {
	state, dead uint64
	slot        plan.Slot
}

// Confirmation is a node's finding that another is dead, after it was.
type Confirmation struct {
	By, Of int
	After  time.Duration // since it died
	Ranked bool          // it is one of those that may take over a slot of it
}

func (c *checks) crashed(s *Sim, i int32) {
	if c.down == nil {
		c.down = map[int32]time.Duration{}
	}
	c.down[i] = s.now
}

func (c *checks) started(i int32) { delete(c.down, i) }

// refuting is how long a node that has come back may take to be heard of by those who
// were about to confirm its death.
const refuting = 10 * time.Second

// confirmed notes what a detector found.
func (s *Sim) confirmed(by *node, of stmt.Key) {
	i, c := s.index[of], &s.checks
	if since, down := c.down[i]; down {
		c.confirms = append(c.confirms, Confirmation{int(by.i), int(i), s.now - since, slices.Contains(by.interest, of)})
		return
	}
	o := s.nodes[i]
	up := s.now - max(o.started, o.awake, o.paused)
	if up > refuting && s.net.meets(by.i, i) && !s.clogs.on(i) && !s.clogs.on(by.i) {
		c.falseDeaths++
	}
}

// Confirmations are all so far.
func (s *Sim) Confirmations() []Confirmation { return s.checks.confirms }

// FalseDeaths is how often a node that was up and reachable was confirmed dead.
func (s *Sim) FalseDeaths() int { return s.checks.falseDeaths }

// Takeovers is how many slots were claimed beside the claim of another node, and
// how many of those while that node was up and reachable.
func (s *Sim) Takeovers() (all, wrong int) { return s.checks.takeovers, s.checks.falseTakeovers }

// TakeoverPeak is the most takeovers of one node within a minute.
func (s *Sim) TakeoverPeak() int {
	peak := 0
	for _, ts := range s.checks.perNode { // any order: the highest
		for i, end := range ts {
			n := 0
			for _, t := range ts[:i+1] {
				if end-t < time.Minute {
					n++
				}
			}
			peak = max(peak, n)
		}
	}
	return peak
}

// planSample is every how many decisions Plan is held to be a function, and the same
// without a Brief; in a large swarm it is every so many times that. Without a Brief a
// decision costs what there is of instances and nodes, so that in a very large one
// (wholeNodes) it is seldomer by how many there are.
const (
	planSample = 16
	wholeNodes = 1000
)

// seldom is every how many decisions something is held to be true that costs much.
func (s *Sim) seldom() uint64 {
	if len(s.nodes) < shareFrom {
		return planSample
	}
	return planSample * planSample * uint64(max(1, len(s.nodes)/wholeNodes))
}

// decidesAnew says whether a node is to decide though nothing has changed that concerns
// it. In a small swarm it always is: all that is held of decisions is held more often.
func (s *Sim) decidesAnew() bool {
	s.checks.rests++
	return len(s.nodes) < shareFrom || s.checks.rests%s.seldom() == 0
}

// checkPlan holds a decision to what must be true of every one.
func (s *Sim) checkPlan(n *node, in plan.Input, out plan.Output) {
	c := &s.checks
	if c.plans++; c.plans%s.seldom() == 0 {
		whole := in
		whole.World = n.whole()
		if again := n.broken(whole, plan.Plan(whole)); !samePlan(again, out) {
			s.broke(PlanPure, "%v: Plan is not a function of its input, or another by a Brief", n)
		}
	}
	if out.Wake != 0 && out.Wake <= in.Now {
		s.broke(PlanPure, "%v: wakes at %v, not after %v", n, out.Wake, in.Now)
	}
	if r, t := need(in.World, out.Claims), s.cfg.Node; r.CPUs > t.CPUs*plan.CPUOvercommit || r.Memory > t.Memory || r.Disk > t.Disk {
		s.broke(PromisesFit, "%v: promises %+v of %+v", n, r, t)
	}
	held := map[plan.Slot]bool{}
	for _, cl := range n.view().view.ClaimsBy(n.key) {
		held[plan.Slot{Instance: cl.Instance, Slot: cl.Slot}] = true
	}
	active := map[string]int{}
	knows := n.knows()
	for _, cl := range out.Claims {
		slot := plan.Slot{Instance: cl.Instance, Slot: cl.Slot}
		if cl.Phase == crdt.ClaimDraining || cl.Phase == crdt.ClaimFailed {
			continue
		}
		if active[cl.Instance]++; active[cl.Instance] > 1 {
			s.broke(OneReplica, "%v: holds two replicas of %s", n, cl.Instance)
		}
		if !held[slot] {
			s.taken(n, in.World, cl)
			continue
		}
		if spec, _ := n.view().view.Instance(cl.Instance); len(spec.Voters) > 0 || strings.HasPrefix(cl.Reason, "hands over") {
			continue // by votes, which no view has; or on its way
		}
		knows.slot = slot
		if o, other := c.keepers[knows]; other && o != n.i {
			s.broke(OneKeeper, "%v and %v both keep %s/%d by equal views", n, s.nodes[o], cl.Instance, cl.Slot)
		}
		if c.keepers == nil || len(c.keepers) > 1<<18 {
			c.keepers = map[keeping]int32{}
		}
		c.keepers[knows] = n.i
	}
}

// knows names what n decides on.
func (n *node) knows() keeping {
	h := sha256.New()
	for _, k := range slices.SortedFunc(maps.Keys(n.dead), stmt.Key.Compare) {
		h.Write(k[:])
	}
	var dead uint64
	for _, b := range h.Sum(nil)[:8] {
		dead = dead<<8 | uint64(b)
	}
	return keeping{state: binary.LittleEndian.Uint64(n.h.print[:]), dead: dead}
}

// taken counts a new claim on a slot that another node has a claim on.
func (s *Sim) taken(n *node, w plan.World, cl crdt.Claim) {
	s.usurped(n, cl)
	over, wrong := false, false
	for _, o := range w.Claims[cl.Instance] {
		if o.Slot != cl.Slot || o.Node == n.key || o.Phase == crdt.ClaimDraining || o.Phase == crdt.ClaimFailed {
			continue
		}
		i := s.index[o.Node]
		h := s.nodes[i]
		_, down := s.checks.down[i]
		over = true
		wrong = wrong || !down && !h.draining && s.net.reaches(n.i, i) && s.net.reaches(i, n.i)
	}
	if !over {
		return
	}
	c := &s.checks
	c.takeovers++
	if wrong {
		c.falseTakeovers++
	}
	if c.perNode == nil {
		c.perNode = map[int32][]time.Duration{}
	}
	c.perNode[n.i] = append(c.perNode[n.i], s.now)
}

// wakeful is how long a node must have been at work to be taken for one that
// others had no reason to give up.
const wakeful = 30 * time.Second

// usurped counts a slot that n takes, having slept within the last minute, from a
// node that has served it all the while.
func (s *Sim) usurped(n *node, cl crdt.Claim) {
	if n.woke == 0 || n.bootTime()-n.woke > time.Minute {
		return
	}
	id := plan.VMID(cl.Instance, cl.Slot)
	for _, i := range s.Reachable() {
		o := s.nodes[i]
		v := o.vms[id]
		if o == n || v == nil || !v.run || v.upAt > s.now || v.goneAt != 0 || o.draining || !s.net.reaches(n.i, o.i) || !s.net.reaches(o.i, n.i) {
			continue
		}
		if s.now-max(o.paused, o.started, o.awake) > wakeful {
			s.checks.usurped++
		}
	}
}

// Usurped is how many slots nodes that had just slept took from those who served
// them all the while.
func (s *Sim) Usurped() int { return s.checks.usurped }

// Placement is which nodes run each replica, the machine counting and not the
// daemon.
func (s *Sim) Placement() map[plan.Slot][]int {
	out := map[plan.Slot][]int{}
	for i, n := range s.nodes {
		for _, id := range slices.Sorted(maps.Keys(n.vms)) {
			if v := n.vms[id]; v.run && v.goneAt == 0 && v.upAt <= s.now && (!v.Fenced || n.executes(v)) {
				out[v.Slot] = append(out[v.Slot], i)
			}
		}
	}
	return out
}

// Unserved says of every replica wanted that not exactly one honest node runs
// it, and of every virtual machine that nobody wants there.
func (s *Sim) Unserved() []string { return s.UnservedBut(nil) }

// UnservedBut is Unserved without what some instances are, by ID.
func (s *Sim) UnservedBut(exempt map[string]bool) []string {
	var bad []string
	running := map[plan.Slot][]int{}
	for _, i := range s.Honest() {
		n := s.nodes[i]
		for _, id := range slices.Sorted(maps.Keys(n.vms)) {
			if v := n.vms[id]; v.run && v.upAt <= s.now && (!v.Fenced || n.executes(v)) {
				running[v.Slot] = append(running[v.Slot], i)
			}
		}
	}
	for _, o := range s.owners {
		for _, spec := range o.author.Instances() {
			if exempt[spec.ID] {
				maps.DeleteFunc(running, func(at plan.Slot, _ []int) bool { return at.Instance == spec.ID })
				continue
			}
			for slot := range active(spec) {
				at := plan.Slot{Instance: spec.ID, Slot: slot}
				if len(running[at]) != 1 {
					bad = append(bad, fmt.Sprintf("%.8s/%d runs on %v", spec.ID, slot, running[at]))
				}
				delete(running, at)
			}
		}
	}
	for at, on := range running {
		bad = append(bad, fmt.Sprintf("%.8s/%d, which nobody wants, runs on %v", at.Instance, at.Slot, on))
	}
	slices.Sort(bad)
	return bad
}

// Converged says whether all honest nodes hold the same statements.
func (s *Sim) Converged() bool {
	var first *held
	for _, i := range s.Honest() {
		h := s.nodes[i].h
		if first == nil {
			first = h
		}
		if h.print != first.print {
			return false
		}
	}
	return true
}

// oneOfEach is an honest node for every state that one holds.
func (s *Sim) oneOfEach() (out []*node) {
	seen := map[uint64]bool{}
	for _, i := range s.Honest() {
		if n := s.nodes[i]; !seen[n.h.id] {
			seen[n.h.id] = true
			out = append(out, n)
		}
	}
	return out
}

// CheckEqualViews holds that the views of all honest nodes have equal bytes.
func (s *Sim) CheckEqualViews() {
	var want string
	of := s.oneOfEach()
	for _, n := range of {
		got := Render(n.view().view)
		if want == "" {
			want = got
		}
		if got != want {
			s.broke(ViewsEqual, "views of %v and %v differ", of[0], n)
			return
		}
	}
}

// CheckAcknowledged holds that nothing was lost that an owner was told is safe.
// It is for when all nodes agree.
func (s *Sim) CheckAcknowledged() {
	for _, n := range s.oneOfEach() {
		again := s.pool.anew(n.h.state.Held())
		for _, v := range s.acked {
			st := v.Statement()
			if changed, err := again.ApplyVerified(v, time.Time{}); changed || err != nil && !crdt.Transient(err) {
				s.broke(AckedKept, "%v has lost the acknowledged %s statement %.8s of %.12s (%v)", n, st.Kind, st.ID, st.Author, err)
			}
		}
	}
}

// Acknowledged is how many statements owners were told are safe.
func (s *Sim) Acknowledged() int { return len(s.acked) }

// Render is everything a View says, as bytes.
func Render(v *crdt.View) string {
	var b strings.Builder
	line := func(what string, x any) {
		j, err := json.Marshal(x)
		if err != nil {
			j = []byte(err.Error())
		}
		fmt.Fprintf(&b, "%s %s\n", what, j)
	}
	for _, spec := range v.Instances() {
		line("instance", spec)
		line("claims", v.Claims(spec.ID))
	}
	for _, n := range v.Nodes() {
		line("node", n)
		line("claims", v.ClaimsBy(n.Key))
	}
	for _, k := range v.Members() {
		line("member", []any{k, v.Roles(k), v.Revoked(k), v.OperatorOf(k)})
	}
	line("any owner", v.AnyOwner())
	line("bases", v.Bases())
	return b.String()
}
