package live

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// swarm is many detectors that probe each other over a network which takes one
// tick and loses 2 % of everything; gossip takes two ticks.
type swarm struct {
	rng      *rand.Rand
	now      time.Duration
	keys     []stmt.Key
	index    map[stmt.Key]int
	nodes    []*Detector
	interest [][]int
	down     []bool
	until    []time.Duration // nodes that stall do nothing before
	wire     map[time.Duration][]delivery
	mute     bool // hints are lost
	messages int
	deaths   []string
}

type delivery struct {
	to int
	ev Event
}

func newSwarm(n, interest int, cfg Config, seed uint64) *swarm {
	s := &swarm{
		rng: rand.New(rand.NewPCG(seed, 1)), index: map[stmt.Key]int{}, down: make([]bool, n),
		until: make([]time.Duration, n), wire: map[time.Duration][]delivery{}, interest: make([][]int, n),
	}
	epochs := map[stmt.Key]uint64{}
	for i := range n {
		k := stmt.Key{1, byte(i >> 8), byte(i)}
		s.keys, s.index[k], epochs[k] = append(s.keys, k), i, 1
	}
	for i := range n {
		d := New(s.keys[i], cfg, seed+uint64(i))
		var matters []stmt.Key
		for _, j := range s.rng.Perm(n)[:interest] {
			s.interest[i] = append(s.interest[i], j)
			matters = append(matters, s.keys[j])
		}
		d.Step(0, Peers{All: s.keys, Interest: matters, Epochs: epochs})
		s.nodes = append(s.nodes, d)
	}
	return s
}

// send delivers ev, unless it is lost.
func (s *swarm) send(to int, after time.Duration, ev Event) {
	if s.messages++; s.rng.IntN(50) != 0 {
		s.wire[s.now+after] = append(s.wire[s.now+after], delivery{to, ev})
	}
}

// ask is a ping and its answer; what is probed learns of the prober too.
func (s *swarm) ask(from, to int, after time.Duration) {
	s.messages++
	if s.down[to] || s.rng.IntN(50) == 0 {
		return
	}
	s.wire[s.now+after] = append(s.wire[s.now+after], delivery{to, Contact{s.keys[from]}})
	s.send(from, after+max(0, s.until[to]-s.now)+tick, Contact{s.keys[to]})
}

func (s *swarm) step(i int, ev Event) {
	for _, e := range s.nodes[i].Step(s.now, ev) {
		switch e := e.(type) {
		case Ping:
			s.ask(i, s.index[e.To], tick)
		case PingReq:
			for _, v := range e.Via {
				h, target := s.index[v], s.index[e.Target]
				s.ask(i, h, tick)
				if !s.down[h] && !s.down[target] {
					s.send(i, 4*tick, Contact{e.Target})
				}
			}
		case Tell:
			for j := range s.nodes {
				if j != i && !s.mute {
					s.send(j, 2*tick, Heard{s.keys[i], e.Hint})
				}
			}
		case Changed:
			if j := s.index[e.Key]; e.State == Dead && !s.down[j] {
				s.deaths = append(s.deaths, fmt.Sprintf("%v: %d holds %d for dead", s.now, i, j))
			}
		}
	}
}

func (s *swarm) run(d time.Duration) {
	for end := s.now + d; s.now < end; {
		s.now += tick
		for _, m := range s.wire[s.now] {
			if late := s.until[m.to]; late > s.now {
				at := (late/tick + 1) * tick
				s.wire[at] = append(s.wire[at], m)
			} else if !s.down[m.to] {
				s.step(m.to, m.ev)
			}
		}
		delete(s.wire, s.now)
		for i := range s.nodes {
			if !s.down[i] && s.until[i] <= s.now {
				s.step(i, Tick{})
			}
		}
	}
}

// detect kills a node and returns how long the last of those takes for whom it
// matters.
func (s *swarm) detect(victim int) time.Duration {
	killed := s.now
	s.down[victim] = true
	for s.now < killed+time.Minute {
		s.run(tick)
		missing := 0
		for i, set := range s.interest {
			for _, j := range set {
				if j == victim && i != victim && s.nodes[i].Status(s.keys[victim]).State != Dead {
					missing++
				}
			}
		}
		if missing == 0 {
			break
		}
	}
	return s.now - killed
}

// Where a node's interest is so large that it comes round but every ten seconds,
// hints have all those confirm a death within ten that it concerns.
func TestHintsSpeedDetection(t *testing.T) {
	const seed = 3
	cfg := Config{MaxInterest: 4}
	var with, without []time.Duration
	for victim := range 3 {
		s := newSwarm(120, 40, cfg, seed)
		s.run(20 * time.Second)
		with = append(with, s.detect(victim))
		s = newSwarm(120, 40, cfg, seed)
		s.mute = true
		s.run(20 * time.Second)
		without = append(without, s.detect(victim))
	}
	t.Logf("seed %d: with hints %v, without %v", seed, with, without)
	slow := 0
	for i := range with {
		if with[i] > 10*time.Second {
			t.Errorf("victim %d: %v with hints", i, with[i])
		}
		if without[i] > 10*time.Second {
			slow++
		}
	}
	if slow == 0 {
		t.Error("all are as fast without hints: the test proves nothing")
	}
}

// Minutes of losses and stalls of 500 ms kill nobody, and what a node sends
// does not grow with the swarm.
func TestSwarmIsCalmAndFlat(t *testing.T) {
	const seed = 5
	var perNode []float64
	for _, n := range []int{60, 240} {
		s := newSwarm(n, 20, Config{}, seed)
		length := 4 * time.Minute
		if n > 100 {
			length = time.Minute
		}
		for end := s.now + length; s.now < end; {
			for i := range s.nodes {
				if s.rng.IntN(240) == 0 {
					s.until[i] = s.now + 500*time.Millisecond
				}
			}
			s.run(tick)
		}
		for _, d := range s.deaths {
			t.Errorf("seed %d, %d nodes: %s", seed, n, d)
		}
		perNode = append(perNode, float64(s.messages)/float64(n)/length.Seconds())
	}
	t.Logf("messages per node and second: %.1f of 60, %.1f of 240 nodes", perNode[0], perNode[1])
	if ratio := perNode[1] / perNode[0]; ratio > 1.5 {
		t.Errorf("%.2f times as many messages in the larger swarm", ratio)
	}
}

// A member that tells lies about everybody, as fast as it likes, costs the others
// some probes and kills nobody.
func TestLyingMember(t *testing.T) {
	s := newSwarm(40, 10, Config{}, 9)
	s.run(5 * time.Second)
	honest := s.messages
	s.run(30 * time.Second)
	honest = s.messages - honest
	before := s.messages
	for range 30 * 4 {
		for i := 1; i < 40; i++ {
			for j := 1; j < 40; j++ {
				inc := Incarnation{1, s.nodes[j].voice.inc.Count}
				s.wire[s.now+tick] = append(s.wire[s.now+tick], delivery{i, Heard{s.keys[0], Hint{Peer: s.keys[j], Incarnation: inc}}})
			}
		}
		s.run(tick)
	}
	for _, d := range s.deaths {
		t.Error(d)
	}
	told := 0
	for i := range s.nodes {
		told += int(s.nodes[i].voice.inc.Count)
	}
	// Each of 39 contradicts once a second, and that reaches 39.
	if lies := s.messages - before - honest; lies > 39*39*31+honest {
		t.Errorf("%d messages more for the lies, %d without", lies, honest)
	}
	if told == 0 {
		t.Error("nobody contradicted")
	}
}
