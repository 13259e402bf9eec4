package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// world3 has three equal nodes and one instance of two replicas.
func world3() (World, *crdt.Spec) {
	w := World{
		Claims: map[string][]crdt.Claim{}, Dead: map[stmt.Key]time.Duration{},
		MayRun: func(*crdt.Spec, stmt.Key) bool { return true },
		Instances: []crdt.Spec{{
			ID: "web", Name: "web", Owner: stmt.Key{99}, Pack: "p1", Generation: 3, Replicas: 2, Phase: crdt.PhaseRunning,
			VCPU: 1, MemoryBytes: 1 << 30, DiskBytes: 1 << 30,
		}},
	}
	for i := range byte(3) {
		w.Nodes = append(w.Nodes, crdt.Node{Key: stmt.Key{i + 1}, Total: crdt.Resources{CPUs: 2, Memory: 2 << 30, Disk: 10 << 30}})
	}
	return w, &w.Instances[0]
}

func claimOf(node byte, slot int, phase crdt.ClaimPhase, ready bool) crdt.Claim {
	return crdt.Claim{
		Node: stmt.Key{node}, Instance: "web", Slot: slot, Generation: 1, SpecGeneration: 3, Phase: phase, Ready: ready, Pack: "p1",
	}
}

func TestStatus(t *testing.T) {
	running, failed := crdt.ClaimRunning, crdt.ClaimFailed
	for _, tc := range []struct {
		name   string
		claims []crdt.Claim
		change func(w *World, s *crdt.Spec)
		word   string
		reason string // contained
	}{
		{"nothing yet", nil, nil, Pending, "0 of 2 replicas ready: replica 0 waits for a node"},
		{"one on its way", []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, crdt.ClaimFetching, false)}, nil, Pending, "replica 1 is fetching"},
		{"all ready", []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, running, true)}, nil, Success, ""},
		{"a node short", []crdt.Claim{claimOf(1, 0, running, true)}, func(w *World, _ *crdt.Spec) {
			w.Nodes = w.Nodes[:1]
		}, Success, "1 of 2 replicas ready: no other node is there"},
		{"the others do not fit", []crdt.Claim{claimOf(1, 0, running, true)}, func(w *World, _ *crdt.Spec) {
			w.Nodes[1].Total.Memory, w.Nodes[2].Labels = 1, map[string]string{AcceptLabel: "keys:"}
		}, Success, "does not accept this owner's instances"},
		{"one failed, another may take it", []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, failed, false)}, nil, Pending, "replica 1 waits for a node"},
		{"failed everywhere", []crdt.Claim{claimOf(1, 0, failed, false), claimOf(2, 1, failed, false), claimOf(3, 0, failed, false)}, func(_ *World, _ *crdt.Spec) {}, Failure, "replica 0 failed: no reason given"},
		{"unhealthy from the start", []crdt.Claim{claimOf(1, 0, crdt.ClaimUnhealthy, false), claimOf(2, 1, crdt.ClaimUnhealthy, false)}, func(w *World, _ *crdt.Spec) {
			w.Claims["web"][0].Reason = "exit code 1"
		}, Failure, "replica 0 is unhealthy: exit code 1"},
		{"one serves, one is unhealthy", []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, crdt.ClaimUnhealthy, false)}, nil, Success, "1 of 2 replicas ready: replica 1 is unhealthy"},
		{"node died, not taken over yet", []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, running, true)}, func(w *World, _ *crdt.Spec) {
			w.Dead[stmt.Key{2}] = 1 * time.Second
		}, Pending, "replica 1 waits for a node"},
		{"no node at all fits", nil, func(_ *World, s *crdt.Spec) { s.MemoryBytes = 200_000 << 20 }, Failure, "no node is eligible: "},
		{"label nobody has", nil, func(_ *World, s *crdt.Spec) { s.Labels = map[string]string{"disk": "ssd"} }, Failure, "label disk=ssd missing"},
		{"rollout under way", []crdt.Claim{claimOf(1, 0, running, true), claimOf(2, 1, running, true)}, func(_ *World, s *crdt.Spec) {
			s.Generation = 4
		}, Pending, "replica 0 waits for its turn"},
		{"rollout stuck", []crdt.Claim{claimOf(1, 0, failed, false), claimOf(2, 1, running, true)}, func(w *World, s *crdt.Spec) {
			w.Nodes = w.Nodes[:2]
			s.Generation = 4
			w.Claims["web"][0].SpecGeneration, w.Claims["web"][0].Reason = 4, "boom"
		}, Failure, "cannot be rolled out: replica 0 failed: boom"},
		{"stopped", []crdt.Claim{claimOf(1, 0, crdt.ClaimStopped, false)}, func(_ *World, s *crdt.Spec) { s.Phase = crdt.PhaseStopped }, Success, "stopped"},
		{"stopping", []crdt.Claim{claimOf(1, 0, running, false)}, func(_ *World, s *crdt.Spec) { s.Phase = crdt.PhaseStopped }, Pending, "replica 0 is stopping"},
		{"fence without voters", nil, func(_ *World, s *crdt.Spec) { s.Partition = "fence" }, Failure, "fence needs voters"},
		{"sizes out of bounds", nil, func(_ *World, s *crdt.Spec) { s.VCPU = -1 }, Failure, "-1 vCPUs, allowed are 1 to 128"},
		{"critical key", nil, func(_ *World, s *crdt.Spec) { s.Critical = []string{"x"} }, Failure, "does not know: x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, s := world3()
			w.Claims["web"] = tc.claims
			if tc.change != nil {
				tc.change(&w, s)
			}
			word, reason := Status(w, s)
			if word != tc.word || !strings.Contains(reason, tc.reason) || (tc.reason == "") != (reason == "") {
				t.Errorf("%s { %s }, want %s { …%s… }", word, reason, tc.word, tc.reason)
			}
		})
	}
}

// Status and Plan agree: what nobody may run is claimed by nobody.
func TestNobodyClaimsWhatMayNotRun(t *testing.T) {
	for name, change := range map[string]func(w *World, s *crdt.Spec){
		"operators": func(w *World, _ *crdt.Spec) { w.MayRun = func(*crdt.Spec, stmt.Key) bool { return false } },
		"accept":    func(w *World, _ *crdt.Spec) { w.Nodes[0].Labels = map[string]string{AcceptLabel: "keys:"} },
		"memory":    func(_ *World, s *crdt.Spec) { s.MemoryBytes = 3 << 30 },
		"cpus":      func(_ *World, s *crdt.Spec) { s.VCPU = 3 },
		"region":    func(_ *World, s *crdt.Spec) { s.Region = "mars" },
		"gpu":       func(_ *World, s *crdt.Spec) { s.GPU = "H100" },
		"draining":  func(w *World, _ *crdt.Spec) { w.Nodes[0].Draining = true },
		"stopped":   func(_ *World, s *crdt.Spec) { s.Phase = crdt.PhaseStopped },
		"fence":     func(_ *World, s *crdt.Spec) { s.Partition = "fence" },
		"critical":  func(_ *World, s *crdt.Spec) { s.Critical = []string{"x"} },
		"no size":   func(w *World, s *crdt.Spec) { s.MemoryBytes, w.Nodes[0].Total.Memory = 0, 500<<20 },
		"negative":  func(_ *World, s *crdt.Spec) { s.VCPU = -1 << 40 },
	} {
		w, s := world3()
		w.Nodes = w.Nodes[:1]
		change(&w, s)
		out := Plan(Input{Now: 100 * time.Second, Self: stmt.Key{1}, World: w})
		if len(out.Claims) != 0 || len(out.VMs) != 0 {
			t.Errorf("%s: claims %+v", name, out.Claims)
		}
	}
	w, _ := world3()
	out := Plan(Input{Now: 100 * time.Second, Self: stmt.Key{1}, World: w, Accepts: func(stmt.Key) bool { return false }})
	if len(out.Claims) != 0 {
		t.Errorf("consent: claims %+v", out.Claims)
	}
}

// A node admits only what fits beside what it runs already.
func TestAdmissionCountsOwnClaims(t *testing.T) {
	w, _ := world3()
	w.Nodes = w.Nodes[:1]
	w.Nodes[0].Total.Memory = 2500 << 20
	for _, id := range []string{"xa", "xb", "xc"} {
		s := w.Instances[0]
		s.ID, s.Replicas = id, 1
		w.Instances = append(w.Instances, s)
	}
	out := Plan(Input{Now: 100 * time.Second, Self: stmt.Key{1}, World: w})
	if len(out.Claims) != 2 {
		t.Errorf("%d claims of 1 GiB in 2.5 GiB", len(out.Claims))
	}
}

func TestTakeoverBudget(t *testing.T) {
	w, _ := world3()
	w.Nodes[0].Total = crdt.Resources{CPUs: 100, Memory: 1 << 40, Disk: 1 << 40}
	w.Nodes = w.Nodes[:2]
	w.Dead[stmt.Key{2}] = 50 * time.Second
	proto := w.Instances[0]
	w.Instances = nil
	for i := range TakeoverBudget + 5 {
		s := proto
		s.ID, s.Replicas = string(rune('a'+i)), 1
		w.Instances = append(w.Instances, s)
		c := claimOf(2, 0, crdt.ClaimRunning, true)
		c.Instance = s.ID
		w.Claims[s.ID] = []crdt.Claim{c}
	}
	now := 100 * time.Second
	seen := Plan(Input{Now: 50 * time.Second, Self: stmt.Key{1}, World: w}).Timers
	seen.Repairs = nil // of packs to hold: what was charged for them ends sooner
	out := Plan(Input{Now: now, Self: stmt.Key{1}, World: w, Timers: seen})
	if len(out.Claims) != TakeoverBudget || out.Wake != now+time.Minute {
		t.Errorf("%d takeovers at once, wake after %v", len(out.Claims), out.Wake-now)
	}
}

// Admission counts what claims take: memory and disk are promised once, CPUs
// CPUOvercommit times, and what is free never goes below zero.
func TestRoom(t *testing.T) {
	node := crdt.Node{Total: crdt.Resources{CPUs: 4, Memory: 1 << 30, Disk: 10 << 30}}
	used := crdt.Resources{CPUs: 2, Memory: 768 << 20, Disk: 9 << 30}
	for _, tc := range []struct {
		spec crdt.Spec
		want string
	}{
		{crdt.Spec{VCPU: 14, MemoryBytes: 256 << 20, DiskBytes: 1 << 30}, ""},
		{crdt.Spec{VCPU: 15}, "its CPUs are taken"},
		{crdt.Spec{VCPU: 1, MemoryBytes: 257 << 20}, "its memory is taken"},
		{crdt.Spec{VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1<<30 + 1}, "its disk is taken"},
		{crdt.Spec{}, "its memory is taken"}, // nothing said takes the defaults
	} {
		if got := full(&node, used, &tc.spec); got != tc.want {
			t.Errorf("%+v: %q, want %q", tc.spec, got, tc.want)
		}
	}
	w, s := world3()
	s.VCPU, s.MemoryBytes, s.DiskBytes = 9, 9<<30, 9<<30
	w.Claims["web"] = []crdt.Claim{claimOf(1, 0, crdt.ClaimRunning, true)}
	if got := w.Free(w.Nodes[0]); got != (crdt.Resources{Disk: 1 << 30}) {
		t.Errorf("free beside a claim over the total: %+v", got)
	}
}

// A VM of an instance and a claim that nobody knows is left as it is for a day.
func TestStrayVMsAreKeptForADay(t *testing.T) {
	w, _ := world3()
	gone := w.Instances[0]
	w.Instances = nil
	start := 1000 * time.Second
	in := Input{Now: start, Self: stmt.Key{1}, World: w, VMs: map[string]VMStatus{"web-0": {Incarnation: "i", Restart: 7, Phase: VMRunning, Ready: true}}}
	for _, tc := range []struct {
		after time.Duration
		kept  bool
	}{{0, true}, {strayTime - time.Second, true}, {strayTime, false}} {
		in.Now = start + tc.after
		out := Plan(in)
		in.Timers = out.Timers
		if kept := len(out.VMs) == 1; kept != tc.kept {
			t.Fatalf("after %v: %+v", tc.after, out.VMs)
		}
		if tc.kept && out.VMs[0] != (VM{ID: "web-0", Run: true, Incarnation: "i", Restart: 7, Keep: true}) {
			t.Errorf("after %v: %+v", tc.after, out.VMs[0])
		}
	}
	known := w
	known.Instances = []crdt.Spec{gone}
	in.Timers = Remember(known, in.Self, in.VMs)
	if out := Plan(in); len(out.VMs) != 0 {
		t.Errorf("a VM of a deleted instance is kept: %+v", out.VMs)
	}
}

// A VM of an instance that was never known here ends at once when its owner has
// deleted it, and by nobody else's word.
func TestStrayVMsOfDeletedInstances(t *testing.T) {
	owner, other := stmt.Key{99}, stmt.Key{98}
	says := func(by stmt.Key, id string) func(stmt.Key, string) bool {
		return func(o stmt.Key, instance string) bool { return o == by && instance == id }
	}
	for _, tc := range []struct {
		name    string
		of      stmt.Key
		deleted func(stmt.Key, string) bool
		kept    bool
	}{
		{"nothing is known", owner, nil, true},
		{"nothing was deleted", owner, func(stmt.Key, string) bool { return false }, true},
		{"by its owner", owner, says(owner, "web"), false},
		{"another of its owner's", owner, says(owner, "db"), true},
		{"by somebody else", owner, says(other, "web"), true},
		{"its owner is not known", stmt.Key{}, func(stmt.Key, string) bool { return true }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, _ := world3()
			w.Instances, w.Deleted = nil, tc.deleted
			in := Input{Now: 1000 * time.Second, Self: stmt.Key{1}, World: w, VMs: map[string]VMStatus{"web-0": {Phase: VMRunning, Ready: true, Owner: tc.of}}}
			in.Timers = Remember(w, in.Self, in.VMs)
			out := Plan(in)
			if kept := len(out.VMs) == 1; kept != tc.kept || len(out.Timers.Stray) != len(out.VMs) {
				t.Errorf("VMs %+v, strays %v", out.VMs, out.Timers.Stray)
			}
		})
	}
}

func TestInterestIsBounded(t *testing.T) {
	w, _ := world3()
	if got := Interest(w, stmt.Key{1}); len(got) != 2 {
		t.Errorf("in a small swarm everybody: %v", got)
	}
	for i := range byte(100) {
		w.Nodes = append(w.Nodes, crdt.Node{Key: stmt.Key{i + 10}, Total: w.Nodes[0].Total})
	}
	w.Claims["web"] = []crdt.Claim{claimOf(1, 0, crdt.ClaimRunning, true), claimOf(2, 1, crdt.ClaimRunning, true)}
	watching := 0
	for _, n := range w.Nodes {
		switch k := len(Interest(w, n.Key)); {
		case k > 2:
			t.Errorf("%v watches %d nodes for one instance", n.Key, k)
		case k > 0:
			watching++
		}
	}
	if watching < 2 || watching > interestDepth+2 {
		t.Errorf("%d of %d nodes watch the instance", watching, len(w.Nodes))
	}
}

func TestWantedHolders(t *testing.T) {
	for nodes, want := range map[int]int{1: 1, 2: 2, 3: 3, 4: 4, 8: 4} {
		c := newCluster(nodes)
		c.ship("web", 2, "p1")
		c.run(20 * time.Second)
		w := c.world(c.nodes[0])
		if got := w.WantedHolders("p1"); got != want {
			t.Errorf("%d nodes, 2 replicas: %d holders wanted, want %d", nodes, got, want)
		}
		have := 0
		for _, n := range c.nodes {
			if _, ok := n.packs["p1"]; ok {
				have++
			}
		}
		if have != want {
			t.Errorf("%d nodes, 2 replicas: %d hold the pack, want %d", nodes, have, want)
		}
	}
}
