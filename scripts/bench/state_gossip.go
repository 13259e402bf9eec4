package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "state-gossip-60-p99", Unit: "x", Target: 1.5, AtMost: true},
			{Name: "state-gossip-60-lost", Unit: "statements", Target: 0, AtMost: true},
		},
		Run: measureGossip,
	})
	register(measurement{
		Figures: []figure{{Name: "state-gossip-30-stale", Unit: "stores", Target: 0, AtMost: true}},
		Run:     measureStale,
	})
}

const (
	gossipSettle = 20 * time.Second // for the hosts to find one another and mesh
	gossipTurns  = 40               // seconds of statements, and as many of the bare bytes, in turns
	gossipQuiet  = 3 * time.Second
	gossipLate   = 30 * time.Second // after which what has not arrived is lost
	bareTopic    = "bare"
)

// benchSwarm is some nodes with replicas in this process.
type benchSwarm struct {
	world *stateWorld
	hosts []*benchNode
	stop  func() error

	mu      sync.Mutex
	sent    map[message]time.Time // when it was published
	arrived map[message]map[int]time.Duration
	msgs    [][]byte // what the replicas published, to be replayed bare
}

// message is one that was published: bare, or by a replica, and its hash.
type message struct {
	bare bool
	hash [32]byte
}

func messageOf(topic string, msg []byte) message {
	return message{topic == bareTopic, sha256.Sum256(msg)}
}

// benchNode is a p2p.Node as a replica's Gossip that notes what passes.
type benchNode struct {
	*p2p.Node
	swarm *benchSwarm
	n     int
	r     *crdt.Replica
}

func (h *benchNode) Publish(ctx context.Context, topic string, msg []byte) error {
	h.swarm.mu.Lock()
	h.swarm.sent[messageOf(topic, msg)] = time.Now()
	if topic != bareTopic {
		h.swarm.msgs = append(h.swarm.msgs, msg)
	}
	h.swarm.mu.Unlock()
	return h.Node.Publish(ctx, topic, msg)
}

func (h *benchNode) Subscribe(ctx context.Context, topic string, validate func(context.Context, peer.ID, []byte) bool) error {
	return h.Node.Subscribe(ctx, topic, func(ctx context.Context, from peer.ID, msg []byte) bool {
		ok := validate(ctx, from, msg)
		if ok {
			h.swarm.note(h.n, messageOf(topic, msg))
		}
		return ok
	})
}

func (s *benchSwarm) note(node int, id message) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ours := s.sent[id]
	if !ours {
		return
	}
	if s.arrived[id] == nil {
		s.arrived[id] = map[int]time.Duration{}
	}
	if _, again := s.arrived[id][node]; !again {
		s.arrived[id][node] = now.Sub(at)
	}
}

// settle waits until everything has arrived everywhere, or is lost.
func (s *benchSwarm) settle(ctx context.Context) error {
	for end := time.Now().Add(gossipLate); time.Now().Before(end); {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
		s.mu.Lock()
		missing := 0
		for id := range s.sent {
			missing += len(s.hosts) - 1 - len(s.arrived[id])
		}
		s.mu.Unlock()
		if missing == 0 {
			return nil
		}
	}
	return nil
}

// deliveries are the delays in seconds with which messages arrived at the others,
// and how many did not.
type deliveries struct {
	delays  []float64
	missing int
}

// take returns what has arrived since the last call.
func (s *benchSwarm) take() (merged, bare deliveries) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.sent {
		d := &merged
		if id.bare {
			d = &bare
		}
		for _, delay := range s.arrived[id] {
			d.delays = append(d.delays, delay.Seconds())
		}
		d.missing += len(s.hosts) - 1 - len(s.arrived[id])
	}
	s.sent, s.arrived = map[message]time.Time{}, map[message]map[int]time.Duration{}
	return merged, bare
}

// lacking is, for each host, of how many nodes it does not have the last register,
// by gossip or by anti-entropy.
func (s *benchSwarm) lacking() []int {
	out := make([]int, len(s.hosts))
	for i, h := range s.hosts {
		v := h.r.View()
		for _, o := range s.hosts {
			key := stmt.KeyOf(stateKey("node", o.n))
			want, _ := o.r.View().Node(key)
			got, _ := v.Node(key)
			if got.Epoch != want.Epoch || got.Seq != want.Seq {
				out[i]++
			}
		}
	}
	return out
}

// everybody admits every connection: membership is in the statements.
type everybody struct{}

func (everybody) Hello(peer.ID) ([]byte, error)                        { return nil, nil }
func (everybody) Admit(context.Context, peer.ID, []byte) (bool, error) { return false, nil }
func (everybody) Gone(peer.ID)                                         {}

// startSwarm runs n nodes on loopback that know one another's membership.
func startSwarm(ctx context.Context, dir string, n int, interval time.Duration) (_ *benchSwarm, err error) {
	w := newStateWorld()
	members, err := w.admitAll(0, n)
	if err != nil {
		return nil, err
	}
	s := &benchSwarm{world: w, sent: map[message]time.Time{}, arrived: map[message]map[int]time.Duration{}}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	var mu sync.Mutex
	var failed error
	run := func(what string, f func(context.Context) error) {
		running.Go(func() {
			if err := f(ctx); err != nil {
				mu.Lock()
				failed = errors.Join(failed, fmt.Errorf("%s: %w", what, err))
				mu.Unlock()
			}
		})
	}
	s.stop = func() error {
		cancel()
		running.Wait()
		return failed
	}
	var bootstrap []string
	for i := range n {
		node, err := p2p.New(p2p.Config{
			Key: stateKey("node", i), Network: "bench", Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: bootstrap, Admission: everybody{},
		})
		if err != nil {
			return nil, errors.Join(err, s.stop())
		}
		h := &benchNode{Node: node, swarm: s, n: i}
		run("node", node.Run)
		select {
		case <-node.Ready():
		case <-time.After(time.Minute):
			return nil, errors.Join(errors.New("a node is not ready within a minute"), s.stop())
		}
		if len(bootstrap) < 8 {
			bootstrap = append(bootstrap, node.Addrs()[0])
		}
		cfg := w.config(i, filepath.Join(dir, fmt.Sprint("replica-", i)))
		cfg.Gossip, cfg.Streams, cfg.SyncInterval = h, node, interval
		if h.r, err = crdt.Open(cfg); err != nil {
			return nil, errors.Join(err, s.stop())
		}
		if _, err := h.r.Submit(ctx, members...); err != nil {
			return nil, errors.Join(err, h.r.Close(), s.stop())
		}
		run("replica", h.r.Run)
		if err := h.Subscribe(ctx, bareTopic, func(context.Context, peer.ID, []byte) bool { return true }); err != nil {
			return nil, errors.Join(err, s.stop())
		}
		s.hosts = append(s.hosts, h)
	}
	return s, nil
}

// say has the nodes in turn publish a new register, rate a second in all.
func (s *benchSwarm) say(ctx context.Context, rate int, window time.Duration) error {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for i := range rate * int(window/time.Second) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		err := s.hosts[i%len(s.hosts)].r.SetNode(ctx, crdt.Node{
			Version: fmt.Sprint(time.Now().UnixNano()), Region: "eu-1", Total: crdt.Resources{CPUs: 8, Memory: 32 << 30, Disk: 1 << 40},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// replay publishes, at the same rate, the bytes that the replicas published.
func (s *benchSwarm) replay(ctx context.Context, rate int) error {
	s.mu.Lock()
	msgs := s.msgs
	s.msgs = nil
	s.mu.Unlock()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for i, msg := range msgs {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.hosts[i%len(s.hosts)].Publish(ctx, bareTopic, msg); err != nil {
			return err
		}
	}
	return nil
}

// measureGossip compares how long a statement takes to be merged everywhere with
// how long the same bytes take to arrive by the same gossip, in turns.
func measureGossip(ctx context.Context, e *env) (_ map[string]float64, err error) {
	dir, remove, err := freeSync(e)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	const hosts, rate = 60, 20
	e.logf("%d hosts at %d statements a second", hosts, rate)
	s, err := startSwarm(ctx, dir, hosts, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := pause(ctx, gossipSettle); err != nil {
		return nil, err
	}
	if err := s.say(ctx, rate, 2*time.Second); err != nil { // the nodes' first registers
		return nil, err
	}
	if err := errors.Join(s.settle(ctx), s.replay(ctx, rate), s.settle(ctx)); err != nil {
		return nil, err
	}
	s.take()
	// Second by second, and all deliveries of a kind together: a stall of the
	// machine, of which a window of one kind may have one or none, hits both.
	for range gossipTurns {
		if err := errors.Join(s.say(ctx, rate, time.Second), s.replay(ctx, rate)); err != nil {
			return nil, err
		}
	}
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	merged, bare := s.take()
	if len(merged.delays) == 0 || len(bare.delays) == 0 {
		return nil, errors.New("nothing was delivered")
	}
	lost := 0
	for _, lacks := range s.lacking() {
		lost += lacks
	}
	for _, d := range []struct {
		of string
		deliveries
	}{{"statements", merged}, {"bare", bare}} {
		e.logf("%s: %d deliveries, p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, %d not by gossip", d.of, len(d.delays),
			1e3*quantile(d.delays, .5), 1e3*quantile(d.delays, .9), 1e3*quantile(d.delays, .99), d.missing)
	}
	return map[string]float64{
		"state-gossip-60-p99":  quantile(merged.delays, .99) / quantile(bare.delays, .99),
		"state-gossip-60-lost": float64(lost),
	}, nil
}

// measureStale counts the stores that lack something one anti-entropy round after
// more statements than two cores can carry.
func measureStale(ctx context.Context, e *env) (_ map[string]float64, err error) {
	dir, remove, err := freeSync(e)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	const hosts, rate, interval = 30, 200, 10 * time.Second
	e.logf("%d hosts at %d statements a second", hosts, rate)
	s, err := startSwarm(ctx, dir, hosts, interval)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := errors.Join(pause(ctx, gossipSettle), s.say(ctx, rate, 10*time.Second)); err != nil {
		return nil, err
	}
	// A round: every node has begun a session, which it does within 1.5 intervals.
	if err := pause(ctx, interval*3/2+gossipQuiet); err != nil {
		return nil, err
	}
	merged, _ := s.take()
	stale := 0
	for _, lacks := range s.lacking() {
		if lacks > 0 {
			stale++
		}
	}
	e.logf("gossip left out %d deliveries", merged.missing)
	return map[string]float64{"state-gossip-30-stale": float64(stale)}, nil
}

func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
