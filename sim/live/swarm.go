package live

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Config is what a Swarm needs. Nodes is required.
type Config struct {
	Nodes int
	Seed  uint64
	Net   NetConfig
	// Founders are the nodes that all others are told of, as by a ticket; the first
	// one lets everybody own instances (default: 0, 1 and 2).
	Founders []int
	// Logger of a node; nil: nothing is logged.
	Logger func(node int) *slog.Logger
}

// Swarm is so many nodes and the network between them. Its methods are for one
// goroutine, that of the bubble.
type Swarm struct {
	cfg   Config
	net   *network
	id    stmt.NetworkID
	root  ed25519.PrivateKey
	nodes []*node
	acked []stmt.Verified
	began time.Time
	// Seen counts what was done to the swarm, by name.
	Seen map[string]int
}

// MaxNodes bounds a Swarm: each node takes about a megabyte and a hundred
// goroutines.
const MaxNodes = 1000

// lastDial is longer than any dial takes.
const lastDial = 2 * time.Minute

// bubble runs f in a bubble. Once f has returned time goes on for as long as the
// library's dials do, which outlive their host until they time out: time stands still
// when the bubble's own goroutine has ended.
func bubble(t *testing.T, f func(t *testing.T)) {
	// The library counts bytes in a goroutine that the first count starts and that
	// never ends: it must not be one of the bubble's.
	metrics.NewBandwidthCounter().LogSentMessage(1)
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(lastDial)
		f(t)
	})
}

// Run has f do something with a swarm, of which nobody runs yet, in a bubble of its
// own, and ends the swarm.
func Run(t *testing.T, cfg Config, f func(t *testing.T, s *Swarm)) {
	bubble(t, func(t *testing.T) {
		s, err := newSwarm(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		}()
		f(t, s)
	})
}

func newSwarm(cfg Config) (*Swarm, error) {
	if cfg.Nodes < 2 || cfg.Nodes > MaxNodes {
		return nil, fmt.Errorf("live swarm of %d nodes: want 2 to %d", cfg.Nodes, MaxNodes)
	}
	if len(cfg.Founders) == 0 {
		cfg.Founders = []int{0, 1, 2}[:min(3, cfg.Nodes)]
	}
	s := &Swarm{cfg: cfg, began: time.Now(), Seen: map[string]int{}, net: newNetwork(cfg.Net, cfg.Nodes, cfg.Seed)}
	s.root = s.key("root", 0)
	s.id = stmt.NewNetworkID("live", stmt.KeyOf(s.root))
	for i := range cfg.Nodes {
		n, err := s.newNode(i)
		if err != nil {
			return nil, err
		}
		s.nodes = append(s.nodes, n)
	}
	return s, nil
}

func (s *Swarm) key(what string, i int) ed25519.PrivateKey { return keyOf(what, s.cfg.Seed, i) }

func keyOf(what string, of uint64, i int) ed25519.PrivateKey {
	b := binary.BigEndian.AppendUint64([]byte(what), of)
	seed := sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(i)))
	return ed25519.NewKeyFromSeed(seed[:])
}

// Now is how long the swarm has existed, in virtual time.
func (s *Swarm) Now() time.Duration { return time.Since(s.began) }

// Nodes is how many there are, up or not.
func (s *Swarm) Nodes() int { return len(s.nodes) }

// Start starts nodes that are down, and lets each wait a little for the one before;
// none are named: all of them.
func (s *Swarm) Start(apart time.Duration, which ...int) error {
	if len(which) == 0 {
		which = s.all()
	}
	for k, i := range which {
		if k > 0 && apart > 0 {
			s.Run(apart)
		}
		if err := s.nodes[i].start(); err != nil {
			return fmt.Errorf("start node %d: %w", i, err)
		}
		s.Seen["start"]++
	}
	return nil
}

// Run lets virtual time pass, and all happen that happens until then.
func (s *Swarm) Run(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// RunUntil lets time pass until ok, which it asks every step, and says whether that
// was within limit.
func (s *Swarm) RunUntil(limit, step time.Duration, ok func() bool) (time.Duration, bool) {
	began := s.Now()
	for !ok() {
		if s.Now()-began >= limit {
			return s.Now() - began, false
		}
		s.Run(step)
	}
	return s.Now() - began, true
}

// stop ends every node. The errors are what their Run returned.
func (s *Swarm) stop() error {
	for _, n := range s.nodes {
		n.cancel()
	}
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.wait())
	}
	return errors.Join(errs...)
}

func (s *Swarm) all() []int {
	out := make([]int, len(s.nodes))
	for i := range out {
		out[i] = i
	}
	return out
}

// Up are the nodes that run.
func (s *Swarm) Up() []int {
	return slices.DeleteFunc(s.all(), func(i int) bool { return !s.nodes[i].up })
}

// author is the owner at work with a node: from what that holds.
func (s *Swarm) author(at int) (*crdt.Author, error) {
	if !s.nodes[at].up {
		return nil, fmt.Errorf("node %d is down", at)
	}
	key := s.key("owner", 0)
	return crdt.NewAuthor(key, s.id, s.nodes[at].state.OwnerStatements(stmt.KeyOf(key)))
}

// Ship has the owner bring a new instance to a node, which acknowledges it once its
// statements are on disk. It returns the instance's ID.
func (s *Swarm) Ship(at int, spec crdt.Spec) (string, error) {
	a, err := s.author(at)
	if err != nil {
		return "", fmt.Errorf("ship: %w", err)
	}
	id, raws, err := a.Create(spec)
	if err != nil {
		return "", fmt.Errorf("ship: %w", err)
	}
	return id, s.submit(at, raws)
}

// Set has the owner change an instance at a node that knows it.
func (s *Swarm) Set(at int, id string, change func(*crdt.Spec)) error {
	a, err := s.author(at)
	if err != nil {
		return fmt.Errorf("set: %w", err)
	}
	raws, err := a.Set(id, change)
	if err != nil {
		return fmt.Errorf("set: %w", err)
	}
	return s.submit(at, raws)
}

func (s *Swarm) submit(at int, raws [][]byte) error {
	if _, err := s.nodes[at].state.Submit(context.Background(), raws...); err != nil {
		return err
	}
	for _, raw := range raws {
		v, err := stmt.Check(raw, s.id)
		if err != nil {
			return err
		}
		s.acked = append(s.acked, v)
	}
	return nil
}

// Traffic is what all nodes together have sent.
func (s *Swarm) Traffic() (sum Traffic) {
	s.net.change(func() {
		for _, t := range s.net.traffic {
			sum.Packets, sum.Bytes, sum.Lost = sum.Packets+t.Packets, sum.Bytes+t.Bytes, sum.Lost+t.Lost
		}
	})
	return sum
}
