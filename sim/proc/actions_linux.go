package proc

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/scenario"
)

// action does what a step says. A step that finds nobody to do it to does nothing.
type action func(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error

// actions has every one of verbs.
var actions = map[string]action{
	"bounce": atNode(func(r *run, n *node, s scenario.Step, _ *rand.Rand) error {
		r.after(s.For, func(context.Context) error { return r.start(n) })
		return r.crash(n, s.Kind)
	}),
	"change": change,
	"crash":  atNode(func(r *run, n *node, s scenario.Step, _ *rand.Rand) error { return r.crash(n, s.Kind) }),
	"cut": atNode(func(r *run, n *node, s scenario.Step, rng *rand.Rand) error {
		for o := range r.nodes {
			if o != n.i && rng.Float64() < share(s) {
				r.cuts[[2]int{n.i, o}] = true
			}
		}
		r.seen["cut"]++
		return nil
	}),
	"delete":    remove,
	"disk-full": atNode(diskFull),
	"drain":     draining(true),
	"heal":      func(_ context.Context, r *run, _ scenario.Step, _ *rand.Rand) error { r.heal(); return nil },
	"isolate": atNode(func(r *run, n *node, _ scenario.Step, _ *rand.Rand) error {
		r.split([]int{n.i})
		return nil
	}),
	"kill": atNode(func(r *run, n *node, _ scenario.Step, _ *rand.Rand) error {
		n.gone = true
		r.seen["kill"]++
		return n.powerOff()
	}),
	"loss": func(_ context.Context, r *run, s scenario.Step, _ *rand.Rand) error {
		r.loss = s.Share
		return nil
	},
	"partition": partition,
	"scale":     scale,
	"ship":      ship,
	"slow": atNode(func(r *run, n *node, s scenario.Step, _ *rand.Rand) error {
		r.seen["slow"]++
		r.h.wire.slow(n.i, s.By)
		r.after(s.For, func(context.Context) error { r.h.wire.slow(n.i, 0); return nil })
		return nil
	}),
	"stall":   atNode(stop("stall", (*node).stop)),
	"start":   atNode(func(r *run, n *node, _ scenario.Step, _ *rand.Rand) error { return r.start(n) }),
	"suspend": atNode(stop("suspend", (*node).freeze)),
	"undrain": draining(false),
}

func atNode(do func(r *run, n *node, s scenario.Step, rng *rand.Rand) error) action {
	return func(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
		n := r.pick(ctx, s, rng)
		if n == nil || n.gone {
			return nil
		}
		r.Note("%7.1f s  %s n%d%s", r.now().Seconds(), s.Do, n.i, forText(s.For))
		return do(r, n, s, rng)
	}
}

func forText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf(" for %v", d.Round(time.Millisecond))
}

// pick draws the node that a step is about; nil: there is none.
func (r *run) pick(ctx context.Context, s scenario.Step, rng *rand.Rand) *node {
	n := r.draw(ctx, s, rng)
	if n != nil {
		r.look.picked = n.i
	}
	return n
}

func (r *run) draw(ctx context.Context, s scenario.Step, rng *rand.Rand) *node {
	if i, ok := s.Node.Number(); ok {
		if i >= len(r.nodes) {
			return nil
		}
		return r.nodes[i]
	}
	is := func(*node) bool { return true }
	switch s.Node {
	case scenario.Up, scenario.Honest, "":
		is = (*node).up
	case scenario.Down:
		is = func(n *node) bool { return n.cmd == nil && !n.gone }
	case scenario.Running, scenario.Serving:
		if s.Node == scenario.Serving || rng.IntN(4) > 0 {
			if on := r.serving(ctx); len(on) > 0 || s.Node == scenario.Serving {
				is = func(n *node) bool { return slices.Contains(on, n.key) }
			}
		}
	}
	var from []*node
	for _, n := range r.nodes {
		if is(n) {
			from = append(from, n)
		}
	}
	if len(from) == 0 {
		return nil
	}
	return from[rng.IntN(len(from))]
}

// serving are the nodes that run something in the eyes of the first that answers.
func (r *run) serving(ctx context.Context) (on []stmt.Key) {
	for _, n := range r.nodes {
		if !n.up() {
			continue
		}
		all, err := get[[]instance](ctx, n.client, "/v1/instances")
		if err != nil {
			continue // it may have no room, or be about to be killed
		}
		for _, i := range all {
			for _, rep := range i.Replicas {
				on = append(on, rep.Node)
			}
		}
		return on
	}
	return nil
}

// crash ends a daemon, or with kind machine all there is of its node.
func (r *run) crash(n *node, kind string) (err error) {
	if n.cmd != nil {
		r.seen["crash"]++
	}
	if kind == "machine" {
		n.virtual = nil
		return n.powerOff()
	}
	if n.virtual, err = n.machines(); err != nil {
		return err
	}
	return n.kill()
}

// outlived holds that the machines of a daemon that was killed are still there.
func (r *run) outlived(n *node) error {
	there, err := n.machines()
	for _, pid := range n.virtual {
		if !slices.Contains(there, pid) {
			r.fail(MachinesStay, "n%d: machine %d has ended with its daemon", n.i, pid)
		}
	}
	if len(n.virtual) > 0 {
		r.seen["a machine outlived its daemon"]++
	}
	n.virtual = nil
	return err
}

func stop(word string, do func(n *node, on bool) error) func(*run, *node, scenario.Step, *rand.Rand) error {
	return func(r *run, n *node, s scenario.Step, _ *rand.Rand) error {
		if n.cmd == nil || n.stopped {
			return nil
		}
		r.seen[word]++
		daemon := n.cmd
		r.after(s.For, func(context.Context) error {
			if n.cmd != daemon {
				return nil // another one by now, which nobody has stopped
			}
			return r.wake(n)
		})
		return do(n, true)
	}
}

func diskFull(r *run, n *node, s scenario.Step, _ *rand.Rand) error {
	if n.full {
		return nil
	}
	r.seen["disk full"]++
	r.after(s.For, func(context.Context) error { return n.empty() })
	return n.fill()
}

func draining(on bool) action {
	type drain struct {
		Draining bool `json:"draining"`
	}
	return func(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
		if n := r.pick(ctx, s, rng); n != nil && n.up() {
			if _, err := post[drain](ctx, n.client, "/v1/node/drain", drain{on}); err != nil {
				r.refused(s, n, err)
			} else {
				n.drains = on
			}
		}
		return nil
	}
}

// half is what a step that splits takes when it does not say.
const half = 0.5

func share(s scenario.Step) float64 { return cmp.Or(s.Share, half) }

func partition(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
	away := rng.Perm(len(r.nodes))[:max(1, int(share(s)*float64(len(r.nodes))))]
	if s.Node != "" {
		if n := r.pick(ctx, s, rng); n != nil && !slices.Contains(away, n.i) {
			away = append(away, n.i)
		}
	}
	r.split(away)
	return nil
}

// split cuts those nodes off from the others, in place of an earlier split.
func (r *run) split(away []int) {
	clear(r.cuts)
	for i := range r.nodes {
		for o := range r.nodes {
			if slices.Contains(away, i) != slices.Contains(away, o) {
				r.cuts[[2]int{i, o}] = true
			}
		}
	}
	slices.Sort(away)
	r.look.away = away
	r.Note("%7.1f s  split: %v from the others", r.now().Seconds(), away)
	r.seen["partition"]++
}

func (r *run) heal() {
	clear(r.cuts)
	r.look.away = nil
	r.seen["heal"]++
}

// owner is the n-th.
func (r *run) owner(n int) *owner {
	for len(r.owners) <= n {
		r.owners = append(r.owners, newOwner(r.Plan.Seed, len(r.owners)))
	}
	return r.owners[n]
}

// refused notes that a node has not acknowledged what somebody wanted.
func (r *run) refused(s scenario.Step, n *node, err error) {
	r.res.Unanswered++
	r.Note("%7.1f s  %s at n%d is not acknowledged: %v", r.now().Seconds(), s.Do, n.i, err)
}

// say has an owner come to a node and sign what it wants there.
func (r *run) say(ctx context.Context, s scenario.Step, n *node, what func(*crdt.Author) ([][]byte, error)) bool {
	o := r.owner(s.Owner)
	au, err := o.author(ctx, n.client, r.network)
	if err != nil {
		r.refused(s, n, err)
		return false
	}
	raws, err := what(au)
	if err == nil {
		err = o.submit(ctx, n.client, raws)
	}
	if err != nil {
		r.refused(s, n, err)
		return false
	}
	return true
}

func ship(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
	n := r.pick(ctx, s, rng)
	if n == nil || !n.up() {
		return nil
	}
	spec := r.spec(cmp.Or(s.Name, fmt.Sprint("new-", s.N)), cmp.Or(s.Replicas, 1+rng.IntN(mostDrawn)), s.Partition, rng)
	var id string
	if r.say(ctx, s, n, func(au *crdt.Author) (raws [][]byte, err error) {
		id, raws, err = au.Create(spec)
		return raws, err
	}) {
		r.owner(s.Owner).named[spec.Name] = id
		r.fenced[id] = spec.Partition == crdt.PartitionFence
	}
	return nil
}

// spec of an instance. Who votes is drawn.
func (r *run) spec(name string, replicas int, contract string, rng *rand.Rand) crdt.Spec {
	out := crdt.Spec{
		Name: name, Pack: r.pack, Replicas: replicas, Partition: contract, Phase: crdt.PhaseRunning,
		VCPU: 1, MemoryBytes: cmp.Or(r.Plan.Workload.MemoryMiB<<20, 256<<20), DiskBytes: 1 << 30,
	}
	if contract == crdt.PartitionStopMinority || contract == crdt.PartitionFence {
		for _, i := range rng.Perm(len(r.nodes))[:cmp.Or(r.Plan.Workload.Voters, 3)] {
			out.Voters = append(out.Voters, r.nodes[i].key)
		}
	}
	return out
}

func change(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
	return r.alter(ctx, s, rng, func(spec *crdt.Spec) { spec.Restart++ })
}

func scale(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
	replicas := cmp.Or(s.Replicas, 1+rng.IntN(mostDrawn))
	return r.alter(ctx, s, rng, func(spec *crdt.Spec) { spec.Replicas = replicas })
}

// chosen is the instance that a step names, or one of the owner's that the node
// knows, drawn; "": there is none.
func (r *run) chosen(s scenario.Step, au *crdt.Author, rng *rand.Rand) string {
	var mine []string
	for _, spec := range au.Instances() {
		if s.Name == "" || r.owner(s.Owner).named[s.Name] == spec.ID {
			mine = append(mine, spec.ID)
		}
	}
	if len(mine) == 0 {
		return ""
	}
	return mine[rng.IntN(len(mine))]
}

func (r *run) alter(ctx context.Context, s scenario.Step, rng *rand.Rand, do func(*crdt.Spec)) error {
	if n := r.pick(ctx, s, rng); n != nil && n.up() {
		r.say(ctx, s, n, func(au *crdt.Author) ([][]byte, error) {
			id := r.chosen(s, au, rng)
			if id == "" {
				return nil, nil
			}
			return au.Set(id, do)
		})
	}
	return nil
}

func remove(ctx context.Context, r *run, s scenario.Step, rng *rand.Rand) error {
	if n := r.pick(ctx, s, rng); n != nil && n.up() {
		r.say(ctx, s, n, func(au *crdt.Author) ([][]byte, error) {
			id := r.chosen(s, au, rng)
			if id == "" {
				return nil, nil
			}
			r.owner(s.Owner).ended[id] = true
			return au.Delete(id)
		})
	}
	return nil
}

// populate has the first owner ship what runs from the beginning, and waits for it.
func (r *run) populate(ctx context.Context) error {
	w := r.Plan.Workload
	rng := chanceOf(r.Plan)
	o := r.owner(0)
	for k := range w.Instances.Of(len(r.nodes)) {
		n := r.nodes[k%len(r.nodes)]
		au, err := o.author(ctx, n.client, r.network)
		if err != nil {
			return err
		}
		id, raws, err := au.Create(r.spec(fmt.Sprint("app-", k), w.Replicas, w.Partition, rng))
		if err != nil {
			return err
		}
		if err := o.submit(ctx, n.client, raws); err != nil {
			return err
		}
		o.named[fmt.Sprint("app-", k)] = id
		r.fenced[id] = w.Partition == crdt.PartitionFence
	}
	limit := calmLimit
	if r.Base != "" {
		limit = bootLimit
	}
	ok, why, err := r.until(ctx, limit, r.calm)
	if err == nil && !ok {
		err = fmt.Errorf("what is to run from the beginning does not after %v: %s", limit, why)
	}
	return err
}
