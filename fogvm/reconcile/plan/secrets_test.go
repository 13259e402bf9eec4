package plan

import (
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// What a replica does while its instance's secrets are not known here: nothing is
// started without them, and what has them runs on.
func TestReplicaWithoutItsSecrets(t *testing.T) {
	self := stmt.Key{1}
	spec := crdt.Spec{
		ID: "web", Name: "web", Owner: stmt.Key{99}, Pack: "p2", Replicas: 1, Phase: crdt.PhaseRunning, Generation: 2,
		VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30,
	}
	id, inc, token := VMID("web", 0), Incarnation(&spec, "p2"), RestartToken(&spec)
	const why = "waits for its secrets: run form secret sync web"
	for _, tc := range []struct {
		name    string
		secrets string
		vm      VMStatus // none without a phase
		want    string   // run, keep (as it is), halt (not started, kept) or none
		phase   crdt.ClaimPhase
		reason  string
		ready   bool
	}{
		{"known, nothing here", "", VMStatus{}, "run", crdt.ClaimLaunching, "", false},
		{"nothing here", why, VMStatus{}, "none", crdt.ClaimClaimed, why, false},
		{"it runs as wanted", why, VMStatus{Incarnation: inc, Restart: token, Phase: VMRunning, Ready: true}, "run", crdt.ClaimRunning, why, true},
		{"it is unhealthy", why, VMStatus{Incarnation: inc, Restart: token, Phase: VMUnhealthy, Reason: "ill"}, "run", crdt.ClaimUnhealthy, "ill", false},
		{"it is to be restarted", why, VMStatus{Incarnation: inc, Restart: token + 1, Phase: VMRunning, Ready: true}, "keep", crdt.ClaimRunning, why, true},
		{"it is to be replaced", why, VMStatus{Incarnation: "old", Restart: token, Phase: VMRunning, Ready: true}, "keep", crdt.ClaimRunning, why, true},
		{"known, it is to be replaced", "", VMStatus{Incarnation: "old", Restart: token, Phase: VMRunning, Ready: true}, "run", crdt.ClaimLaunching, "", false},
		{"it was stopped", why, VMStatus{Incarnation: inc, Restart: token, Phase: VMStopped}, "halt", crdt.ClaimClaimed, why, false},
	} {
		in := Input{
			Now: time.Hour, Self: self, Packs: map[string]PackStatus{"p2": {State: Complete}}, VMs: map[string]VMStatus{},
			World: World{
				Instances: []crdt.Spec{spec},
				Nodes:     []crdt.Node{{Key: self, Total: crdt.Resources{CPUs: 4, Memory: 4 << 30, Disk: 100 << 30}}},
				Claims: map[string][]crdt.Claim{"web": {{
					Node: self, Instance: "web", Owner: spec.Owner, Generation: 1, Phase: crdt.ClaimRunning, Pack: "p2", SpecGeneration: 1,
				}}},
				MayRun: func(*crdt.Spec, stmt.Key) bool { return true },
			},
		}
		if tc.secrets != "" {
			in.Secrets = map[string]string{"web": tc.secrets}
		}
		if tc.vm.Phase != "" {
			in.VMs[id] = tc.vm
		}
		out := Plan(in)
		got := "none"
		if len(out.VMs) == 1 {
			switch v := out.VMs[0]; {
			case v.Run && v.Keep:
				got = "keep"
			case v.Run:
				got = "run"
			case v.Keep:
				got = "halt"
			}
		}
		if len(out.Claims) != 1 {
			t.Errorf("%s: claims %+v", tc.name, out.Claims)
			continue
		}
		if c := out.Claims[0]; got != tc.want || c.Phase != tc.phase || c.Reason != tc.reason || c.Ready != tc.ready {
			t.Errorf("%s: %s, %s (%s) ready %v; want %s, %s (%s) ready %v", tc.name, got, c.Phase, c.Reason, c.Ready, tc.want, tc.phase, tc.reason, tc.ready)
		}
	}
}

// Keeps is true of the one node that all who hold the view take for the keeper.
func TestKeeps(t *testing.T) {
	spec := crdt.Spec{ID: "web", Name: "web", Replicas: 1, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30}
	w := World{MayRun: func(_ *crdt.Spec, k stmt.Key) bool { return k[0] != 4 }, Dead: map[stmt.Key]time.Duration{{3}: 1}}
	for n := byte(1); n <= 5; n++ {
		w.Nodes = append(w.Nodes, crdt.Node{Key: stmt.Key{n}, Total: crdt.Resources{CPUs: 4, Memory: 4 << 30, Disk: 100 << 30}})
	}
	claim := func(n byte, slot int, generation uint64, phase crdt.ClaimPhase) crdt.Claim {
		return crdt.Claim{Node: stmt.Key{n}, Instance: "web", Slot: slot, Generation: generation, Phase: phase}
	}
	for _, tc := range []struct {
		name   string
		claims []crdt.Claim
		want   byte // 0: nobody
	}{
		{"nobody", nil, 0},
		{"the one", []crdt.Claim{claim(1, 0, 1, crdt.ClaimRunning)}, 1},
		{"the later generation", []crdt.Claim{claim(1, 0, 1, crdt.ClaimRunning), claim(2, 0, 2, crdt.ClaimClaimed)}, 2},
		{"a failed one", []crdt.Claim{claim(1, 0, 1, crdt.ClaimFailed)}, 0},
		{"one that drains", []crdt.Claim{claim(1, 0, 1, crdt.ClaimDraining)}, 0},
		{"a dead one", []crdt.Claim{claim(3, 0, 1, crdt.ClaimRunning)}, 0},
		{"one that may not", []crdt.Claim{claim(4, 0, 9, crdt.ClaimRunning)}, 0},
		{"beyond the replicas", []crdt.Claim{claim(1, 1, 1, crdt.ClaimRunning)}, 0},
	} {
		w.Claims = map[string][]crdt.Claim{"web": tc.claims}
		for n := byte(1); n <= 5; n++ {
			if got := w.Keeps(&spec, stmt.Key{n}); got != (n == tc.want) {
				t.Errorf("%s: node %d keeps: %v", tc.name, n, got)
			}
		}
	}
}

// A node that claims every slot of an instance, and says it is ahead of all, has
// one of them.
func TestNodeKeepsOneSlotOfAnInstance(t *testing.T) {
	spec := crdt.Spec{ID: "web", Name: "web", Replicas: 3, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30}
	w := World{MayRun: func(*crdt.Spec, stmt.Key) bool { return true }, Claims: map[string][]crdt.Claim{}}
	for n := byte(1); n <= 4; n++ {
		w.Nodes = append(w.Nodes, crdt.Node{Key: stmt.Key{n}, Total: crdt.Resources{CPUs: 4, Memory: 4 << 30, Disk: 100 << 30}})
	}
	for slot, n := range []byte{1, 3, 4} {
		w.Claims["web"] = append(w.Claims["web"],
			crdt.Claim{Node: stmt.Key{n}, Instance: "web", Slot: slot, Generation: 1, Phase: crdt.ClaimRunning},
			crdt.Claim{Node: stmt.Key{2}, Instance: "web", Slot: slot, Generation: 1 << 52, Phase: crdt.ClaimRunning, Ready: true})
	}
	for slot, want := range []byte{2, 3, 4} {
		if h := w.holders(&spec, w.Claims["web"], slot); len(h) == 0 || h[0].Node != (stmt.Key{want}) {
			t.Errorf("slot %d is kept by %v, want node %d", slot, h, want)
		}
	}
	// The claim on its lowest slot counts no more: then that on the next does.
	w.Claims["web"][1].Phase = crdt.ClaimFailed
	if h := w.holders(&spec, w.Claims["web"], 1); h[0].Node != (stmt.Key{2}) {
		t.Errorf("slot 1 is kept by %v", h)
	}
}
