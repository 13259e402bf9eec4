package p2p

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"
)

// gossipHost is the host pubsub runs on. It cures two ways in which pubsub
// (v0.19) goes deaf to a peer for as long as a connection stays, when one of its
// two streams to that peer ends alone, as it does with the lesser of two
// connections:
//
//   - The side whose stream ended forgets the other's topics, and the other has
//     no reason to tell them again. A new stream from a peer is the sign: we then
//     repeat our topics on our own stream.
//   - After four such ends in ten minutes it gives the peer up until the next
//     identify. We remind it, with the event it waits for.
type gossipHost struct {
	host.Host
	topics func() []string                  // full names of what we follow
	remind func(p peer.ID, pid protocol.ID) // make pubsub take up a peer again
	after  func(d time.Duration, f func())  // runs f once, unless the node ends

	mu  sync.Mutex
	out map[peer.ID]*gossipStream
}

const (
	gossipPrefix = "/meshsub/"
	// remindAfter is well over pubsub's own longest back-off of 10 s.
	remindAfter = 30 * time.Second
	// repeatTimeout bounds the repeating of topics to a peer that reads slowly.
	repeatTimeout = 10 * time.Second
)

func (h *gossipHost) SetStreamHandler(pid protocol.ID, f network.StreamHandler) {
	h.Host.SetStreamHandler(pid, func(s network.Stream) {
		h.repeatTopics(s.Conn().RemotePeer())
		f(s)
	})
}

func (h *gossipHost) NewStream(ctx context.Context, p peer.ID, pids ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, p, pids...)
	if err != nil || !strings.HasPrefix(string(s.Protocol()), gossipPrefix) {
		return s, err
	}
	gs := &gossipStream{Stream: s, host: h}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.out[p] = gs
	return gs, nil
}

// repeatTopics tells a peer our topics on the stream we have to it, if any.
func (h *gossipHost) repeatTopics(p peer.ID) {
	h.mu.Lock()
	s := h.out[p]
	h.mu.Unlock()
	if s == nil {
		return // pubsub tells them first thing on a new stream
	}
	h.after(0, func() { s.sendTopics(h.topics()) })
}

// ended forgets a stream, and checks later that pubsub has opened another.
func (h *gossipHost) ended(s *gossipStream) {
	p := s.Conn().RemotePeer()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.out[p] != s {
		return
	}
	delete(h.out, p)
	pid := s.Protocol()
	h.after(remindAfter, func() {
		h.mu.Lock()
		back := h.out[p] != nil
		h.mu.Unlock()
		if !back {
			h.remind(p, pid)
		}
	})
}

// gossipStream is a stream that pubsub writes to, one whole frame a Write.
type gossipStream struct {
	network.Stream
	host *gossipHost
	mu   sync.Mutex
}

func (s *gossipStream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Stream.Write(b)
}

func (s *gossipStream) Close() error {
	s.host.ended(s)
	return s.Stream.Close()
}

func (s *gossipStream) Reset() error {
	s.host.ended(s)
	return s.Stream.Reset()
}

func (s *gossipStream) ResetWithError(code network.StreamErrorCode) error {
	s.host.ended(s)
	return s.Stream.ResetWithError(code)
}

func (s *gossipStream) sendTopics(topics []string) {
	frame, err := topicsFrame(topics)
	if err != nil || len(frame) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// pubsub sets a deadline of its own before each of its writes.
	if err = s.SetWriteDeadline(time.Now().Add(repeatTimeout)); err == nil {
		_, err = s.Stream.Write(frame)
	}
	if err != nil {
		s.Stream.Reset() // pubsub notices, and starts over
	}
}

// topicsFrame is pubsub's message "I follow these", with its length before it.
func topicsFrame(topics []string) ([]byte, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	rpc := &pb.RPC{}
	for _, t := range topics {
		rpc.Subscriptions = append(rpc.Subscriptions, &pb.RPC_SubOpts{Topicid: proto.String(t), Subscribe: proto.Bool(true)})
	}
	raw, err := proto.Marshal(rpc)
	if err != nil {
		return nil, fmt.Errorf("encode topics: %w", err)
	}
	return append(binary.AppendUvarint(nil, uint64(len(raw))), raw...), nil
}

// newGossipHost wires a gossipHost to the node.
func (n *Node) newGossipHost() *gossipHost {
	return &gossipHost{
		Host: &guardedHost{Host: n.inner, gate: n.gate, find: n.findPeer, nodesOnly: true},
		out:  make(map[peer.ID]*gossipStream),
		topics: func() []string {
			return n.gossip.followed()
		},
		after: func(d time.Duration, f func()) {
			n.tasks.run(func() {
				if d > 0 {
					t := time.NewTimer(d)
					defer t.Stop()
					select {
					case <-t.C:
					case <-n.ctx.Done():
						return
					}
				}
				f()
			})
		},
		remind: func(p peer.ID, pid protocol.ID) {
			if n.gate.conn(p, true) == nil || n.gate.isClient(p) {
				return
			}
			e, err := n.inner.EventBus().Emitter(new(event.EvtPeerProtocolsUpdated))
			if err == nil {
				err = e.Emit(event.EvtPeerProtocolsUpdated{Peer: p, Added: []protocol.ID{pid}})
			}
			if err != nil {
				n.log.Debug("gossip does not take up peer", "peer", p, "err", err)
				return
			}
			if err := e.Close(); err != nil {
				n.log.Debug("close emitter", "err", err)
			}
		},
	}
}
