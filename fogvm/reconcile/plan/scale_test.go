package plan

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// largeWorld is n nodes in 20 racks and m instances of two replicas, each where
// the ranking wants it and ready.
func largeWorld(n, m int) World {
	w := World{Claims: map[string][]crdt.Claim{}, Dead: map[stmt.Key]time.Duration{}, MayRun: func(*crdt.Spec, stmt.Key) bool { return true }}
	for i := range n {
		w.Nodes = append(w.Nodes, crdt.Node{
			Key: stmt.Key{byte(i >> 8), byte(i), 1}, Total: crdt.Resources{CPUs: 64, Memory: 256 << 30, Disk: 4 << 40},
			Labels: map[string]string{place.DomainLabel: fmt.Sprint("rack-", i%20), AcceptLabel: "any"},
		})
	}
	w.Ranks = &Ranks{}
	for i := range m {
		sum := sha256.Sum256(fmt.Append(nil, i))
		s := crdt.Spec{
			ID: fmt.Sprintf("%x", sum[:16]), Name: "app", Owner: stmt.Key{99}, Pack: fmt.Sprintf("%x", sum[16:]), Generation: 1, Replicas: 2,
			Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30,
		}
		w.Instances = append(w.Instances, s)
		for slot, at := range firstOf(w.order(&s, w.present), 2) {
			w.Claims[s.ID] = append(w.Claims[s.ID], crdt.Claim{
				Node: w.Nodes[at].Key, Instance: s.ID, Owner: s.Owner, Slot: slot, Generation: 1, SpecGeneration: 1,
				Phase: crdt.ClaimRunning, Ready: true, Pack: s.Pack, StartedAt: 1,
			})
		}
	}
	return w
}

// BenchmarkPlan is one decision of a node among 1,000 with 2,000 instances:
// the first one, the next ones, and those while a rack of 50 nodes is dead.
func BenchmarkPlan(b *testing.B) {
	w := largeWorld(1000, 2000)
	in := Input{Now: time.Hour, Self: w.Nodes[7].Key, World: w}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			in.World.Ranks = &Ranks{}
			Plan(in)
		}
	})
	in.World.Ranks = w.Ranks
	Plan(in)
	b.Run("next", func(b *testing.B) {
		for b.Loop() {
			Plan(in)
		}
	})
	b.Run("interest", func(b *testing.B) {
		for b.Loop() {
			Interest(in.World, in.Self)
		}
	})
	b.Run("rack-dead", func(b *testing.B) {
		dead := in
		dead.World.Dead = map[stmt.Key]time.Duration{}
		for i := 0; i < len(w.Nodes); i += 20 {
			dead.World.Dead[w.Nodes[i].Key] = time.Hour - time.Second
		}
		for b.Loop() {
			Plan(dead)
		}
	})
	b.Run("node-changed", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			changed := in
			changed.World.Nodes = append([]crdt.Node{}, w.Nodes...)
			changed.World.Nodes[500].Total.Memory = uint64(128+i%2) << 30
			Plan(changed)
		}
	})
}
