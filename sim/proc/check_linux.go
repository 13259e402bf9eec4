package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/scenario"
)

func chanceOf(p *scenario.Plan) *rand.Rand { return chance.Stream(p.Seed, useVoters) }

// judge ends all faults, if the scenario has them end, and holds the swarm to what
// must be true then.
func (r *run) judge(ctx context.Context) error {
	if r.Plan.Calm {
		if err := r.quiet(ctx); err != nil {
			return err
		}
	}
	ended := time.Now()
	if limit := r.Plan.Expect.Agree; limit > 0 {
		if err := r.agree(ctx, ended, limit); err != nil {
			return err
		}
	}
	if limit := r.Plan.Expect.Settle; limit > 0 {
		ok, why, err := r.until(ctx, limit, r.calm)
		if err != nil {
			return err
		}
		if !ok {
			r.fail(Settles, "not settled %v after the end: %s", limit, why)
		}
		r.note("settled %v after the end", time.Since(ended).Round(time.Millisecond))
	}
	if err := r.acknowledged(ctx); err != nil {
		return err
	}
	if r.ticks != nil {
		r.fences()
	}
	for _, w := range r.Plan.Sometimes {
		if r.seen[w] == 0 {
			r.fail("sometimes", "never: %s", w)
		}
	}
	words := make([]string, 0, len(r.seen))
	for w := range r.seen { // any order: sorted below
		words = append(words, w)
	}
	slices.Sort(words)
	for _, w := range words {
		r.note("%s: %d", w, r.seen[w])
	}
	return nil
}

// quiet ends all faults and has every daemon run, and waits until all answer: that
// is the end from which times count.
func (r *run) quiet(ctx context.Context) error {
	r.later = nil
	r.heal()
	r.loss = r.Plan.Network.Loss
	if err := r.firewall(ctx); err != nil {
		return err
	}
	for _, n := range r.nodes {
		if n.gone {
			continue
		}
		if r.h.wire != nil {
			r.h.wire.slow(n.i, 0)
		}
		if err := errors.Join(n.empty(), r.wake(n), r.start(n)); err != nil {
			return err
		}
	}
	began := time.Now()
	ok, why, err := r.until(ctx, startLimit, func(context.Context) (bool, string) {
		for _, n := range r.nodes {
			if !n.gone && !n.up() {
				return false, fmt.Sprintf("n%d is not ready", n.i)
			}
		}
		return true, ""
	})
	if err == nil && !ok {
		r.fail(Settles, "%s %v after it was started: %s", why, startLimit, "its last words are in its log")
	}
	r.note("every daemon was ready %v after the last fault", time.Since(began).Round(time.Millisecond))
	return err
}

// alive are the nodes that are not gone.
func (r *run) alive() []*node {
	return slices.DeleteFunc(slices.Clone(r.nodes), func(n *node) bool { return n.gone })
}

// agree waits until all nodes list the same, and holds that to a limit.
func (r *run) agree(ctx context.Context, since time.Time, limit time.Duration) error {
	ok, why, err := r.until(ctx, limit, func(ctx context.Context) (bool, string) {
		_, why := r.listing(ctx)
		return why == "", why
	})
	if err != nil {
		return err
	}
	if !ok {
		r.fail(Agrees, "not %v after the end: %s", limit, why)
		return nil
	}
	r.note("views equal %v after the end", time.Since(since).Round(time.Millisecond))
	return nil
}

// listing is what all nodes list; why says how two of them differ.
func (r *run) listing(ctx context.Context) (all []instance, why string) {
	var first map[string]string
	for k, n := range r.alive() {
		has := map[string]string{}
		for _, path := range []string{"/v1/instances", "/v1/nodes"} {
			list, err := get[[]map[string]any](ctx, n.client, path)
			if err != nil {
				return nil, fmt.Sprintf("n%d: %v", n.i, err)
			}
			for _, one := range list {
				name := fmt.Sprint(path[len("/v1/"):], " ", one["id"], one["key"])
				text, err := shared(one)
				if err != nil {
					return nil, err.Error()
				}
				has[name] = text
				if k == 0 && path == "/v1/instances" {
					var i instance
					if err := json.Unmarshal([]byte(text), &i); err != nil {
						return nil, err.Error()
					}
					all = append(all, i)
				}
			}
		}
		if k == 0 {
			first = has
		} else if d := difference(first, has); d != "" {
			return nil, fmt.Sprintf("n%d and n%d differ in %s", r.alive()[0].i, n.i, d)
		}
	}
	return all, ""
}

// calm says whether all nodes list the same, every replica runs once and is ready,
// and machines run for those replicas and no others.
func (r *run) calm(ctx context.Context) (bool, string) {
	all, why := r.listing(ctx)
	if why != "" {
		return false, why
	}
	r.wants(all)
	claims := map[stmt.Key]int{}
	for _, i := range all {
		want := min(i.Desired.Replicas, len(r.alive()))
		if i.Spec.Partition == crdt.PartitionFence {
			want = min(want, 1)
		}
		slots := map[int]bool{}
		for _, rep := range i.Replicas {
			if !rep.Ready {
				return false, fmt.Sprintf("%s/%d on %.8s is not ready", i.Name, rep.Slot, rep.Node)
			}
			slots[rep.Slot] = true
			claims[rep.Node]++
		}
		if len(slots) != want || len(i.Replicas) != want {
			return false, fmt.Sprintf("%s has %d replicas in %d slots, and is to have %d", i.Name, len(i.Replicas), len(slots), want)
		}
	}
	for _, n := range r.alive() {
		s, err := get[status](ctx, n.client, "/v1/status")
		if err != nil || s.Local != claims[n.key] {
			return false, fmt.Sprintf("n%d runs %d machines for %d replicas (%v)", n.i, s.Local, claims[n.key], err)
		}
	}
	return true, ""
}

// acknowledged holds every node to all that owners were told is safe, and to listing
// what their statements say.
func (r *run) acknowledged(ctx context.Context) error {
	for _, n := range r.alive() {
		listed, err := get[[]instance](ctx, n.client, "/v1/instances")
		if err != nil {
			return err
		}
		for k, o := range r.owners {
			have, err := get[statements](ctx, n.client, o.path())
			if err != nil {
				return err
			}
			specs, err := o.believes(have.Statements, r.network)
			if err != nil {
				r.fail(des.AckedKept, "n%d, owner %d: %v", n.i, k, err)
			}
			for name, id := range o.named { // any order: each is said by itself
				if !o.ended[id] && !slices.ContainsFunc(specs, func(s crdt.Spec) bool { return s.ID == id }) {
					r.fail(des.AckedKept, "n%d, owner %d: %s (%.8s) was acknowledged, and never deleted, and is not there", n.i, k, name, id)
				}
			}
			if d := asSigned(listed, stmt.KeyOf(o.key), specs); d != "" {
				r.fail(ListedAsSigned, "n%d, owner %d: %s", n.i, k, d)
			}
		}
	}
	return nil
}
