package des

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
)

// knowledge is what a decision depends on beside the time.
type knowledge struct {
	state, dead, machine, seen, leases uint64
	ready                              bool
	concern                            plan.Stamp // what of the state concerns the node; zero: not known
}

// likens says whether nothing differs that concerns the node.
func (k knowledge) likens(o knowledge) bool {
	if k.concern != (plan.Stamp{}) {
		o.state = k.state
	}
	return k == o
}

// decision is one that was made, and what a node had been told of its leases: why it
// has none changes without notice.
type decision struct {
	plan.Output
	leases map[string]plan.LeaseStatus
}

// vm is a virtual machine, which outlives the daemon.
type vm struct {
	plan.VM
	owner   stmt.Key // whose instance it was defined for
	run     bool
	started time.Duration
	upAt    time.Duration // ready from then on, while it runs
	downAt  time.Duration // it has been told to stop, and has stopped then
	goneAt  time.Duration // 0: it stays
	until   time.Duration // by its host's clock: its keeper pauses it then, if it is fenced
	pausing time.Duration // how long the keeper takes for that
}

// never is after the end of all runs.
const never = 1 << 62

// decide is one step of the reconciler's loop.
func (n *node) decide() {
	n.planning = false
	if n.busy {
		n.again = true
		return
	}
	if n.settleMachine(); n.liar {
		return
	}
	in := n.input()
	now, waits := n.knowledge(&in), n.wake == 0 || n.sim.now < n.wake
	if waits && now == n.seen {
		return // equal input, and before Wake: equal output, which checks hold Plan to
	}
	same := waits && now.likens(n.seen)
	n.look(in.World, now)
	if same && !n.sim.decidesAnew() {
		return
	}
	vs, err := n.regs.Node(n.h.state, n.register())
	if err != nil {
		n.sim.violate("%v: node register: %v", n, err)
	}
	if !n.ready {
		if len(vs) > 0 {
			n.write(vs, nil)
		}
		if want := plan.Isolated(in.World, n.key, in.VMs); len(want) > 0 {
			n.syncVMs(want)
		}
		return
	}
	in.Now, in.Packs, in.Leases = n.bootTime(), n.packStatus(), n.tenant.Status(n.bootTime())
	if n.fresh < n.woke {
		n.sim.broke(Resynced, "%v: decides by what it knew before it slept", n)
	}
	out := n.broken(in, plan.Plan(in))
	n.sim.checkPlan(n, in, out)
	if d := n.did; same && d != nil && maps.Equal(d.leases, in.Leases) && !sameDeeds(d.Output, out) {
		n.sim.broke(PlanPure, "%v: decides otherwise when nothing has changed that concerns it", n)
	}
	n.did = &decision{out, in.Leases}
	n.timers = out.Timers
	n.setWake(out.Wake)
	n.fetch(out.Fetch, out.Keep)
	claims, err := n.regs.Claims(n.h.state, out.Claims)
	if err != nil {
		n.sim.violate("%v: claims: %v", n, err)
	}
	if vs = append(vs, claims...); len(vs) > 0 {
		n.write(vs, &out)
		return
	}
	n.carryOut(&out)
}

// carryOut does what needs the claims to be published.
func (n *node) carryOut(out *plan.Output) {
	n.tenant.Want(out.Leases)
	n.renew()
	n.syncVMs(out.VMs)
}

// input is what n decides on, but for what it alone has.
func (n *node) input() plan.Input {
	return plan.Input{Self: n.key, World: n.world(), VMs: n.vmStatus(), TakeoverDelay: n.sim.takeoverDelay(), Timers: n.timers}
}

func (n *node) knowledge(in *plan.Input) knowledge {
	concern, _ := in.Stamp()
	return knowledge{n.h.id, n.deadVer, n.machineState(), n.seenVer, n.leases.ver, n.ready, concern}
}

// look has the detector watch whom now says, and remembers it as seen.
func (n *node) look(w plan.World, now knowledge) {
	if r := n.view().roster; r != n.told {
		n.told, n.unwatched = r, true
	}
	watched := n.seen
	watched.machine, watched.seen, watched.leases, watched.ready = now.machine, now.seen, now.leases, now.ready
	if n.seen = now; now.likens(watched) {
		return
	}
	if interest := plan.Interest(w, n.key); !slices.Equal(interest, n.interest) {
		n.interest, n.unwatched = interest, true
	}
}

// write publishes own statements, then carries the decision out, if there is one.
func (n *node) write(vs []stmt.Verified, out *plan.Output) {
	n.busy = true
	woke := n.woke
	n.commit(vs, func() {
		n.busy = false
		if out != nil && n.woke == woke {
			n.carryOut(out)
		}
		if n.again {
			n.again = false
			n.plan()
		}
	})
}

func (n *node) setWake(at time.Duration) {
	n.wake = 0
	if at != 0 {
		n.wake = n.clock.when(at)
		n.sim.push(event{at: max(n.wake, n.sim.now+1), node: n.i, life: n.life, kind: evWake})
	}
}

func (n *node) register() crdt.Node {
	total := n.sim.cfg.Node
	if n.sim.cfg.Mutant == OverPromises {
		total.Memory *= 4
	}
	return crdt.Node{
		Total: total, Labels: n.sim.labels(n.i), Draining: n.draining, Version: n.versionName(), Accel: "kvm", Holds: n.holding(),
		Region: n.sim.Region(int(n.i)),
	}
}

func (s *Sim) labels(i int32) map[string]string {
	if s.cfg.Domains == 0 {
		return nil
	}
	return map[string]string{"domain": fmt.Sprint("d", int(i)%s.cfg.Domains)}
}

// syncVMs has the virtual machines be as wanted.
func (n *node) syncVMs(want []plan.VM) {
	now, cfg := n.sim.now, &n.sim.cfg
	listed := make(map[string]bool, len(want))
	boot := func(v *vm) {
		n.bootsFrom(v)
		d := cfg.Boot.draw(n.rng)
		v.started, v.upAt, v.downAt, v.goneAt, v.until = now, now+d, 0, 0, 0
		v.pausing = n.pausing()
		if v.Fenced {
			v.upAt = never // it boots when it may run
			return
		}
		n.after(d, evVM, 0, 0, nil)
	}
	for _, w := range want {
		listed[w.ID] = true
		v := n.vms[w.ID]
		switch {
		case v == nil || v.Incarnation != w.Incarnation:
			if w.Keep {
				n.sim.violate("%v: keeps %s, which is not there", n, w.ID)
			}
			v = &vm{VM: w, owner: n.ownerOf(w.Instance), run: w.Run}
			n.vms[w.ID] = v
			boot(v)
		case !w.Run && v.run:
			v.run, v.downAt = false, now+cfg.Stop.draw(n.rng)
			n.after(v.downAt-now, evVM, 0, 0, nil)
		case w.Run && (v.Restart != w.Restart || !v.run || v.goneAt != 0):
			if v.run = true; !w.Keep {
				v.VM = w
			}
			boot(v)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(n.vms)) {
		if v := n.vms[id]; !listed[id] && v.goneAt == 0 && cfg.Mutant != SurplusStays {
			d := cfg.Stop.draw(n.rng)
			v.goneAt = now + d
			n.after(d, evVM, 0, 0, nil)
		}
	}
}

// ownerOf is whose an instance is that n wants to run.
func (n *node) ownerOf(instance string) stmt.Key {
	spec, _ := n.view().view.Instance(instance)
	return spec.Owner
}

// pausing draws how long a machine's keeper takes to pause it.
func (n *node) pausing() time.Duration {
	if n.sim.cfg.Mutant == NoKeeper {
		return never / 2
	}
	return Range{0, pauseLimit}.draw(n.rng)
}

// executes says whether a virtual machine runs at this moment. Its host's sleep
// stops it; what was to be paused meanwhile is paused before it goes on.
func (n *node) executes(v *vm) bool {
	now := n.sim.now
	switch {
	case n.asleep(now) || v.goneAt != 0 && v.goneAt <= now:
		return false
	case !v.run && v.downAt <= now:
		return false
	case !v.Fenced || n.clock.at(now) < v.until:
		return true
	}
	ended := n.clock.when(v.until)
	return ended >= n.awake && v.until != 0 && now < ended+v.pausing
}

// settleMachine forgets virtual machines that have gone.
func (n *node) settleMachine() {
	if len(n.vms) == 0 {
		return
	}
	for id, v := range n.vms { // any order: each by itself
		if v.goneAt != 0 && v.goneAt <= n.sim.now {
			delete(n.vms, id)
		}
	}
}

// machineState changes when packs or virtual machines do, or the clock that people read.
func (n *node) machineState() uint64 {
	var sum uint64
	if len(n.vms) == 0 && len(n.packs) == 0 && !n.draining {
		return 0
	}
	add := func(id string, words ...uint64) {
		h := uint64(len(id))
		for _, b := range []byte(id) {
			h = chance.Mix(h, uint64(b))
		}
		sum += chance.Draw(h, words...)
	}
	bit := func(b bool) uint64 {
		if b {
			return 1
		}
		return 0
	}
	for id, v := range n.vms { // any order: the sum commutes
		add(id, uint64(v.started), bit(v.run), bit(v.upAt <= n.sim.now), bit(v.upAt == never), bit(v.goneAt != 0), bit(n.executes(v)))
	}
	for id, p := range n.packs { // any order: the sum commutes
		add(id, p.state())
	}
	return sum + bit(n.draining) + chance.Mix(useClock, uint64(n.jumped)) // which dates what it says of its machines
}

func (n *node) vmStatus() map[string]plan.VMStatus {
	if len(n.vms) == 0 {
		return nil
	}
	out := make(map[string]plan.VMStatus, len(n.vms))
	for id, v := range n.vms {
		out[id] = v.status(n)
	}
	return out
}

func (v *vm) status(n *node) plan.VMStatus {
	now := n.sim.now
	st := plan.VMStatus{
		Incarnation: v.Incarnation, Restart: v.Restart, Phase: plan.VMLaunching, Accel: "kvm",
		StartedAt: n.reads(v.started), Fenced: v.Fenced, Owner: v.owner,
	}
	switch {
	case !v.run && v.downAt <= now:
		st.Phase = plan.VMStopped
	case v.goneAt != 0 || !v.run:
		st.Phase = plan.VMStopping
	case v.upAt == never:
	case !n.executes(v):
		st.Phase, st.Booted, st.Reason = plan.VMUnhealthy, true, "paused"
	case v.upAt <= now:
		st.Phase, st.Booted, st.Ready = plan.VMRunning, true, true
		st.ReadyAt = n.reads(v.upAt)
	}
	return st
}

// samePlan says whether two outputs are equal.
func samePlan(a, b plan.Output) bool { return reflect.DeepEqual(a, b) }

// sameDeeds is samePlan, but for what is remembered and when it is looked at again.
func sameDeeds(a, b plan.Output) bool {
	a.Timers, b.Timers, a.Wake, b.Wake = plan.Timers{}, plan.Timers{}, 0, 0
	return samePlan(a, b)
}
