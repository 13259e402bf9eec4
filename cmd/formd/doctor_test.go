package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// What doctor finds, and the fix it names.
func TestDoctorFinds(t *testing.T) {
	key := func(n byte) stmt.Key { return stmt.Key{n} }
	clocks := func(skews ...time.Duration) (out []witness) {
		for i, s := range skews {
			out = append(out, witness{peer: key(byte(i + 1)), skew: s})
		}
		return out
	}
	down := map[stmt.Key]time.Duration{key(8): 0, key(9): 0}
	sees := func(alive ...byte) []witness {
		w := witness{peer: key(1), live: map[stmt.Key]bool{}}
		for _, n := range alive {
			w.live[key(n)] = true
		}
		return []witness{{peer: key(2)}, w}
	}
	vote := func(name string, voters, dead, gone byte) plan.Electorate {
		e := plan.Electorate{Spec: &crdt.Spec{ID: strings.Repeat(name, 40), Name: name, Partition: crdt.PartitionFence}}
		for n := range voters {
			switch k := key(n + 1); {
			case n < dead:
				e.Dead = append(e.Dead, k)
			case n < dead+gone:
				e.Gone = append(e.Gone, k)
			}
			e.Spec.Voters = append(e.Spec.Voters, key(n+1))
		}
		return e
	}
	votes := func(list ...plan.Electorate) []plan.Electorate { return list }
	const m = time.Minute
	var all strings.Builder
	for _, tt := range []struct {
		name  string
		check api.Check
	}{
		{"no peer's clock", clockCheck(nil)},
		{"clocks agree", clockCheck(clocks(time.Second, -29*time.Second))},
		{"one clock is ahead", clockCheck(clocks(0, 90*time.Second, 0))},
		{"one clock is behind", clockCheck(clocks(0, -2*time.Hour, 0))},
		{"the only peer's clock", clockCheck(clocks(m))},
		{"this clock is wrong", clockCheck(clocks(m, 61*time.Second, 0))},
		{"in step", lagCheck(crdt.Lag{Peers: 3, Last: 12 * time.Second}, 2)},
		{"alone", lagCheck(crdt.Lag{Last: -1}, 0)},
		{"never compared", lagCheck(crdt.Lag{Last: -1}, 2)},
		{"not compared for long", lagCheck(crdt.Lag{Peers: 2, Last: 20 * m}, 2)},
		{"views differ", lagCheck(crdt.Lag{Peers: 5, Differ: 2, For: 7 * m, Last: time.Second}, 5)},
		{"the disk fails", lagCheck(crdt.Lag{Peers: 5, Behind: true, Last: time.Second}, 5)},
		{"everybody answers", reachCheck(nil, nil)},
		{"nodes are down", reachCheck(down, sees())},
		{"nodes are down for this node alone", reachCheck(down, sees(7, 9))},
		{"room", diskCheck("disk", "/data", "fix", 40<<30, nil)},
		{"little room", diskCheck("disk", "/data", "fix", 1<<30, nil)},
		{"no room", diskCheck("disk", "/data", "fix", 1<<20, nil)},
		{"no disk", diskCheck("disk", "/data", "fix", 0, errors.New("input/output error"))},
		{"voters are there", votersCheck(votes(vote("a", 3, 0, 0), vote("b", 1, 0, 0)))},
		{"a voter is dead", votersCheck(votes(vote("a", 3, 0, 0), vote("b", 3, 1, 0)))},
		{"a voter is gone", votersCheck(votes(vote("b", 5, 0, 1)))},
		{"no majority is left", votersCheck(votes(vote("a", 7, 3, 0), vote("b", 3, 1, 1), vote("c", 5, 0, 1)))},
		{"many voters are dead", votersCheck(votes(vote("a", 7, 5, 0), vote("b", 3, 2, 0)))},
		{"no voters", votersCheck(votes(vote("a", 0, 0, 0)))},
		{"an owner is over its quota", quotaCheck([]plan.Overrun{{Owner: key(3), Over: 2, All: 5, Why: "over its owner's quota: 3 replicas allowed"}})},
		{"owners are over their quotas", quotaCheck([]plan.Overrun{{Owner: key(3), Over: 1, All: 1, Why: "a"}, {Owner: key(4), Over: 2, All: 2, Why: "b"}})},
		{"an owner is closed", closedCheck([]stmt.Key{key(5)})},
		{"owners are closed", closedCheck([]stmt.Key{key(5), key(6), key(7)})},
	} {
		fmt.Fprintf(&all, "== %s\n%s %s: %s\n", tt.name, tt.check.State, tt.check.Name, tt.check.Detail)
		if tt.check.Fix != "" {
			fmt.Fprintf(&all, "fix: %s\n", tt.check.Fix)
		}
		if tt.check.State != "ok" && tt.check.Fix == "" {
			t.Errorf("%s: no fix is named", tt.name)
		}
	}
	golden(t, "doctor.txt", all.String())
}

// What owners signed is told of only where there is something to tell, and never
// fails a node.
func TestDoctorLooksAtOwners(t *testing.T) {
	self, owner := stmt.Key{1}, stmt.Key{2}
	quota := stmt.Quota{}
	w := plan.World{Nodes: []crdt.Node{{Key: self}}, Quota: func(stmt.Key) (stmt.Quota, bool) { return quota, true }}
	names := func(closed ...stmt.Key) (out []string) {
		for _, c := range swarmChecks(w, closed) {
			if out = append(out, c.Name+" "+c.State); c.State == "fail" {
				t.Errorf("%+v", c)
			}
		}
		return out
	}
	is := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	is(names())
	w.Instances = []crdt.Spec{{ID: "a", Owner: owner, Replicas: 2, Phase: crdt.PhaseRunning}}
	is(names())
	w.Instances[0].Partition, w.Instances[0].Voters = crdt.PartitionStopMinority, []stmt.Key{self}
	is(names(), "voters ok")
	w.Instances[0].Voters, quota.Replicas = []stmt.Key{owner}, 1
	is(names(owner), "voters warn", "quotas warn", "closed owners warn")
}

// Who signs two contents is named, this node before others.
func TestDoctorNamesEquivocators(t *testing.T) {
	self, other, owner := stmt.Key{1}, stmt.Key{2}, stmt.Key{3}
	mine := crdt.Equivocation{Author: self, Kind: stmt.KindClaim, Epoch: 4, Seq: 2}
	theirs := crdt.Equivocation{Author: other, Kind: stmt.KindNode, Epoch: 4, Seq: 2}
	spec := crdt.Equivocation{Author: owner, Kind: stmt.KindSpec, Epoch: 1, Seq: 2}
	for _, tt := range []struct {
		list  []crdt.Equivocation
		who   stmt.Key
		state string
		fix   string
	}{
		{[]crdt.Equivocation{spec, theirs, mine}, self, "fail", "--data"},
		{[]crdt.Equivocation{spec, theirs}, other, "warn", "form node forget"},
		{[]crdt.Equivocation{spec}, owner, "warn", "form manage update"},
	} {
		c := equivocationCheck(tt.list, self)
		if c.State != tt.state || !strings.Contains(c.Detail, tt.who.String()) || !strings.Contains(c.Fix, tt.fix) {
			t.Errorf("%+v", c)
		}
	}
}

// Doctor on one of two nodes hears the other's clock and compares states.
func TestDoctorAsksPeers(t *testing.T) {
	procs := swarm(t, 2)
	within(t, 60*time.Second, "doctor has compared", func() error {
		checks, err := procs[0].local.Doctor(context.Background())
		if err != nil {
			return err
		}
		want := map[string]string{"clock": "of 1 peers", "sync": "compared with 1 peers"}
		for _, c := range checks {
			if text, ok := want[c.Name]; ok {
				if c.State != "ok" || !strings.Contains(c.Detail, text) {
					return fmt.Errorf("%+v", c)
				}
				delete(want, c.Name)
			}
		}
		if len(want) > 0 {
			return fmt.Errorf("%v are missing of %v", want, checks)
		}
		return nil
	})
}
