// Package sim holds scenarios: what happens to a swarm, and what must be true of
// it. They run in the discrete-event engine, package des, so that a name, a number
// of nodes and a seed say everything that will happen.
package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
)

// Scenario is something that happens to a swarm.
type Scenario struct {
	Name  string
	About string // one line
	Nodes int    // as many unless told otherwise; at least MinNodes
	net   des.NetConfig
	run   func(r *run)
	drift int64 // of clocks, in millionths
}

// MinNodes and MaxNodes bound a swarm that is simulated.
const (
	MinNodes = 6
	MaxNodes = 10_000
)

// Result is what came of a run.
type Result struct {
	Scenario string        `json:"scenario"`
	Nodes    int           `json:"nodes"`
	Seed     uint64        `json:"seed"`
	Events   uint64        `json:"events"`
	Virtual  time.Duration `json:"virtualNanoseconds"`
	Hash     string        `json:"hash"`  // of every event
	Notes    []string      `json:"notes"` // what was measured
	Bad      []string      `json:"bad"`   // invariants that broke
}

// Replay is the command that repeats the run.
func (r Result) Replay() string {
	return fmt.Sprintf("form sim run %s --nodes %d --seed %d", r.Scenario, r.Nodes, r.Seed)
}

// run is one run of a scenario.
type run struct {
	*des.Sim
	rng    *rand.Rand
	res    Result
	mutant des.Mutant
}

func (r *run) note(format string, args ...any) {
	r.res.Notes = append(r.res.Notes, fmt.Sprintf(format, args...))
}

func (r *run) fail(format string, args ...any) {
	r.res.Bad = append(r.res.Bad, fmt.Sprintf("%v: ", r.Now())+fmt.Sprintf(format, args...))
}

// Run runs a scenario with so many nodes; zero takes the scenario's own number.
func Run(sc Scenario, nodes int, seed uint64) Result { return runAs(sc, nodes, seed, "") }

// runAs runs it with something broken, so that its invariants have what to notice.
func runAs(sc Scenario, nodes int, seed uint64, mutant des.Mutant) Result {
	if nodes == 0 {
		nodes = sc.Nodes
	}
	r := &run{
		Sim: des.New(des.Config{Seed: seed, Nodes: nodes, Net: sc.net, Drift: sc.drift, Mutant: mutant}),
		rng: rand.New(rand.NewPCG(seed, 0x73696d)), mutant: mutant,
	}
	r.res = Result{Scenario: sc.Name, Nodes: nodes, Seed: seed, Notes: []string{}, Bad: []string{}}
	sc.run(r)
	r.res.Events, r.res.Virtual, r.res.Hash = r.Events(), r.Now(), r.Hash()
	for _, b := range r.Bad {
		r.res.Bad = append(r.res.Bad, b.String())
	}
	return r.res
}

// lossy is a network like a bad day of the real one.
var lossy = des.NetConfig{Loss: 0.02, Duplicate: 0.01, Damage: 0.01}

// Scenarios are all there are, by name.
func Scenarios() []Scenario {
	return []Scenario{
		{Name: "byzantine", About: "a fifth of the nodes lie: the others agree, and keep what only they may run", Nodes: 10, net: lossy, run: byzantine},
		{Name: "chaos", About: "crashes, sleeps and partitions while owners ship, change and delete", Nodes: 12, net: des.NetConfig{Loss: 0.2, Duplicate: 0.1, Damage: 0.05}, run: chaos},
		{Name: "fence-partition", About: "leases under rolling partitions, crashes, sleep and clocks that drift: one machine runs", Nodes: 7, net: lossy, drift: sixth, run: fencePartition},
		{Name: "keep-partition", About: "a split, by contract keep: both sides run, and the surplus ends when they meet", Nodes: 10, net: lossy, run: keepPartition},
		{Name: "laptop-sleep", About: "machines sleep and daemons are stopped for minutes, and believe nothing when they wake", Nodes: 10, net: lossy, run: laptopSleep},
		{Name: "loss-and-stalls", About: "two of a hundred messages are lost, and every node stops for half a second twice a minute", Nodes: 50, net: des.NetConfig{Loss: 0.02}, run: lossAndStalls},
		{Name: "node-dies", About: "a machine goes away for good", Nodes: 10, net: lossy, run: nodeDies},
		{Name: "restart", About: "a daemon restarts, and a machine, within the takeover delay", Nodes: 10, net: lossy, run: restart},
		{Name: "stop-minority-partition", About: "a split, by contract stop-minority: who sees too few voters stops", Nodes: 10, net: lossy, run: stopMinorityPartition},
		{Name: "switch-reboot", About: "a third of the fleet is cut off for a while", Nodes: 15, net: lossy, run: switchReboot},
	}
}

// Find returns the scenario of a name.
func Find(name string) (Scenario, bool) {
	all := Scenarios()
	i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == name })
	if i < 0 {
		return Scenario{}, false
	}
	return all[i], true
}

// settle waits until every replica runs once and all nodes agree.
func (r *run) settle(limit time.Duration) {
	took, ok := r.RunUntil(limit, time.Second, func() bool { return len(r.Unserved()) == 0 && r.Converged() })
	if !ok {
		r.fail("not settled after %v: all agree: %v, %v", took, r.Converged(), r.Unserved())
		return
	}
	r.CheckEqualViews()
	r.CheckAcknowledged()
	r.note("settled %v after the last fault", took)
}

// moved are the slots that run elsewhere than before, those of lost nodes aside.
func moved(before, after map[plan.Slot][]int, lost int) (out []string) {
	for slot, on := range before {
		if !slices.Equal(on, after[slot]) && !slices.Contains(on, lost) {
			out = append(out, fmt.Sprintf("%.8s/%d from %v to %v", slot.Instance, slot.Slot, on, after[slot]))
		}
	}
	slices.Sort(out)
	return out
}

func nodeDies(r *run) {
	r.Boot(des.Workload{Instances: 3 * r.Nodes() / 2, Replicas: 2})
	r.Run(20 * time.Second)
	before, victim := r.Placement(), r.rng.IntN(r.Nodes())
	r.Crash(victim, true)
	r.settle(3 * time.Minute)
	for _, c := range r.Confirmations() {
		if c.Ranked && c.After > 10*time.Second {
			r.fail("n%d confirmed the death of n%d after %v", c.By, c.Of, c.After)
		}
	}
	for _, m := range moved(before, r.Placement(), victim) {
		r.fail("moved without need: %s", m)
	}
}

func restart(r *run) {
	r.Boot(des.Workload{Instances: 3 * r.Nodes() / 2, Replicas: 2})
	r.Run(20 * time.Second)
	before := r.Placement()
	for _, machine := range []bool{false, true} {
		i := r.rng.IntN(r.Nodes())
		r.Crash(i, machine)
		r.Run(plan.DefaultTakeoverDelay - time.Second)
		r.Start(i)
		r.settle(2 * time.Minute)
	}
	for _, m := range moved(before, r.Placement(), -1) {
		r.fail("moved: %s", m)
	}
	if all, _ := r.Takeovers(); all > 0 {
		r.fail("%d takeovers", all)
	}
}

func switchReboot(r *run) {
	r.Boot(des.Workload{Instances: 4 * r.Nodes() / 3, Replicas: 3})
	r.Run(20 * time.Second)
	var away, rest []int
	for i := range r.Nodes() {
		if i%3 == 0 {
			away = append(away, i)
		} else {
			rest = append(rest, i)
		}
	}
	r.Partition(rest, away)
	r.Run(45 * time.Second)
	r.Heal()
	r.settle(5 * time.Minute)
	all, _ := r.Takeovers()
	r.note("%d takeovers, at most %d of one node in a minute", all, r.TakeoverPeak())
	if r.TakeoverPeak() > plan.TakeoverBudget {
		r.fail("%d takeovers of one node in a minute, the budget is %d", r.TakeoverPeak(), plan.TakeoverBudget)
	}
}

func lossAndStalls(r *run) {
	r.Boot(des.Workload{Instances: r.Nodes(), Replicas: 1})
	r.Stalls(500*time.Millisecond, 30*time.Second)
	r.Run(10 * time.Minute)
	all, _ := r.Takeovers()
	r.note("%d stalls", r.Seen["stall"])
	if r.FalseDeaths() > 0 || all > 0 {
		r.fail("%d false deaths, %d takeovers", r.FalseDeaths(), all)
	}
}

func chaos(r *run) {
	r.Boot(des.Workload{Instances: 2 * r.Nodes() / 3, Replicas: 2})
	for range 40 {
		r.upset()
		r.Run(time.Duration(r.rng.IntN(6000)) * time.Millisecond)
	}
	r.Heal()
	r.Loss(0.02)
	for i := range r.Nodes() {
		r.Start(i)
	}
	r.settle(5 * time.Minute)
	r.note("%d crashes, %d partitions, %d sleeps, %d statements acknowledged", r.Seen["crash"], r.Seen["partition"], r.Seen["suspend"], r.Acknowledged())
}

// upset does one thing to a swarm.
func (r *run) upset() {
	up := r.Reachable()
	if len(up) == 0 {
		r.Start(r.rng.IntN(r.Nodes()))
		return
	}
	i, mine := up[r.rng.IntN(len(up))], r.Instances(0)
	switch r.rng.IntN(10) {
	case 0, 1:
		r.Crash(i, r.rng.IntN(2) == 0)
	case 2, 3:
		r.Start(r.rng.IntN(r.Nodes()))
	case 4:
		sides := make([][]int, 2)
		for n := range r.Nodes() {
			side := r.rng.IntN(2)
			sides[side] = append(sides[side], n)
		}
		r.Partition(sides...)
	case 5:
		r.Heal()
	case 6:
		r.Suspend(i, time.Duration(r.rng.IntN(20_000))*time.Millisecond)
	case 7:
		r.Ship(0, i, crdt.Spec{Name: fmt.Sprint("new-", len(mine)), Pack: des.PackName(900 + r.rng.IntN(9)), Replicas: 1 + r.rng.IntN(3)})
	case 8:
		if len(mine) > 0 {
			r.Set(0, i, mine[r.rng.IntN(len(mine))].ID, func(s *crdt.Spec) { s.Replicas = 1 + r.rng.IntN(3) })
		}
	case 9:
		if len(mine) > 2 {
			r.Delete(0, i, mine[r.rng.IntN(len(mine))].ID)
		}
	}
}
