package p2p

import (
	"context"
	"fmt"
	"net"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// protocolID is the full form of a bare protocol name.
func protocolID(name, short string) protocol.ID {
	return protocol.ID("/formd/" + name + "/" + short)
}

// Open opens a stream to a peer for a bare protocol name like "api/1". A peer
// that is not connected is dialled, if need be at addresses the DHT knows. ctx
// bounds the opening only. The connection has CloseWrite() error.
func (n *Node) Open(ctx context.Context, p peer.ID, proto string) (net.Conn, error) {
	if !n.isOpen() {
		return nil, ErrNotRunning
	}
	ctx = network.WithAllowLimitedConn(ctx, proto)
	s, err := n.host.NewStream(ctx, p, protocolID(proto, n.cfg.Network))
	if err != nil {
		return nil, fmt.Errorf("open %s to %s: %w", proto, p, err)
	}
	return streamConn{s}, nil
}

// Handle serves a bare protocol name to admitted peers. h runs in a goroutine
// of its own and owns the connection; ctx ends with the node, and Run waits for
// h to return.
func (n *Node) Handle(proto string, h func(ctx context.Context, from peer.ID, c net.Conn)) {
	n.host.SetStreamHandler(protocolID(proto, n.cfg.Network), func(s network.Stream) {
		if !n.tasks.enter() {
			s.Reset()
			return
		}
		defer n.tasks.leave()
		h(n.ctx, s.Conn().RemotePeer(), streamConn{s})
	})
}

// streamConn is a stream as a net.Conn. Deadlines and CloseWrite are those of
// the stream, so are the semantics of Close: it ends both directions, and what
// was written before still arrives.
type streamConn struct{ network.Stream }

func (c streamConn) LocalAddr() net.Addr  { return peerAddr{c.Conn().LocalPeer()} }
func (c streamConn) RemoteAddr() net.Addr { return peerAddr{c.Conn().RemotePeer()} }

// Relayed says whether the stream goes through another peer.
func (c streamConn) Relayed() bool { return isRelayed(c.Conn()) }

// peerAddr is a peer ID as a net.Addr.
type peerAddr struct{ id peer.ID }

func (peerAddr) Network() string  { return "libp2p" }
func (a peerAddr) String() string { return a.id.String() }
