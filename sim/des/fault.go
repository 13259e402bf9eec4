package des

import (
	"slices"
	"time"

	"github.com/formthefog/formation/sim/chance"
)

// The faults of nodes and of the network. Nodes are named by number, from 0.

// Crash ends the daemon of a node at once: what is not synced to its disk is
// lost. With the machine its virtual machines go, too.
func (s *Sim) Crash(i int, machine bool) {
	n := s.nodes[i]
	if !n.up {
		return
	}
	n.stop(machine)
	s.checks.crashed(s, int32(i))
	s.Seen["crash"]++
}

// Start has a node come back with its disk.
func (s *Sim) Start(i int) {
	n := s.nodes[i]
	if n.up || n.absent || n.gone {
		return
	}
	if d := &n.disk; d.rotten > 0 {
		d.cut(d.rotten - 1)
		d.rotten = 0
	}
	if n.down {
		n.down, n.awake = false, s.now
		n.clock.began, n.clock.shows = s.now, justUp
	}
	n.h = s.pool.hold(n.disk.log())
	n.start(false)
	s.checks.started(int32(i))
	s.Seen["restart"]++
}

// Stall has a node do nothing for d; messages wait for it.
func (s *Sim) Stall(i int, d time.Duration) { s.pause(i, d, false) }

// Suspend has the whole machine sleep for d: messages to it are lost, and its
// virtual machines stand still. Its clock of time since boot goes on.
func (s *Sim) Suspend(i int, d time.Duration) { s.pause(i, d, true) }

func (s *Sim) pause(i int, d time.Duration, sleeps bool) {
	n := s.nodes[i]
	if !n.up || n.paused > s.now+d {
		return
	}
	n.paused, n.sleeps = s.now+d, sleeps
	n.after(d, evResume, 0, 0, nil)
	if sleeps {
		n.awake = s.now + d
		s.checks.crashed(s, int32(i))
		s.Do(d, func() { s.checks.started(int32(i)) })
		s.Seen["suspend"]++
	} else {
		s.Seen["stall"]++
	}
}

// Stalls has every node stall for d at a time, again and again, drawn with the
// given mean between two stalls, until the end of virtual time.
func (s *Sim) Stalls(d, mean time.Duration) {
	for i := range s.nodes {
		rng := chance.Stream(s.cfg.Seed, useWorld, uint64(i))
		var next func()
		wait := func() time.Duration { return time.Duration(rng.ExpFloat64() * float64(mean)) }
		next = func() {
			s.Stall(i, d)
			s.Do(d+wait(), next)
		}
		s.Do(wait(), next)
	}
}

// LoseVotes has a node that is down forget what it promised as a voter: its disk
// was replaced.
func (s *Sim) LoseVotes(i int) {
	if n := s.nodes[i]; !n.up {
		n.disk.votes.memory = nil
		s.Seen["votes lost"]++
	}
}

// Slow has a node take so much longer for every message; zero ends that.
func (s *Sim) Slow(i int, extra time.Duration) {
	s.net.extra[i] = extra
	if extra > 0 {
		s.Seen["slow"]++
	}
}

// Loss changes how many messages are lost.
func (s *Sim) Loss(p float64) { s.net.Loss = p }

// Cut stops messages in one direction.
func (s *Sim) Cut(from, to int) {
	s.net.cut[pair{int32(from), int32(to)}] = true
	s.rewired()
}

// Partition splits the network: nodes reach those of their own list only; who is
// in none of them is in the first.
func (s *Sim) Partition(sides ...[]int) {
	clear(s.net.side)
	s.net.sides = len(sides)
	for i, side := range sides {
		for _, n := range side {
			s.net.side[n] = int32(i)
		}
	}
	s.rewired()
	s.Seen["partition"]++
}

// Heal ends all cuts and partitions. Nodes that could not reach each other find
// each other again within a while, and compare what they hold.
func (s *Sim) Heal() {
	s.reunite()
	clear(s.net.side)
	clear(s.net.cut)
	s.net.sides = 0
	s.rewired()
	s.Seen["heal"]++
}

// Drain has a node give its replicas away, or ends that.
func (s *Sim) Drain(i int, on bool) {
	s.nodes[i].draining = on
	s.nodes[i].plan()
}

// Split says whether somebody does not reach everybody.
func (s *Sim) Split() bool { return s.net.split() }

// Draining says whether a node gives its replicas away.
func (s *Sim) Draining(i int) bool { return s.nodes[i].draining }

// Up says whether a node's daemon runs.
func (s *Sim) Up(i int) bool { return s.nodes[i].up }

// Reachable are the nodes that are up and awake.
func (s *Sim) Reachable() []int {
	var out []int
	for i, n := range s.nodes {
		if n.up && !n.asleep(s.now) {
			out = append(out, i)
		}
	}
	return slices.Clip(out)
}
