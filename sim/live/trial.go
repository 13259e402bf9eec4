package live

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/sim/gossip"
)

// Trial has real hosts do what a trial of the model of gossipsub says, with the
// connections that it says and no others. What the model takes for parameters, of the
// router and of scores, is here what package p2p does.
func Trial(t *testing.T, want gossip.Trial) (res gossip.Result) {
	bubble(t, func(t *testing.T) {
		s := &trial{Trial: want}
		if err := s.start(); err != nil {
			t.Error(err)
		} else if err := s.publish(); err != nil {
			t.Error(err)
		}
		s.cancel()
		if err := s.running.Wait(); err != nil {
			t.Error(err)
		}
		res = s.res
	})
	return res
}

// trialTopic is the one topic of a trial.
const trialTopic = "trial"

type trial struct {
	gossip.Trial
	cancel  context.CancelFunc
	running *errgroup.Group
	nodes   []*p2p.Node

	mu   sync.Mutex // guards what follows
	on   bool       // messages count
	sent []time.Time
	res  gossip.Result
	mesh []map[peer.ID]bool
}

func (s *trial) start() error {
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.running, ctx = errgroup.WithContext(ctx)
	delay := func(from, to int) time.Duration { return s.Delay(int32(from), int32(to)) }
	wires := newNetwork(NetConfig{Delay: delay, Jitter: s.Jitter, Loss: s.Loss}, s.Trial.Nodes, s.Seed)
	keys := make([]ed25519.PrivateKey, s.Trial.Nodes)
	ids := make([]peer.ID, s.Trial.Nodes)
	friends := make([]friends, s.Trial.Nodes)
	dials := make([][]string, s.Trial.Nodes)
	for i := range keys {
		keys[i] = keyOf("trial", s.Seed, i)
		ids[i] = peer.ID(stmt.KeyOf(keys[i]).PeerID())
		s.mesh = append(s.mesh, map[peer.ID]bool{})
	}
	for _, e := range s.Edges {
		a, b := int(e[0]), int(e[1])
		friends[a], friends[b] = append(friends[a], ids[b]), append(friends[b], ids[a])
		dials[a] = append(dials[a], listens(b)+"/p2p/"+ids[b].String())
	}
	for i := range keys {
		n, err := p2p.New(p2p.Config{
			Key: keys[i], Network: "trial", Listen: []string{listens(i)}, Bootstrap: dials[i], Admission: friends[i],
			Trace: &tracer{trial: s, i: i}, Simulated: true, Avoid: func(p peer.ID) bool { return !slices.Contains(friends[i], p) },
			ListenUDP: func(_ string, addr *net.UDPAddr) (net.PacketConn, error) { return wires.listen(i, addr) },
		})
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, n)
		if err := n.Subscribe(ctx, trialTopic, s.arrives(i)); err != nil {
			return err
		}
		s.running.Go(func() error { return n.Run(ctx) })
	}
	time.Sleep(s.Settle)
	for i, n := range s.nodes {
		if got := len(n.Peers()); got != len(friends[i]) {
			return fmt.Errorf("after %v node %d has %d peers, not the %d of the trial", s.Settle, i, got, len(friends[i]))
		}
	}
	return nil
}

// publish has the messages said, and counts what that takes.
func (s *trial) publish() error {
	s.mu.Lock()
	s.on = true
	s.mu.Unlock()
	began := time.Now()
	for i, p := range s.Publish {
		time.Sleep(time.Until(began.Add(p.At)))
		there := make([]time.Duration, s.Trial.Nodes)
		for k := range there {
			there[k] = -1
		}
		there[p.Node] = 0
		s.mu.Lock()
		s.res.Arrived, s.sent = append(s.res.Arrived, there), append(s.sent, time.Now())
		s.mu.Unlock()
		msg := make([]byte, p.Size)
		binary.BigEndian.PutUint64(msg, uint64(i))
		if err := s.nodes[p.Node].Publish(context.Background(), trialTopic, msg); err != nil {
			return err
		}
	}
	time.Sleep(s.Rest)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on = false
	for _, m := range s.mesh {
		s.res.Degree += float64(len(m)) / float64(len(s.mesh))
	}
	return nil
}

// arrives receives a node's messages.
func (s *trial) arrives(node int) func(context.Context, peer.ID, []byte) bool {
	return func(_ context.Context, _ peer.ID, msg []byte) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		i := binary.BigEndian.Uint64(msg)
		if s.res.Arrived[i][node] < 0 {
			s.res.Arrived[i][node] = time.Since(s.sent[i])
		}
		return true
	}
}

// friends are the peers that a node of a trial is connected with.
type friends []peer.ID

func (friends) Hello(peer.ID) ([]byte, error) { return nil, nil }

func (friends) Admit(context.Context, peer.ID, []byte) (bool, error) { return false, nil }

func (friends) Gone(peer.ID) {}

// tracer counts what a node sends.
type tracer struct {
	*trial
	i int
}

func (r *tracer) SendRPC(rpc *pubsub.RPC, _ peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.on {
		return
	}
	add := func(k gossip.Kind, n int) { r.res.Sends[k] += uint64(n) }
	add(gossip.Payload, len(rpc.GetPublish()))
	c := rpc.GetControl()
	add(gossip.IHave, len(c.GetIhave()))
	add(gossip.IWant, len(c.GetIwant()))
	add(gossip.IDontWant, len(c.GetIdontwant()))
	add(gossip.Graft, len(c.GetGraft()))
	add(gossip.Prune, len(c.GetPrune()))
}

func (r *tracer) Graft(p peer.ID, _ string) { r.meshed(p, true) }
func (r *tracer) Prune(p peer.ID, _ string) { r.meshed(p, false) }

func (r *tracer) meshed(p peer.ID, in bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if in {
		r.mesh[r.i][p] = true
	} else {
		delete(r.mesh[r.i], p)
	}
}

// The rest of what the library tells is of no concern.

func (*tracer) OnNewOutboundStream(peer.ID, protocol.ID)             {}
func (*tracer) OnClosedOutboundStream(peer.ID)                       {}
func (*tracer) Join(string)                                          {}
func (*tracer) Leave(string)                                         {}
func (*tracer) ValidateMessage(*pubsub.Message)                      {}
func (*tracer) DeliverMessage(*pubsub.Message)                       {}
func (*tracer) RejectMessage(*pubsub.Message, string)                {}
func (*tracer) DuplicateMessage(*pubsub.Message)                     {}
func (*tracer) ThrottlePeer(peer.ID)                                 {}
func (*tracer) RecvRPC(*pubsub.RPC)                                  {}
func (*tracer) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
func (*tracer) DropRPC(*pubsub.RPC, peer.ID)                         {}
func (*tracer) UndeliverableMessage(*pubsub.Message)                 {}
