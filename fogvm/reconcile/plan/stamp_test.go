package plan

import (
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// drift changes one thing of a World, as Views and detectors do.
func drift(t *rapid.T, w *World) {
	i := rapid.IntRange(0, len(w.Instances)-1).Draw(t, "instance")
	k := w.Nodes[rapid.IntRange(0, len(w.Nodes)-1).Draw(t, "node")].Key
	s := &w.Instances[i]
	w.Claims = maps.Clone(w.Claims)
	edit := func(change func(c *crdt.Claim)) {
		if len(w.Claims[s.ID]) == 0 {
			return
		}
		w.Claims[s.ID] = slices.Clone(w.Claims[s.ID])
		change(&w.Claims[s.ID][rapid.IntRange(0, len(w.Claims[s.ID])-1).Draw(t, "claim")])
	}
	respec := func(change func(s *crdt.Spec)) {
		w.Instances = slices.Clone(w.Instances)
		w.Claims[s.ID] = slices.Clone(w.Claims[s.ID])
		w.Instances[i].Generation++
		change(&w.Instances[i])
	}
	renode := func(change func(n *crdt.Node)) {
		w.Nodes = slices.Clone(w.Nodes)
		change(&w.Nodes[rapid.IntRange(0, len(w.Nodes)-1).Draw(t, "changed")])
	}
	switch rapid.IntRange(0, 16).Draw(t, "change") {
	case 0:
		edit(func(c *crdt.Claim) { c.Phase, c.Ready = crdt.ClaimLaunching, !c.Ready })
	case 1:
		edit(func(c *crdt.Claim) { c.Node = k })
	case 2:
		edit(func(c *crdt.Claim) { c.Phase, c.Ready = crdt.ClaimFailed, false })
	case 3: // a slot is given up
		if l := w.Claims[s.ID]; len(l) > 0 {
			w.Claims[s.ID] = slices.Clone(l[1:])
		}
	case 4: // and taken, of an instance that is known or not
		id := rapid.SampledFrom([]string{s.ID, "zzz"}).Draw(t, "of")
		w.Claims[id] = append(slices.Clone(w.Claims[id]), crdt.Claim{Node: k, Instance: id, Generation: 1, Phase: crdt.ClaimRunning, Slot: 1})
	case 5:
		respec(func(s *crdt.Spec) { s.VCPU = rapid.IntRange(1, 64).Draw(t, "vcpu") })
	case 6:
		respec(func(s *crdt.Spec) { s.Replicas = rapid.IntRange(0, 4).Draw(t, "replicas") })
	case 7:
		respec(func(s *crdt.Spec) { s.MemoryBytes = 200 << 30 })
	case 8: // an instance is deleted
		if len(w.Instances) > 1 {
			w.Instances = slices.Delete(slices.Clone(w.Instances), i, i+1)
		}
	case 9:
		w.Dead = maps.Clone(w.Dead)
		w.Dead[k] = time.Second
	case 10:
		w.Dead = map[stmt.Key]time.Duration{}
	case 11:
		renode(func(n *crdt.Node) { n.Draining = !n.Draining })
	case 12:
		renode(func(n *crdt.Node) { n.Total.Memory /= 2 })
	case 16: // half of the swarm does, and so everybody ranks otherwise
		w.Nodes = slices.Clone(w.Nodes)
		for n := range w.Nodes[:len(w.Nodes)/2] {
			w.Nodes[n].Total.CPUs, w.Nodes[n].Total.Memory = w.Nodes[n].Total.CPUs/2, w.Nodes[n].Total.Memory/2
		}
	case 13: // nothing that ranks it
		renode(func(n *crdt.Node) {
			n.Holds, n.Seq, n.Addrs = append(n.Holds, "p1"), n.Seq+1, []string{"/ip4/10.0.0.1"}
		})
	case 14:
		w.Members[0]++
		w.MayRun = func(_ *crdt.Spec, node stmt.Key) bool { return node != k }
	case 15:
		most := rapid.IntRange(1, 40).Draw(t, "quota")
		w.Members[1]++
		w.Quota = func(stmt.Key) (stmt.Quota, bool) { return stmt.Quota{Replicas: most}, true }
	}
}

// Whatever changes: what a node decides and watches is the same for one Stamp, and that
// of a Brief made of the one before is the one of a Brief made of nothing.
func TestOneStampOneDecision(t *testing.T) {
	rested := 0
	rapid.Check(t, func(t *rapid.T) {
		type decided struct {
			out     Output
			watches []stmt.Key
		}
		type asked struct {
			node  stmt.Key
			stamp Stamp
		}
		w := settledFleet(24, 10)
		w.Stamped = true
		for i := range w.Instances {
			w.Instances[i].Owner = stmt.Key{byte(i % 2), 7}
		}
		vms := map[string]VMStatus{
			"i00003-0": {Phase: VMRunning, Booted: true, Ready: true, StartedAt: 1},
			"zzz-1":    {Phase: VMRunning, Booted: true, Ready: true, StartedAt: 1},
		}
		seen := map[asked]decided{}
		var before World
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			drift(t, &w)
			next, fresh := w.Briefed(before), w.Briefed(World{})
			for n := range w.Nodes {
				in := Input{Now: time.Hour, Self: w.Nodes[n].Key, World: next, VMs: vms, Timers: Timers{Tries: map[string]int{"i00004": 2}}}
				stamp, known := in.Stamp()
				in.World = fresh
				if of, _ := in.Stamp(); of != stamp {
					t.Fatalf("node %d: the stamp is %x, of nothing %x", n, stamp, of)
				}
				if !known {
					continue
				}
				in.World = w
				now := decided{Plan(in), Interest(w, in.Self)}
				was, again := seen[asked{in.Self, stamp}]
				if again && !reflect.DeepEqual(now, was) {
					t.Fatalf("node %d decides\n%+v\nand by the same stamp decided\n%+v", n, now, was)
				}
				if again {
					rested++
				}
				seen[asked{in.Self, stamp}] = now
			}
			before = next
		}
	})
	if rested == 0 {
		t.Error("nobody ever had the same stamp twice")
	}
}

// What concerns few is no concern of the rest.
func TestAStampIsOfWhatConcernsTheNode(t *testing.T) {
	w := settledFleet(200, 50)
	w.Stamped = true
	before := w.Briefed(World{})
	stamps := func(w World) map[stmt.Key]Stamp {
		out := map[stmt.Key]Stamp{}
		for i := range w.Nodes {
			in := Input{Self: w.Nodes[i].Key, World: w}
			out[in.Self], _ = in.Stamp()
		}
		return out
	}
	was := stamps(before)
	w.Claims = maps.Clone(w.Claims)
	s := &w.Instances[3]
	w.Claims[s.ID] = slices.Clone(w.Claims[s.ID])
	w.Claims[s.ID][0].Ready = false
	w.Nodes = slices.Clone(w.Nodes)
	w.Nodes[9].Holds = []string{"p3"}
	next := w.Briefed(before)
	changed := 0
	for k, stamp := range stamps(next) {
		if stamp != was[k] {
			changed++
		}
	}
	if most := 3 + interestDepth + 2*s.Replicas; changed == 0 || changed > most {
		t.Errorf("a claim concerns %d of 200 nodes, and at most %d should have to look", changed, most)
	}
}
