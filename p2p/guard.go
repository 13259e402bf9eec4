package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	msmux "github.com/multiformats/go-multistream"
)

// openTimeout bounds the opening of a stream for callers without a deadline.
const openTimeout = 15 * time.Second

// guardedHost is the host that the DHT, gossip, the exchange and all users get:
// inbound streams on a connection that is not admitted are reset, outbound ones
// wait until their connection is.
type guardedHost struct {
	host.Host
	gate *gate
	// find looks up the addresses of a peer of which none are known. nil for
	// the DHT, which would ask itself.
	find func(context.Context, peer.ID) (peer.AddrInfo, error)
	// nodesOnly refuses to open streams to clients, so that the DHT and gossip
	// take none for a node, whatever it serves.
	nodesOnly bool
}

func (h *guardedHost) SetStreamHandler(pid protocol.ID, f network.StreamHandler) {
	h.Host.SetStreamHandler(pid, h.guard(f))
}

func (h *guardedHost) SetStreamHandlerMatch(pid protocol.ID, m func(protocol.ID) bool, f network.StreamHandler) {
	h.Host.SetStreamHandlerMatch(pid, m, h.guard(f))
}

func (h *guardedHost) guard(f network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		if !h.gate.mayOpen(s.Conn()) {
			s.ResetWithError(network.StreamGated)
			return
		}
		f(s)
	}
}

// Connect dials the peer if need be, and waits until it is admitted.
func (h *guardedHost) Connect(ctx context.Context, pi peer.AddrInfo) error {
	if direct, _ := network.GetForceDirectDial(ctx); !direct {
		if h.gate.conn(pi.ID, true) != nil {
			return nil
		}
	}
	_, err := h.connect(ctx, pi, true)
	return err
}

func (h *guardedHost) connect(ctx context.Context, pi peer.AddrInfo, limited bool) (network.Conn, error) {
	circuits := through(h.Host, h.gate, pi.ID)
	if h.find != nil && len(pi.Addrs) == 0 && !slices.ContainsFunc(h.Peerstore().Addrs(pi.ID), isWhole) && len(h.Network().ConnsToPeer(pi.ID)) == 0 {
		finding, cancel := ctx, func() {}
		if len(circuits) > 0 {
			finding, cancel = context.WithTimeout(ctx, findTimeout)
		}
		found, err := h.find(finding, pi.ID)
		cancel()
		if err != nil && len(circuits) == 0 {
			return nil, fmt.Errorf("find addresses of %s: %w", pi.ID, err)
		}
		pi.Addrs = found.Addrs
	}
	pi.Addrs = append(slices.Clip(pi.Addrs), circuits...)
	h.gate.ref(pi.ID)
	defer h.gate.unref(pi.ID)
	if err := h.Host.Connect(ctx, pi); err != nil {
		return nil, err
	}
	// The connection may be so new that its event has not arrived.
	for _, c := range h.Network().ConnsToPeer(pi.ID) {
		h.gate.add(c)
	}
	return h.gate.wait(ctx, pi.ID, limited)
}

// NewStream opens a stream on an admitted connection, dialling if ctx allows.
func (h *guardedHost) NewStream(ctx context.Context, p peer.ID, pids ...protocol.ID) (network.Stream, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, openTimeout)
		defer cancel()
	}
	limited, _ := network.GetAllowLimitedConn(ctx)
	c := h.gate.conn(p, limited)
	if c == nil {
		var err error
		if c, err = h.admittedConn(ctx, p, limited); err != nil {
			return nil, err
		}
	}
	if h.nodesOnly && h.gate.isClient(p) {
		return nil, fmt.Errorf("open %v to %s: %w", pids, p, ErrClientOnly)
	}
	known, err := h.Peerstore().SupportsProtocols(p, pids...)
	if err == nil && len(known) > 0 {
		return openLazily(ctx, c, known[0])
	}
	s, err := openOn(ctx, c, pids...)
	if err != nil {
		return nil, err
	}
	if err := h.Peerstore().AddProtocols(p, s.Protocol()); err != nil {
		s.ResetWithError(network.StreamProtocolNegotiationFailed)
		return nil, fmt.Errorf("remember protocol of %s: %w", p, err)
	}
	return s, nil
}

func (h *guardedHost) admittedConn(ctx context.Context, p peer.ID, limited bool) (network.Conn, error) {
	if nodial, _ := network.GetNoDial(ctx); nodial {
		h.gate.ref(p)
		defer h.gate.unref(p)
		return h.gate.wait(ctx, p, limited)
	}
	return h.connect(ctx, peer.AddrInfo{ID: p}, limited)
}

// openOn opens a stream on one connection and negotiates its protocol.
func openOn(ctx context.Context, c network.Conn, pids ...protocol.ID) (network.Stream, error) {
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "negotiate"))
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.ResetWithError(network.StreamProtocolNegotiationFailed) })
	pid, err := msmux.SelectOneOf(pids, io.ReadWriteCloser(s))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.SetProtocol(pid)
	}
	if err != nil {
		s.ResetWithError(network.StreamProtocolNegotiationFailed)
		return nil, fmt.Errorf("negotiate protocol: %w", errors.Join(err, ctx.Err()))
	}
	return s, nil
}

// openLazily opens a stream for a protocol that the peer is known to speak: the
// negotiation travels with the first write, which saves a round trip.
func openLazily(ctx context.Context, c network.Conn, pid protocol.ID) (network.Stream, error) {
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "negotiate"))
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	if err := s.SetProtocol(pid); err != nil {
		s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return &lazyStream{Stream: s, rw: msmux.NewMSSelect(io.ReadWriteCloser(s), pid)}, nil
}

type lazyStream struct {
	network.Stream
	rw msmux.LazyConn
}

func (s *lazyStream) Read(b []byte) (int, error)  { return s.rw.Read(b) }
func (s *lazyStream) Write(b []byte) (int, error) { return s.rw.Write(b) }

// Close must not hang on a peer that never answers the negotiation.
func (s *lazyStream) Close() error {
	if err := s.SetReadDeadline(time.Now().Add(openTimeout)); err != nil {
		return errors.Join(err, s.Stream.Reset())
	}
	return s.rw.Close()
}

// CloseWrite sends the negotiation if nothing was written yet.
func (s *lazyStream) CloseWrite() error {
	if err := s.rw.Flush(); err != nil {
		// The peer may have stopped reading already, which is no failure of
		// ours to stop writing. A failed negotiation shows at the next Read.
		return s.Stream.CloseWrite()
	}
	return s.Stream.CloseWrite()
}

// gatedResources refuses, below every protocol handler, inbound streams of
// peers that are not admitted. It is the second lock: libp2p registers services
// of its own (relay, hole punching, reachability) on the unguarded host.
type gatedResources struct {
	network.ResourceManager
	gate    *gate
	refused func(p peer.ID, err error)
	hello   protocol.ID
}

func (r *gatedResources) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	s, err := r.ResourceManager.OpenStream(p, dir)
	if err != nil && dir == network.DirInbound {
		r.refused(p, err)
	}
	if err != nil || dir == network.DirOutbound {
		return s, err
	}
	return &gatedScope{StreamManagementScope: s, peer: p, r: r}, nil
}

type gatedScope struct {
	network.StreamManagementScope
	peer peer.ID
	r    *gatedResources
}

func (s *gatedScope) SetProtocol(pid protocol.ID) error {
	switch pid {
	case identify.ID, identify.IDPush, ping.ID, s.r.hello:
	default:
		if !s.r.gate.knows(s.peer) {
			return fmt.Errorf("protocol %s for %s: %w", pid, s.peer, ErrRefused)
		}
	}
	err := s.StreamManagementScope.SetProtocol(pid)
	if err != nil {
		s.r.refused(s.peer, err)
	}
	return err
}
