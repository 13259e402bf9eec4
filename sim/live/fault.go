package live

import (
	"math/rand/v2"

	"github.com/formthefog/formation/crdt"
)

// Partition has only those in one group reach each other; who is in no group is
// with the first.
func (s *Swarm) Partition(groups ...[]int) {
	s.Seen["partition"]++
	s.net.change(func() {
		clear(s.net.side)
		for g, nodes := range groups {
			for _, i := range nodes {
				s.net.side[i] = g
			}
		}
	})
}

// Heal has everybody reach everybody.
func (s *Swarm) Heal() {
	s.Seen["heal"]++
	s.net.change(func() {
		clear(s.net.side)
		clear(s.net.cut)
	})
}

// Cut has nothing that from sends reach to; the other way is as it was.
func (s *Swarm) Cut(from, to int) {
	s.Seen["cut"]++
	s.net.change(func() { s.net.cut[link{from, to}] = true })
}

// Lossy changes how many packets are lost, and how many arrive twice.
func (s *Swarm) Lossy(loss, duplicate float64) {
	s.Seen["loss"]++
	s.net.change(func() { s.net.cfg.Loss, s.net.cfg.Duplicate = loss, duplicate })
}

// Crash ends a node at once. With its machine it loses what was not synced; by
// itself, as by kill -9, what it had not written. Start brings it back.
func (s *Swarm) Crash(i int, machine bool) {
	n := s.nodes[i]
	if !n.up {
		return
	}
	s.Seen["crash"]++
	n.crash(func(d *crdt.Disk) *crdt.Disk {
		if machine {
			return d.LosePower(rand.New(rand.NewPCG(s.cfg.Seed, uint64(i)<<32|uint64(n.lives))))
		}
		return d.Kill()
	})
}
