package live

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/sim/des"
)

// wall is the machine's clock, which does not stand still in a bubble.
func wall(t testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// swarm runs f on a swarm in a bubble, and ends it.
func swarm(t *testing.T, cfg Config, f func(t *testing.T, s *Swarm)) {
	began := wall(t)
	Run(t, cfg, func(t *testing.T, s *Swarm) {
		f(t, s)
		t.Logf("seed %d: %v of virtual time in %v", cfg.Seed, s.Now().Round(time.Second), (wall(t) - began).Round(10*time.Millisecond))
	})
	t.Logf("all ended after %v", (wall(t) - began).Round(10*time.Millisecond))
}

func app(n int) crdt.Spec {
	return crdt.Spec{Name: "app", Pack: des.PackName(n), Replicas: 1, Phase: crdt.PhaseRunning}
}

// Who knows three of a swarm comes to know the rest, and all agree.
func TestNodesMeetAndAgree(t *testing.T) {
	swarm(t, Config{Nodes: 20, Seed: 1}, func(t *testing.T, s *Swarm) {
		if err := s.Start(100 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		took, ok := s.RunUntil(time.Minute, time.Second, func() bool { return len(s.Lonely(8)) == 0 && s.Converged() })
		if !ok {
			t.Fatalf("after %v: %v have few peers, all agree: %v", took, s.Lonely(8), s.Converged())
		}
		t.Logf("all have 8 peers, and agree, after %v", took)
		id, err := s.Ship(7, app(1))
		if err != nil {
			t.Fatal(err)
		}
		took, ok = s.RunUntil(10*time.Second, 50*time.Millisecond, func() bool { return len(s.Lacking(id)) == 0 })
		if !ok {
			t.Fatalf("after %v %v lack what was shipped", took, s.Lacking(id))
		}
		t.Logf("all have what was shipped after %v", took)
		if err := s.UnequalViews(); err != nil {
			t.Error(err)
		}
		if err := s.Unacknowledged(); err != nil {
			t.Error(err)
		}
	})
}
