package p2p

import (
	"context"
	"errors"
	"net"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/quic-go/quic-go"
)

// quicSockets are the sockets that Config.ListenUDP opens, as QUIC uses them. The
// library closes those it opens itself; these are closed here.
type quicSockets struct {
	cfg     *Config
	manager *quicreuse.ConnManager // nil before open
}

// open makes the manager with what the library gives its own: connections count
// before their handshake, and a flood of them has to prove its address first.
func (s *quicSockets) open(reset quic.StatelessResetKey, token quic.TokenGeneratorKey, resources network.ResourceManager) (_ *quicreuse.ConnManager, err error) {
	opts := []quicreuse.Option{
		quicreuse.OverrideListenUDP(s.cfg.ListenUDP),
		quicreuse.VerifySourceAddress(resources.VerifySourceAddress),
		quicreuse.ConnContext(func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
			addr, err := quicreuse.ToQuicMultiaddr(info.RemoteAddr, quic.Version1)
			if err != nil {
				addr = nil // the resource manager judges it as it is
			}
			scope, err := resources.OpenConnection(network.DirInbound, false, addr)
			if err != nil {
				return ctx, err
			}
			ctx = network.WithConnManagementScope(ctx, scope)
			context.AfterFunc(ctx, scope.Done)
			return ctx, nil
		}),
	}
	if s.cfg.Simulated {
		opts = append(opts, quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return listened(s.cfg.Listen), nil }))
	}
	s.manager, err = quicreuse.NewConnManager(reset, token, opts...)
	return s.manager, err
}

func (s *quicSockets) Close() error {
	if s.manager == nil {
		return nil
	}
	return s.manager.Close()
}

// listened are listen addresses, of which the first of a family is the source of
// what is sent, whatever routes this machine has.
type listened []string

func (l listened) PreferredSourceIPForDestination(dst *net.UDPAddr) (net.IP, error) {
	for _, s := range l {
		a, err := parseListen(s)
		if err != nil {
			return nil, err
		}
		if ip, _, _ := ipPort(a); ip.Is4() == (dst.IP.To4() != nil) {
			return ip.AsSlice(), nil
		}
	}
	return nil, errors.New("no address of the family of " + dst.String())
}

// socketHost is a host that closes its sockets last.
type socketHost struct {
	host.Host
	sockets *quicSockets
}

func (h *socketHost) Close() error { return errors.Join(h.Host.Close(), h.sockets.Close()) }
