package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/scenario"
)

// action does what a step says. A step that finds nobody to do it to does nothing.
type action func(r *run, s scenario.Step, rng *rand.Rand)

// Mutants of what is done to a swarm.
const (
	// OpenToAll has owners who name those that may run their instances name nobody.
	OpenToAll des.Mutant = "open-to-all"
	// NothingDone has every step do nothing.
	NothingDone des.Mutant = "nothing-done"
)

// peopleDo are the verbs that are no faults: what owners and operators do.
var peopleDo = []string{"change", "delete", "extend", "scale", "ship"}

func isFault(verb string) bool { return !slices.Contains(peopleDo, verb) }

// actions has every verb of scenario.Verbs.
var actions = map[string]action{
	"bit-rot":          atNode(func(r *run, i int, _ scenario.Step, rng *rand.Rand) { r.Rot(i, rng) }),
	"bounce":           atNode(bounce),
	"change":           change,
	"clock-jump":       atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.Jump(i, s.By) }),
	"clog":             atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.Clog(i) }),
	"corrupt":          func(r *run, _ scenario.Step, _ *rand.Rand) { r.corrupt() },
	"crash":            atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.down(i); r.Crash(i, s.Kind == "machine") }),
	"cut":              atNode(cut),
	"delete":           remove,
	"disk-full":        atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.down(i); r.FillDisk(i, s.For) }),
	"drain":            atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.down(i); r.Drain(i, true) }),
	"equivocate-owner": equivocateOwner,
	"extend":           extend,
	"heal":             func(r *run, _ scenario.Step, _ *rand.Rand) { r.Heal(); r.smaller = nil },
	"isolate":          atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.split([]int{i}) }),
	"join":             join,
	"kill":             atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.down(i); r.Kill(i) }),
	"lie":              lie,
	"lose-votes":       atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.LoseVotes(i) }),
	"loss":             func(r *run, s scenario.Step, _ *rand.Rand) { r.Loss(s.Share) },
	"nat": func(r *run, s scenario.Step, rng *rand.Rand) {
		r.Behind(rng.Perm(r.Nodes())[:int(share(s)*float64(r.Nodes()))]...)
	},
	"partition": partition,
	"replay":    atNode(func(r *run, i int, _ scenario.Step, rng *rand.Rand) { r.Replay(i, replayed, rng) }),
	"scale":     scale,
	"ship":      ship,
	"slow":      atNode(slow),
	"slow-disk": atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.SlowDisk(i, s.By, s.For) }),
	"stall":     atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.down(i); r.Stall(i, s.For) }),
	"start":     atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.Start(i) }),
	"suspend":   atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.down(i); r.Suspend(i, s.For) }),
	"torn-log":  atNode(tear),
	"unclog":    atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.Unclog(i) }),
	"undrain":   atNode(func(r *run, i int, _ scenario.Step, _ *rand.Rand) { r.Drain(i, false) }),
	"upgrade":   atNode(func(r *run, i int, s scenario.Step, _ *rand.Rand) { r.down(i); r.Upgrade(i, s.For) }),
}

// replayed is how many statements a replay says again.
const replayed = 300

func atNode(do func(r *run, i int, s scenario.Step, rng *rand.Rand)) action {
	return func(r *run, s scenario.Step, rng *rand.Rand) {
		if i, ok := r.pick(s, rng); ok {
			do(r, i, s, rng)
		}
	}
}

// down notes that a node was not up all the while.
func (r *run) down(i int) {
	if !slices.Contains(r.touched, i) {
		r.touched = append(r.touched, i)
	}
}

func bounce(r *run, i int, s scenario.Step, _ *rand.Rand) {
	r.down(i)
	r.Crash(i, s.Kind == "machine")
	r.Do(s.For, func() { r.Start(i) })
}

func tear(r *run, i int, s scenario.Step, rng *rand.Rand) {
	r.down(i)
	r.Tear(i, rng)
	r.Do(s.For, func() { r.Start(i) })
}

func slow(r *run, i int, s scenario.Step, _ *rand.Rand) {
	r.Slow(i, s.By)
	r.Do(s.For, func() { r.Slow(i, 0) })
}

// half is what a step that splits takes when it does not say.
const half = 0.5

func share(s scenario.Step) float64 {
	if s.Share == 0 {
		return half
	}
	return s.Share
}

func cut(r *run, i int, s scenario.Step, rng *rand.Rand) {
	for o := range r.Nodes() {
		if o != i && rng.Float64() < share(s) {
			r.Cut(i, o)
		}
	}
}

func partition(r *run, s scenario.Step, rng *rand.Rand) {
	away := rng.Perm(r.Nodes())[:max(1, int(share(s)*float64(r.Nodes())))]
	if i, ok := r.pick(s, rng); ok && s.Node != "" && !slices.Contains(away, i) {
		away = append(away, i)
	}
	if s.Node == "" {
		r.picked = -1
	}
	r.split(away)
}

// split cuts those nodes off from the others.
func (r *run) split(away []int) {
	rest := r.which(func(i int) bool { return !slices.Contains(away, i) })
	r.smaller = slices.Sorted(slices.Values(away))
	if len(away) > len(rest) {
		r.smaller = rest
	}
	r.Partition(rest, away)
}

func join(r *run, s scenario.Step, rng *rand.Rand) {
	new := r.which(r.Awaited)
	n := len(new)
	if s.Share > 0 {
		n = min(n, max(1, int(s.Share*float64(r.Nodes()))))
	}
	for _, k := range rng.Perm(len(new))[:n] {
		r.Join(new[k])
	}
}

func ship(r *run, s scenario.Step, rng *rand.Rand) {
	i, ok := r.pick(s, rng)
	if !ok || !r.Up(i) {
		return
	}
	spec := crdt.Spec{
		Name: cmp.Or(s.Name, fmt.Sprint("new-", s.N)), Pack: des.PackName(10_000 + s.N), Replicas: cmp.Or(s.Replicas, 1+rng.IntN(3)),
		Partition: s.Partition,
	}
	if s.Operators != "" && r.res.mutant != OpenToAll {
		spec.Operators = r.trusted()
	}
	if s.Partition == crdt.PartitionStopMinority || s.Partition == crdt.PartitionFence {
		for _, v := range rng.Perm(r.Nodes())[:min(r.Nodes(), cmp.Or(r.plan.Workload.Voters, 3))] {
			spec.Voters = append(spec.Voters, r.Key(v))
		}
	}
	if s.PackMiB > 0 {
		r.Weighs(spec.Pack, uint64(s.PackMiB)<<20)
	}
	id := r.Ship(s.Owner, i, spec)
	r.names[spec.Name] = id
	if s.Operators == "" && len(r.plan.Liars) > 0 {
		r.exposed[id] = true
	}
}

// trusted are the nodes that will not lie.
func (r *run) trusted() (out []stmt.Key) {
	for i := range r.Nodes() {
		if !slices.Contains(r.plan.Liars, i) {
			out = append(out, r.Key(i))
		}
	}
	return out
}

func change(r *run, s scenario.Step, rng *rand.Rand) {
	r.atInstance(s, rng, func(spec *crdt.Spec) { spec.Restart++ })
}

func extend(r *run, s scenario.Step, rng *rand.Rand) {
	i, up := r.pick(s, rng)
	if spec, ok := r.instance(s, rng); ok && up && r.Up(i) {
		r.Extend(s.Owner, i, spec.ID)
	}
}

func scale(r *run, s scenario.Step, rng *rand.Rand) {
	n := cmp.Or(s.Replicas, 1+rng.IntN(3))
	r.atInstance(s, rng, func(spec *crdt.Spec) { spec.Replicas = n })
}

func (r *run) atInstance(s scenario.Step, rng *rand.Rand, do func(*crdt.Spec)) {
	i, up := r.pick(s, rng)
	if spec, ok := r.instance(s, rng); ok && up && r.Up(i) {
		r.Set(s.Owner, i, spec.ID, do)
	}
}

func remove(r *run, s scenario.Step, rng *rand.Rand) {
	i, up := r.pick(s, rng)
	if spec, ok := r.instance(s, rng); ok && up && r.Up(i) {
		r.Delete(s.Owner, i, spec.ID, func() { r.deleted[spec.ID] = true })
		r.gone[spec.ID] = true
	}
}

func equivocateOwner(r *run, s scenario.Step, rng *rand.Rand) {
	up := r.Honest()
	if spec, ok := r.instance(s, rng); ok && len(up) > 1 {
		at := rng.Perm(len(up))
		r.EquivocateOwner(s.Owner, up[at[0]], up[at[1]], spec.ID)
	}
}

func (r *run) corrupt() {
	for _, i := range r.plan.Liars {
		r.Corrupt(i)
	}
}

// lies that a node can tell.
var lies = []string{"boast", "equivocate", "forge", "replay", "usurp"}

// lie has each liar tell one lie.
func lie(r *run, s scenario.Step, rng *rand.Rand) {
	huge := crdt.Resources{CPUs: 1024 + rng.IntN(64), Memory: 1 << 42, Disk: 1 << 46}
	for _, i := range r.plan.Liars {
		if !r.Up(i) {
			continue
		}
		switch cmp.Or(s.Kind, lies[rng.IntN(len(lies))]) {
		case "boast":
			r.Boast(i, huge)
		case "equivocate":
			r.Equivocate(i, huge, crdt.Resources{CPUs: 1 + rng.IntN(8), Memory: 1 << 30, Disk: 1 << 33})
		case "forge":
			r.Forge(i, rng)
		case "replay":
			r.Replay(i, replayed, rng)
		case "usurp":
			r.Usurp(i, r.slots())
		}
	}
}

// slots are all that owners want or once wanted, in order.
func (r *run) slots() (out []plan.Slot) {
	for owner := range r.Owners() {
		for _, s := range r.Instances(owner) {
			for n := range s.Replicas {
				out = append(out, plan.Slot{Instance: s.ID, Slot: n})
			}
		}
	}
	for id := range r.gone { // any order: sorted below
		out = append(out, plan.Slot{Instance: id})
	}
	slices.SortFunc(out, func(a, b plan.Slot) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Slot, b.Slot))
	})
	return out
}

// shutdown is how long a machine may take to stop, as des draws it.
const shutdown = 2 * time.Second
