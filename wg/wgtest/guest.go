package wgtest

import (
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/embedded"
)

// Guest is a device over a network stack of its own whose datagrams go by its host,
// as a guest's do.
type Guest struct {
	*embedded.Device
	Net    *netstack.Net
	Public wg.Key

	wire *Wire
	at   netip.AddrPort
}

// NewGuest makes a guest with that private key and those addresses, which ends with
// the test. send is given what it sends, and may not keep b.
func NewGuest(t *testing.T, key wg.Key, addresses []netip.Addr, send func(b []byte, to netip.AddrPort)) *Guest {
	t.Helper()
	g := &Guest{Public: key.PublicKey(), at: netip.MustParseAddrPort("192.0.2.1:51820")}
	g.wire = NewWire(func(b []byte, _, to netip.AddrPort) bool {
		send(b, to)
		return false
	})
	device, stack, err := netstack.CreateNetTUN(addresses, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	g.Net = stack
	if g.Device, err = embedded.Open(embedded.Config{TUN: device, Bind: g.wire.Bind(g.at), Key: key}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// Deliver hands the guest a datagram from somebody.
func (g *Guest) Deliver(b []byte, from netip.AddrPort) { g.wire.Deliver(slices.Clone(b), from, g.at) }
