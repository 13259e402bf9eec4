package carrier

import (
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
)

// endpoint is where a device's peer is: a host's address, or one of the network.
type endpoint struct {
	to  netip.AddrPort
	std *conn.StdNetEndpoint // with the local address by which to answer; nil for hosts
}

func parseEndpoint(s string) (*endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, fmt.Errorf("carrier: endpoint: %w", err)
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if IsHost(a) {
		return &endpoint{to: a}, nil
	}
	return &endpoint{to: a, std: &conn.StdNetEndpoint{AddrPort: a}}, nil
}

func (e *endpoint) ClearSrc() {
	if e.std != nil {
		e.std.ClearSrc()
	}
}

func (e *endpoint) SrcToString() string {
	if e.std == nil {
		return ""
	}
	return e.std.SrcToString()
}

func (e *endpoint) SrcIP() netip.Addr {
	if e.std == nil {
		return netip.Addr{}
	}
	return e.std.SrcIP()
}

func (e *endpoint) DstToString() string { return e.to.String() }
func (e *endpoint) DstIP() netip.Addr   { return e.to.Addr() }

// DstToBytes is under what WireGuard's cookies and limits know the endpoint.
func (e *endpoint) DstToBytes() []byte {
	b, err := e.to.MarshalBinary()
	if err != nil {
		return nil // it has no error to give
	}
	return b
}
