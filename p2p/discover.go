package p2p

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// discoverTimeout bounds Discover for callers without a deadline.
const discoverTimeout = 15 * time.Second

// Discover connects to a multiaddr that ends in /p2p/<peer ID>, with a
// throw-away identity, and returns the network the peer takes part in. The
// answer is the peer's own claim: it proves its ID, not that it is a member.
// ErrNoNetwork if it claims none, or more than one.
func Discover(ctx context.Context, addr string) (network string, id peer.ID, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("discover %s: %w", addr, err)
		}
	}()
	pi, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	h, err := libp2p.New(
		libp2p.NoListenAddrs,
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(quic.NewTransport),
		libp2p.DisableMetrics(), libp2p.UserAgent(userAgent), libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
	)
	if err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := h.Connect(ctx, *pi); err != nil { // returns after identify
		return "", pi.ID, err
	}
	protocols, err := h.Peerstore().GetProtocols(pi.ID)
	if err != nil {
		return "", pi.ID, err
	}
	for _, p := range protocols {
		name, ok := strings.CutPrefix(string(p), helloPrefix)
		if !ok || !validNetwork(name) {
			continue
		}
		if network != "" {
			return "", pi.ID, fmt.Errorf("%w: it claims %q and %q", ErrNoNetwork, network, name)
		}
		network = name
	}
	if network == "" {
		return "", pi.ID, ErrNoNetwork
	}
	return network, pi.ID, nil
}
