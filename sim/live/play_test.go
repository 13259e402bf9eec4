package live

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/scenario"
)

func planOf(t *testing.T, text string, seed uint64) *scenario.Plan {
	t.Helper()
	s, err := scenario.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Expand(0, seed)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A scenario does to real hosts what it does to simulated ones, as far as they are
// hosts.
func TestPlay(t *testing.T) {
	p := planOf(t, `about: a bit of everything
nodes: 8
tiers: [live]
newcomers: 0.25
network: {loss: 0.02, duplicate: 0.01}
workload: {instances: 2, replicas: 1, changes: 3s}
schedule:
  - {at: 2s, do: partition, share: 0.4}
  - {then: 40s, do: heal}
  - {then: 1s, do: join}
  - {then: 1s, do: bounce, node: up, for: 5s}
  - {then: 1s, do: torn-log, node: up, for: 5s}
  - {then: 1s, do: clog, node: up}
  - {then: 5s, do: unclog, node: clogged}
  - {then: 1s, do: cut, node: up, share: 0.5}
  - {then: 1s, do: slow, node: up, by: 300ms, for: 5s}
  - {then: 1s, do: ship, node: up, name: late}
  - {then: 5s, do: loss, share: 0.1}
  - {then: 5s, do: crash, node: up, kind: machine}
calm: true
expect: {settle: 1m}
sometimes: [partition, heal, join, crash, clog, unclog, cut, slow, an owner changed something]
`, 5)
	if err := Refuses(p); err != nil {
		t.Fatal(err)
	}
	r := Play(t.Context(), t, p)
	for _, b := range r.Bad {
		t.Errorf("seed %d: %v", p.Seed, b)
	}
	t.Logf("%v of virtual time: %q", r.Virtual, r.Notes)
}

// What holds not is told.
func TestPlayFinds(t *testing.T) {
	p := planOf(t, `about: a swarm that is split does not agree
nodes: 6
tiers: [live]
workload: {instances: 2, replicas: 1, changes: 1s}
schedule: [{at: 1s, do: partition, share: 0.5}]
until: 40s
expect: {settle: 5s, delivery-p99: 1s}
sometimes: [join]
`, 6)
	r := Play(t.Context(), t, p)
	var found []des.Invariant
	for _, b := range r.Bad {
		found = append(found, b.Of)
	}
	if !slices.Equal(found, []des.Invariant{settles, delivers, sometimes}) {
		t.Errorf("found %v", r.Bad)
	}
}

// What was acknowledged and is with nobody is told, once all agree.
func TestLostAcknowledgementIsFound(t *testing.T) {
	swarm(t, Config{Nodes: 6, Seed: 7}, func(t *testing.T, s *Swarm) {
		if err := s.Start(50 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		ship(t, s, 0)
		if took, ok := s.RunUntil(time.Minute, time.Second, s.Converged); !ok {
			t.Fatalf("after %v not all agree", took)
		}
		if err := s.Unacknowledged(); err != nil {
			t.Errorf("nothing is lost: %v", err)
		}
		raw, err := stmt.SignMember(s.root, s.id, stmt.MemberBody{Key: stmt.Key{1}, Role: stmt.RoleNode}, nil, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		lost, err := stmt.Check(raw, s.id)
		if err != nil {
			t.Fatal(err)
		}
		s.acked = append(s.acked, lost)
		if err := s.Unacknowledged(); err == nil || !strings.Contains(err.Error(), "is lost") {
			t.Errorf("a statement is lost: %v", err)
		}
	})
}

func TestRefusals(t *testing.T) {
	p := planOf(t, `about: what is not of hosts
nodes: 8
liars: 0.25
schedule:
  - {at: 1s, do: suspend, node: running, for: 5s}
  - {at: 1s, do: suspend, node: up, for: 5s}
  - {at: 1s, do: crash, node: up}
`, 1)
	err := Refuses(p)
	if err == nil {
		t.Fatal("nothing is refused")
	}
	want := "tier live: scenario test is not made for it\n" +
		"tier live: nobody can lie\n" +
		"tier live: cannot do: suspend\n" +
		"tier live: cannot pick: running"
	if got := err.Error(); got != want {
		t.Errorf("refused:\n%s\nwant:\n%s", got, want)
	}
}

// A run that is to end before it has begun ends in order, and says so.
func TestPlayIsCut(t *testing.T) {
	p := planOf(t, `about: nobody waits for its end
nodes: 6
tiers: [live]
schedule: [{at: 1s, do: heal}]
until: 2000h
expect: {settle: 5s}
`, 6)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := Play(ctx, t, p)
	if end := r.Recording.Lines[len(r.Recording.Lines)-1].End; !r.Cut || !end.Cut || len(r.Bad) > 0 {
		t.Errorf("cut %v, recorded %+v, found %v", r.Cut, end, r.Bad)
	}
}
