package plan

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// settledFleet is a settled swarm: every instance of three replicas serves on the nodes
// that rank for it.
func settledFleet(nodes, instances int) World {
	w := World{
		Claims: map[string][]crdt.Claim{}, Dead: map[stmt.Key]time.Duration{},
		MayRun: func(*crdt.Spec, stmt.Key) bool { return true },
	}
	for i := range nodes {
		w.Nodes = append(w.Nodes, crdt.Node{
			Key: stmt.Key{byte(i >> 8), byte(i), 1}, Total: crdt.Resources{CPUs: 32, Memory: 256 << 30, Disk: 4 << 40},
		})
	}
	w.Ranks = &Ranks{}
	for i := range instances {
		s := crdt.Spec{
			ID: fmt.Sprintf("i%05d", i), Name: "web", Replicas: 3, Pack: fmt.Sprintf("p%d", i), Phase: crdt.PhaseRunning,
			VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30, Generation: 1,
		}
		w.Instances = append(w.Instances, s)
		for slot, at := range firstOf(w.order(&s, w.present), 3) {
			w.Claims[s.ID] = append(w.Claims[s.ID], crdt.Claim{
				Node: w.Nodes[at].Key, Instance: s.ID, Slot: slot, Generation: 1, Phase: crdt.ClaimRunning, Ready: true,
				Pack: s.Pack, SpecGeneration: 1, StartedAt: 1,
			})
		}
	}
	return w
}

// A look of one of a thousand nodes at two thousand instances: when it knows how
// they rank, after a death, with a node that has changed, and when it knows nothing.
func BenchmarkLook(b *testing.B) {
	w := settledFleet(1000, 2000)
	self := w.Nodes[500].Key
	in := Input{Now: time.Hour, Self: self, World: w}
	look := func() {
		Interest(in.World, self)
		in.Timers = Plan(in).Timers
	}
	look() // the packs' holders are ranked too
	b.Run("settled", func(b *testing.B) {
		for b.Loop() {
			look()
		}
	})
	b.Run("a death", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			clear(in.World.Dead)
			in.World.Dead[w.Nodes[i%500].Key] = time.Hour
			look()
		}
	})
	clear(in.World.Dead)
	b.Run("a changed node", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			in.World.Nodes = slices.Clone(w.Nodes)
			in.World.Nodes[i%500].Total.CPUs++
			in.World.Nodes[i%500].Total.Memory++
			look()
		}
	})
	b.Run("a start", func(b *testing.B) {
		for b.Loop() {
			in.World.Ranks = &Ranks{}
			look()
		}
	})
}
