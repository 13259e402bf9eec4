package live

import (
	"flag"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/sim/des"
)

var hosts = flag.Int("live.hosts", 20, "how many hosts the tests for any number of them have")

// wall is the machine's clock, which does not stand still in a bubble.
func wall(t testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// spent is what this process has computed for so far.
func spent(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	swarm(t, Config{Nodes: 12, Seed: 1}, func(t *testing.T, s *Swarm) {
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

// The halves of a swarm that is split for so long that connections die find each
// other again, and all hosts have what any of them is told, within 30 seconds.
func TestHealedPartitionDelivers(t *testing.T) {
	const within = 30 * time.Second
	n := *hosts
	if raced {
		n = min(n, 10)
	}
	swarm(t, Config{Nodes: n, Seed: 2, Net: WAN(n, 2)}, func(t *testing.T, s *Swarm) {
		if err := s.Start(50 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took, ok := s.RunUntil(time.Minute, time.Second, s.Converged); !ok {
			t.Fatalf("after %v not all agree", took)
		}
		phase(t, s, "all have met")
		splits := []time.Duration{66 * time.Second, 3 * time.Minute}
		if raced {
			splits = splits[:1]
		}
		for _, split := range splits {
			s.Partition(s.all()[:n/2], s.all()[n/2:])
			s.Run(split)
			apart := []string{ship(t, s, 0), ship(t, s, n-1)}
			s.Run(5 * time.Second)
			for _, id := range apart {
				if lack := len(s.Lacking(id)); lack < n/2 {
					t.Errorf("a split for %v was crossed: %d of %d lack what the other half shipped", split, lack, n)
				}
			}
			phase(t, s, "split")
			s.Heal()
			healed := s.Now()
			delivered := func() bool {
				id := ship(t, s, int(s.Now()/time.Second)%n)
				s.Run(2 * time.Second)
				return len(s.Lacking(id)) == 0
			}
			took, ok := s.RunUntil(within, time.Second, delivered)
			if !ok {
				t.Fatalf("%v after a split for %v not all deliver", took, split)
			}
			agreed, ok := s.RunUntil(within-took, time.Second, s.Converged)
			if !ok {
				t.Errorf("%v after a split for %v not all agree", s.Now()-healed, split)
			}
			t.Logf("after a split for %v all %d deliver within %v and agree after %v", split, n, took, took+agreed)
			phase(t, s, "healed")
		}
		if err := s.UnequalViews(); err != nil {
			t.Error(err)
		}
		if err := s.Unacknowledged(); err != nil {
			t.Error(err)
		}
	})
}

// A node that is killed, and one whose machine loses power, come back with what
// they acknowledged, and learn what they missed.
func TestCrashedNodesComeBack(t *testing.T) {
	swarm(t, Config{Nodes: 6, Seed: 3}, func(t *testing.T, s *Swarm) {
		if err := s.Start(50 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took, ok := s.RunUntil(time.Minute, time.Second, s.Converged); !ok {
			t.Fatalf("after %v not all agree", took)
		}
		for round := range 4 {
			i, machine := round%s.Nodes(), round%2 == 1
			own := ship(t, s, i)
			s.Crash(i, machine)
			missed := ship(t, s, 5)
			s.Run(40 * time.Second)
			if err := s.Start(0, i); err != nil {
				t.Fatal(err)
			}
			if lacking := s.Lacking(own); slices.Contains(lacking, i) {
				t.Errorf("node %d (its machine crashed: %v) has lost what it acknowledged", i, machine)
			}
			took, ok := s.RunUntil(30*time.Second, time.Second, func() bool {
				return len(s.Lacking(missed)) == 0 && len(s.Lacking(own)) == 0
			})
			if !ok {
				t.Errorf("node %d is back for %v; %v lack what it missed", i, took, s.Lacking(missed))
			}
		}
		if _, ok := s.RunUntil(30*time.Second, time.Second, s.Converged); !ok {
			t.Error("not all agree")
		}
		if err := s.Unacknowledged(); err != nil {
			t.Error(err)
		}
	})
}

// A tenth of all packets is lost, and some arrive twice: all still deliver.
func TestLossyNetworkDelivers(t *testing.T) {
	swarm(t, Config{Nodes: 10, Seed: 4, Net: NetConfig{Loss: 0.1, Duplicate: 0.05, Jitter: 1}}, func(t *testing.T, s *Swarm) {
		if err := s.Start(50 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took, ok := s.RunUntil(2*time.Minute, time.Second, s.Converged); !ok {
			t.Fatalf("after %v not all agree", took)
		}
		for k := range 10 {
			id := ship(t, s, k%s.Nodes())
			took, ok := s.RunUntil(10*time.Second, 50*time.Millisecond, func() bool { return len(s.Lacking(id)) == 0 })
			if !ok {
				t.Errorf("after %v %v lack a statement", took, s.Lacking(id))
			}
		}
		if lost := s.Traffic().Lost; lost == 0 {
			t.Error("no packet was lost")
		}
	})
}

func ship(t *testing.T, s *Swarm, at int) string {
	t.Helper()
	id, err := s.Ship(at, app(1))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// phase prints how much work it was so far.
func phase(t *testing.T, s *Swarm, what string) {
	tr := s.Traffic()
	t.Logf("%v: %s; %v of processor time, %d packets, %d MB", s.Now().Round(time.Second), what, spent(t).Round(10*time.Millisecond), tr.Packets, tr.Bytes>>20)
}
